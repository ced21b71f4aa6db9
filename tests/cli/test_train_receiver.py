"""`python -m m2ray.train_receiver`: bad options, a training that is resumed, and one that diverges."""

import re
import sys

import pytest

from m2ray.cli.receivers import train_receiver
from m2ray.cli.runner import BAD_INPUT, DONE, run_command
from m2ray.receiver.loading import load_receiver
from m2ray.training import receiver_training
from m2ray.util.errors import UserError

SMALL = [
    "--samples",
    "24",
    "--batch",
    "4",
    "--width",
    "8",
    "--layers",
    "1",
    "--held-out",
    "2",
    "--save-every",
    "2",
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run the command as `python -m` does, on options that it must refuse; return its error line."""

    def check(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        monkeypatch.setattr(sys, "argv", ["m2ray", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            run_command(train_receiver.main)
        (line,) = capsys.readouterr().err.splitlines()
        assert left.value.code == BAD_INPUT
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return line

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    return check


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--batch 0", "--batch 0: out of range; use 1 to 65536"),
        ("--batch 100000", "--batch 100000: out of range; use 1 to 65536"),
        ("--batch x", "argument --batch: invalid int value: 'x'; see"),
        ("--lr=-1", "--lr -1.0: out of range; use a number above 0, such as 0.0015"),
        ("--lr 0", "--lr 0.0: out of range; use a number above 0"),
        ("--lr nan", "--lr nan: out of range"),
        ("--lr inf", "--lr inf: out of range"),
        ("--width 0", "--width 0: out of range; use 8 to 8192"),
        ("--width 12", "--width 12: not a multiple of 8; use one, such as 128"),
        ("--width 64 --base mini", "--width: the size of a model from scratch; leave it or --base out"),
        ("--layers 0", "--layers 0: out of range; use 1 to 128"),
        ("--layers 2 --base mini", "--layers: the size of a model from scratch; leave it or --base out"),
        ("--held-out 0", "--held-out 0: out of range; use 1 to 1000000"),
        ("--save-every 0", "--save-every 0: out of range; use 1 to"),
        ("--withhold 2", "--withhold 2.0: out of range; use 0 to 1"),
        ("--withhold=-0.1", "--withhold -0.1: out of range"),
        ("--withhold nan", "--withhold nan: out of range"),
        ("--seed=-1", "--seed -1: out of range; use 0 to 4294967295"),
        ("--seed 4294967296", "--seed 4294967296: out of range"),
        ("--samples 0", "--samples 0: out of range; use 1 to"),
        ("--samples 3", "--samples 3: do not fill a batch of 64; use more, or lower --batch"),
        ("--lora=-2 --base mini", "--lora -2: out of range; use 0 to 4096"),
        ("--lora 2", "--lora: adapts a pretrained model; name one with --base, or leave it out"),
        ("--adapter new", "--adapter: adapts a pretrained model; name one with --base, or leave it out"),
        ("--adapter new --base mini", "--adapter: the folder of LoRA weights; give their rank with --lora"),
        ("--adapter file --base mini --lora 2", "--adapter: file is a file; choose another folder"),
        ("--base ./none", "--base: receiver ./none: no such folder; give mini"),
        ("--level none", "--level: level 'none' does not exist; use one of easy"),
        ("--out file", "--out: file is a file; choose another folder"),
        ("--out file/below", "--out: .*file is a file; choose another folder"),
        ("--out /", "--out /: has no name; give a folder below it"),
        ("--resume", r"--resume: .*new\.training\.safetensors does not exist, so there is no training to resume"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_line(refused, words, line):
    error = refused("--out", "new", *words.split())
    assert re.match(f"error: (python -m m2ray.train_receiver: )?{line}", error), error


def test_a_base_is_not_replaced(refused, tiny_folder):
    error = refused("--out", tiny_folder, "--base", tiny_folder)
    assert error.endswith("the folder of --base, which it would replace; choose another one")


def test_a_level_without_held_out_messages_is_refused_before_the_training(refused, monkeypatch):
    def draw(level, seed, part):
        if part == "search":
            raise UserError("no message")

    monkeypatch.setattr(train_receiver, "draw_episode", draw)
    assert refused("--out", "new") == "error: --level: no message"


def test_a_training_that_diverges_ends_in_one_line_and_keeps_the_last_saved_state(refused, tmp_path, monkeypatch):
    loss = receiver_training.batch_loss
    steps = []

    def diverge(*inputs):
        steps.append(1)
        return loss(*inputs) * (float("inf") if len(steps) == 4 else 1)

    with monkeypatch.context() as patched:
        patched.setattr(receiver_training, "batch_loss", diverge)
        with pytest.raises(UserError, match=r"training step 3: loss inf and gradient norm nan; lower --lr"):
            train_receiver.main(["--out", "new", *SMALL])
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "new.training.safetensors").is_file()

    line = refused("--out", "new", *SMALL, "--lr", "0.1", "--resume")
    assert line.endswith("made with --lr 0.0015, not 0.1; use that, or remove the file")
    assert train_receiver.main(["--out", "new", *SMALL, "--resume"]) == DONE
    assert len(load_receiver(str(tmp_path / "new")).card["commands"]) == 2
    assert not (tmp_path / "new.training.safetensors").exists()
