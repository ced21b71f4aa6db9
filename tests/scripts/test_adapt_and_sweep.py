"""scripts/adapt_and_sweep.py: teach a receiver the text task, freeze it, and judge codecs on it."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from sweeps import SPACE

from m2ray.cli.receivers import train_receiver
from m2ray.cli.runner import DONE, NOT_PASSED
from m2ray.config.plan import load_plan
from m2ray.engine.evaluations import Evaluations
from m2ray.evaluation.rows import KEY, RowStore
from m2ray.judging.verdict import INVALID
from m2ray.receiver import layout as layout_module
from m2ray.receiver.loading import load_receiver, resolve_receiver
from m2ray.receiver.scoring import answer_nll
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.training import lora, receiver_training
from m2ray.util.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
adapt = importlib.import_module("adapt_and_sweep")

TRIAL = {
    **SPACE["trial"],
    "task": {"level": "easy"},
    "splits": {"train": "100000:101000", "search": "1000:1008", "select": "4000:4008", "confirm": "2000:2012"},
    "training": {"epochs": 1, "epoch_samples": 16, "batch_size": 8, "warmup": 0},
    "evaluation": {**SPACE["trial"]["evaluation"], "max_new_tokens": 4, "constant_samples": 64, "scale_gates": []},
}
SMALL = {"name": "small", "trial": TRIAL, "points": {"k8": {}}, "judge": {"diagnose": 0}}


def write_space(folder: Path, **splits: str) -> Path:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "trial": {**TRIAL, "splits": {**TRIAL["splits"], **splits}}}))
    return file


@pytest.fixture
def go(tiny_folder, tmp_path, monkeypatch):
    """Run the script on the tiny receiver, with few steps and few held-out episodes."""
    monkeypatch.setattr(adapt, "HELD_OUT", 4)
    space = write_space(tmp_path)

    def run(*words: object, out: str = "run", samples: int = 24) -> int:
        argv = ["--base", tiny_folder, "--out", tmp_path / out, "--space", space, "--rank", 2]
        return adapt.main([str(w) for w in [*argv, "--samples", samples, "--batch", 4, "--lr", 1e-2, *words]])

    return run


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_receiver_that_does_not_reach_g0_ends_it_with_a_line_and_exit_code_1(go, tmp_path, capsys):
    assert go() == NOT_PASSED
    out, err = capsys.readouterr()
    assert "G0 not reached: P1 0.000 (at least 0.85), P1 - P0 0.000 (at least 0.3); train longer with" in err
    assert "P1 0/4 = 0.0 % [0.0, 49.0]" in out
    result = result_of(tmp_path / "run")
    assert result["verdict"] == "G0 not reached"
    assert not (tmp_path / "run" / "sweep.yaml").exists()
    card = json.loads((tmp_path / "run" / "checkpoints" / "receiver" / "m2ray.json").read_text())
    assert (card["train_seeds"], card["level"], card["samples"]) == ("10000000:10000024", "easy", 24)

    # The same command again does nothing; with more samples it continues from the last step.
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert go() == NOT_PASSED
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*") if file.is_file()} == files
    assert "training" not in capsys.readouterr().out
    assert go(samples=32) == NOT_PASSED
    assert "step 8/8" in capsys.readouterr().out
    assert result_of(tmp_path / "run")["adapt"]["samples"] == 32
    with pytest.raises(UserError, match=r"result\.json: samples: made with 32, not 24; use that value"):
        go(samples=24)
    with pytest.raises(UserError, match=r"result\.json: lr: made with 0\.01, not 0\.1"):
        go("--lr", 0.1, samples=32)


def test_bad_options_are_refused_in_one_line(go, tmp_path, tiny_folder):
    for words, said in (
        (["--lr", "0"], "--lr: 0.0 is not above 0; use a larger value"),
        (["--rank", "-1"], "--rank: -1 is not above 0"),
        (["--samples", "3"], "--samples: 3 do not fill a batch of 4"),
        (["--rank", "100000"], "--rank 100000: its adapter is over 16,000,000 bytes; use [0-9]+ at most"),
        (["--base", "./gone"], "receiver ./gone: no such folder"),
    ):
        with pytest.raises(UserError, match=said):
            go(*words)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"result\.json: not a result of this script"):
        go()


def test_the_receiver_is_base_plus_adapter_to_the_bit_however_often_it_was_stopped(
    go, tmp_path, tiny_folder, capsys
):
    assert go() == NOT_PASSED
    codes = []
    while not codes or codes[-1] == adapt.OUT_OF_TIME:
        codes.append(go("--minutes", 1e-9, out="stopped"))
        verdict = result_of(tmp_path / "stopped")["verdict"]
        assert verdict == ("unfinished" if codes[-1] == adapt.OUT_OF_TIME else "G0 not reached")
    assert codes == [adapt.OUT_OF_TIME] * 6 + [NOT_PASSED]
    assert (
        "stopped after training step 3 of 6; resume with the same command: python scripts/"
        in capsys.readouterr().err
    )

    whole, parts = (result_of(tmp_path / name) for name in ("run", "stopped"))
    assert whole["adapt"]["digest"] == parts["adapt"]["digest"]
    assert parts["adapt"]["commands"] == [parts["command"]]
    assert "--minutes" not in parts["command"]

    folder = tmp_path / "run" / "adapter"
    adapter, base = load_file(folder / "adapter_model.safetensors"), load_receiver(str(tiny_folder))
    made = load_receiver(str(tmp_path / "run" / "checkpoints" / "receiver"))
    assert {tensor.dtype for tensor in adapter.values()} == {torch.bfloat16}
    assert (folder / "adapter_model.safetensors").stat().st_size == whole["adapter"]["bytes"] < 16_000_000
    changed = 0
    for name, weight in base.model.state_dict().items():
        a, b = (
            adapter.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB"
        )
        expected = weight if a is None else (weight.double() + 2.0 * b.double() @ a.double()).to(weight.dtype)
        assert torch.equal(made.model.state_dict()[name], expected), name
        changed += a is not None and not torch.equal(expected, weight)
    assert changed == 2 * 7


def test_what_is_trained_is_what_is_merged(tiny_folder, tmp_path, monkeypatch):
    """The prompts' common prefix is trained as well, not encoded once with the base's weights."""
    words = [
        "--base",
        tiny_folder,
        "--lora",
        2,
        "--samples",
        24,
        "--batch",
        4,
        "--lr",
        1.0,
        "--out",
        tmp_path / "r",
    ]
    args = train_receiver.parser().parse_args([*map(str, words), "--held-out", "1", "--level", "easy"])
    args.command = "none"
    batch = [draw_episode(level("easy"), seed, "train") for seed in range(4)]
    receiver = lora.load_with_lora(str(tiny_folder), 2, 0)
    before = receiver_training.batch_loss(receiver, batch, [False] * 4)
    receiver_training.train(receiver, level("easy"), args, 10_000_000, float("inf"))
    with torch.no_grad():
        trained = receiver_training.batch_loss(receiver, batch, [False] * 4)
        with monkeypatch.context() as nothing_shared:
            nothing_shared.setattr(layout_module, "MIN_CACHED_TOKENS", 10_000)
            assert torch.equal(receiver_training.batch_loss(receiver, batch, [False] * 4), trained)
    lora.save_adapter(receiver, str(tiny_folder), tmp_path / "adapter")
    made = lora.merge_adapter(str(tiny_folder), tmp_path / "adapter")
    layout, frame = made.layout(batch, [e.message for e in batch]), made.answer_frame(level("easy"))
    assert bool(layout.cached_B.all())
    logits = made.logits(layout, None, len(frame.ids_A)).float()
    merged = answer_nll(logits, frame, made.targets(batch)).mean()
    assert abs(trained - before) > 0.1
    assert merged.item() == pytest.approx(trained.item(), abs=0.02)  # the adapter is rounded to bfloat16
    shared = load_receiver(str(tiny_folder))
    assert not any("lora" in name for name, _ in shared.model.named_parameters())


def test_the_default_rank_is_the_largest_that_fits(tiny_folder, tmp_path):
    base = str(tiny_folder)
    rank = lora.largest_rank(base, 300_000)
    sizes = {}
    for one in (8, rank):
        lora.save_adapter(lora.load_with_lora(base, one, 0), base, tmp_path / str(one))
        sizes[one] = (tmp_path / str(one) / "adapter_model.safetensors").stat().st_size
    a_rank = (sizes[rank] - sizes[8]) / (rank - 8)
    assert sizes[rank] <= 300_000
    assert rank == int(50_000 // a_rank)
    with pytest.raises(UserError, match="an adapter of rank 1 is over 250,001 bytes; use a smaller base"):
        lora.largest_rank(base, 250_001)


def test_seeds_of_the_adaptation_overlap_no_split(go, tmp_path):
    """The shipped space does not at the default size and a hundred times it; a space that would is refused."""
    default = adapt.parser().get_default("samples")
    for samples in (default, 100 * default):
        settings = {"base": "mini", "level": "easy", "samples": samples, "batch": 64}
        adapt.check_seeds(load_plan(adapt.SPACE), settings)
    for split in ("train", "search", "select", "confirm"):
        for seeds, whose in (("10000020:10000050", "the receiver's training seeds"), ("2:3", "G0's seeds")):
            write_space(tmp_path, **{split: seeds})
            with pytest.raises(UserError, match=f"splits.{split}: overlaps {whose}"):
                go()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_from_base_to_verdict_in_several_calls(go, tmp_path, monkeypatch, capsys):
    """A tiny random model solves nothing, so G0 is waived here; the verdict is written at the end only."""
    monkeypatch.setattr(adapt, "MIN_P1", 0.0)
    monkeypatch.setattr(adapt, "MIN_GAIN", -1.0)
    out = tmp_path / "run"
    judge = adapt.Job.judge
    monkeypatch.setattr(adapt.Job, "judge", lambda self: adapt.OUT_OF_TIME)
    assert go() == adapt.OUT_OF_TIME
    assert (result_of(out)["verdict"], result_of(out)["next"]) == ("unfinished", "sweep")
    assert not (out / "checkpoints" / "receiver.training.safetensors").exists()

    # The time is up during the sweep.
    monkeypatch.setattr(adapt.Job, "judge", judge)
    finish = Evaluations.finish

    def stop_then_finish(self):
        monkeypatch.setattr(Evaluations, "finish", finish)
        jobs[0].stop_sweep()
        finish(self)

    jobs, init = [], adapt.Job.__init__
    monkeypatch.setattr(adapt.Job, "__init__", lambda self, *args: (init(self, *args), jobs.append(self))[0])
    monkeypatch.setattr(Evaluations, "finish", stop_then_finish)
    assert go() == adapt.OUT_OF_TIME
    assert (result_of(out)["verdict"], result_of(out)["next"]) == ("unfinished", "sweep")
    assert "--resume continues" in capsys.readouterr().err

    assert go() == NOT_PASSED
    result = result_of(out)
    assert (result["verdict"], result["codec"]["verdict"], result["codec"]["split"]) == (
        INVALID,
        INVALID,
        "confirm",
    )
    assert {"device", "packages", "command", "settings", "adapt", "g0", "sweep"} <= set(result)
    for name in (
        "rows.parquet",
        "leaderboard.csv",
        "best-k8/codec.safetensors",
        "adapter/adapter_model.safetensors",
    ):
        assert (out / name).is_file(), name
    assert not RowStore(out).read().duplicated(KEY).any()

    # No stage runs twice; a missing merged receiver is made again, bit for bit.
    monkeypatch.setattr(adapt.sweep, "main", None)
    monkeypatch.setattr(train_receiver, "make", None)
    shutil.rmtree(out / "checkpoints" / "receiver")
    assert go() == NOT_PASSED
    assert load_receiver(str(out / "checkpoints" / "receiver")).digest == result["adapt"]["digest"]
    assert result_of(out) == result


@pytest.mark.gpu
@pytest.mark.timeout(3600)
def test_smollm2_learns_the_text_task_and_its_codec_is_judged(tmp_path):
    """A short adaptation on a GPU writes all files, within the limits, whatever the verdict."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        resolve_receiver("smollm2-135m")
    except UserError as error:
        pytest.skip(str(error))
    out = tmp_path / "smollm2"
    code = adapt.main(["--base", "smollm2-135m", "--out", str(out), "--samples", "64000"])
    result = result_of(out)
    assert code in (DONE, NOT_PASSED)
    assert result["verdict"] in ("WHOLE", "PASS", "PART", "FAIL", "INVALID SETTING", "G0 not reached")
    assert result["adapter"]["bytes"] <= 16_000_000
    assert result["adapt"]["P1"]["successes"] > result["adapt"]["P0"]["successes"]
    assert (out / "best-k8" / "codec.safetensors").is_file() == result["g0"]["reached"]
