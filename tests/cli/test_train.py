"""`python -m m2ray.train`, then `evaluate`, then `gate`, and the errors of bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml

from m2ray.cli import evaluate, train
from m2ray.cli.runner import BAD_INPUT, DONE, NOT_PASSED, run_command
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.confirm_ledger import ledger_folder
from m2ray.evaluation.rows import read_rows
from m2ray.tasks.answers import write_answer
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml

SMALL = {
    "splits": {"train": "100:400", "search": "1000:1012", "select": "4000:4004", "confirm": "2000:2012"},
    "codec": {"encoder": "segments", "k": 3, "width": 32, "layers": 1},
    "training": {"epochs": 2, "epoch_samples": 32, "batch_size": 16},
    "evaluation": {"max_new_tokens": 4, "constant_samples": 64, "scale_gates": [0.0, 1.0], "text_bytes": [16]},
}
NO_CONDITIONS = {"conditions": [], "confirm_conditions": [], "text_bytes": [], "scale_gates": []}


def write_yaml(folder: Path, tree: dict, **changes) -> Path:
    """Write a configuration file; `codec__k=0` changes a key."""
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def run_module(module: str, *words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", f"m2ray.{module}", *map(str, words)]
    env = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=False)


def go(command, *words: object) -> None:
    assert command.main([str(word) for word in words]) == DONE


def assert_says(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line


def cut(file: Path, count: int) -> None:
    file.write_bytes(file.read_bytes()[:-count])


def change(checkpoint: Path, drop: str = "", **changes: object) -> None:
    """Change keys of a checkpoint's record: `codec__k=5`."""
    file = checkpoint / "config.json"
    record = json.loads(file.read_text())
    record.pop(drop, None)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (record[section] if section else record)[name] = value
    file.write_text(json.dumps(record))


def tree_of(folder: Path) -> dict[str, bytes]:
    """Return a folder's files, but for kept checks of receivers: they hold whatever a command is told."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.parent.name != "receiver-checks")
    return {str(file): file.read_bytes() for file in files}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Run a command in this process as `python -m` does, on input that it must refuse; return its error line."""

    def check(command, *words: object) -> str:
        before = tree_of(tmp_path)
        monkeypatch.setattr(sys, "argv", ["m2ray", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            run_command(command.main)
        out, err = capfd.readouterr()
        assert left.value.code == BAD_INPUT
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert "Traceback" not in out + err
        assert tree_of(tmp_path) == before, "something was written"
        return line

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return check


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory) -> Path:
    """A training of two epochs on the tiny receiver."""
    folder = tmp_path_factory.mktemp("trained")
    assert (
        train.main([str(write_yaml(folder, SMALL, receiver=str(tiny_folder))), "--out", str(folder / "run")])
        == DONE
    )
    return folder / "run" / "seed-0"


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "seed-0")) / "epoch-02"


def test_train_then_evaluate_then_gate(tmp_path):
    config = write_yaml(tmp_path, SMALL, receiver="mini", evaluation__max_new_tokens=12).rename(
        tmp_path / "mine.yaml"
    )
    first = run_module("train", config, "--out", "run", "--seed", 3, cwd=tmp_path)
    assert first.returncode == DONE, first.stderr
    assert [line.split()[:2] for line in first.stdout.splitlines()[:2]] == [["epoch", "1/2"], ["epoch", "2/2"]]
    checkpoint = tmp_path / "run" / "seed-3" / "epoch-02"
    assert f"next: python -m m2ray.evaluate {checkpoint} --split search" in first.stdout

    second = run_module("evaluate", checkpoint, "--seeds", "5000:5030", "--out", "rows.parquet", cwd=tmp_path)
    assert second.returncode == DONE, second.stderr
    assert "next: python -m m2ray.gate rows.parquet" in second.stdout
    rows = read_rows(tmp_path / "rows.parquet")
    wanted = set(load_yaml(TrialConfig, config).conditions_on("confirm"))
    assert set(rows.condition) == wanted > {"near", "init", "facts-3", "tokens-3"}
    assert all(sorted(part.episode) == list(range(5000, 5030)) for _, part in rows.groupby("condition"))
    assert set(rows.config) == {"mine", ""}
    assert set(rows.split) == {"5000:5030"}
    successes = rows.groupby("condition").success.sum()
    assert successes["P1"] == successes["identity"] > successes["P0"]
    for label, name in (("Normal", "normal"), ("P0 baseline", "P0"), ("P1 full text", "P1")):
        assert re.search(rf"{label} +\| {100 * successes[name] / 30:.1f}%", second.stdout)

    third = run_module("gate", "rows.parquet", cwd=tmp_path)
    assert third.returncode == NOT_PASSED, third.stderr
    assert "FAIL" in third.stdout
    assert "Traceback" not in first.stderr + second.stderr + third.stderr


@pytest.mark.slow
def test_a_training_resumes_where_it_was_cut(trained, tmp_path, tiny_folder):
    """The end is the same, bit for bit, as without the cut."""
    config = write_yaml(tmp_path, SMALL, receiver=str(tiny_folder))
    script = (
        "import os, sys; from m2ray.cli import train; from m2ray.training import trainer\n"
        "save = trainer.save_tensors\n"
        "def save_and_die(*args): save(*args); os._exit(9)\n"
        "trainer.save_tensors = save_and_die; train.main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", script, str(config), "--out", str(tmp_path / "run")]
    assert subprocess.run(words, capture_output=True, timeout=500, check=False).returncode == 9
    assert not (tmp_path / "run" / "seed-0" / "epoch-02").exists()
    go(train, config, "--out", tmp_path / "run", "--resume")
    records = [
        json.loads((at / "epoch-02" / "config.json").read_text()) for at in (trained, tmp_path / "run/seed-0")
    ]
    assert records[0]["digest"] == records[1]["digest"]


def test_evaluation_by_split_by_seeds_and_where_the_receiver_moved(checkpoint, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    go(evaluate, checkpoint, "--conditions", "P0,normal,P0", "--out", tmp_path / "a.parquet")
    rows = read_rows(tmp_path / "a.parquet")
    assert sorted(set(zip(rows.condition, rows.split, strict=True))) == [("P0", "search"), ("normal", "search")]
    assert sorted(rows[rows.condition == "P0"].episode) == list(range(1000, 1012))

    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    change(checkpoint, trial__receiver=str(tmp_path / "gone"))
    go(evaluate, checkpoint, "--conditions", "P0,normal", "--receiver", moved, "--out", tmp_path / "b.parquet")
    again = read_rows(tmp_path / "b.parquet")
    assert list(again.answer) == list(rows.answer)
    np.testing.assert_array_equal(again.nll, rows.nll)


def test_evaluation_on_another_receiver(checkpoint, tmp_path, other_folder, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [checkpoint, "--episodes", "9000:9020", "--conditions", "normal,init,P0,P1"]
    there = [*words, "--receiver", other_folder, "--other-receiver"]
    capsys.readouterr()
    go(evaluate, *there, "--out", tmp_path / "there.parquet")
    printed = capsys.readouterr().out
    assert re.search(
        r"another receiver: the codec was trained with \S*tiny\S* \(\w{16}\); \S*other\S* answered", printed
    )
    rows = read_rows(tmp_path / "there.parquet")
    record = json.loads((checkpoint / "config.json").read_text())
    own = f"{record['receiver']} ({record['receiver_digest']})"
    assert record["receiver_digest"] not in set(rows.receiver)
    of_codec = rows[rows.checkpoint != ""]
    assert set(of_codec.condition) == {"normal", "init"}
    assert set(of_codec.config) == {f"{record['config']}-of-{Path(record['receiver']).name}"}
    assert {json.loads(each)["trained_with"] for each in of_codec.params} == {own}

    # A look on one receiver is none on the other, whichever comes first.
    go(evaluate, *words)
    with pytest.raises(UserError, match="looked at before"):
        evaluate.main([str(word) for word in there])


class TestTrainRefuses:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"codec__kk": 4}, "codec.kk: unknown key; did you mean `codec.k`"),
            ({"codec__k": 0}, "codec.k: 0 is below 1"),
            ({"codec__k": "8"}, "codec.k: '8' is not a whole number"),
            ({"codec__k": 1100}, "codec.k: 1100 slots exceed the receiver's context; use a smaller k"),
            ({"codec__k": 1000}, "tokens with the prefix exceed its context of 1024; use a smaller k"),
            ({"codec__encoder": "gru"}, "codec.encoder: 'gru' does not exist; use 'last_token', 'resampler'"),
            ({"evaluation__conditions": ["normal", "gru"]}, "condition 'gru' does not exist; use some of normal"),
            ({"losses": {"ce": {}, "help": {"margin": -1.0}}}, "losses.help.margin: -1.0 is below 0"),
            ({"losses": {}}, "losses: no objective has a weight above 0; add one"),
            ({"splits__search": "300:500"}, "splits: train 100:400 overlaps search 300:500; keep them apart"),
            ({"splits__search": "12"}, "splits.search: '12' is not a range of seeds; write it as"),
            ({"training__lr": float("nan")}, "training.lr: nan is not finite"),
            ({"training__lr": 1e30}, "loss .* at step [0-9]; lower lr"),
            ({"training__epoch_samples": 8}, "training.epoch_samples: .*; raise it"),
            ({"task": {"file": "gone.jsonl"}}, "gone.jsonl: no such file; check the path"),
            ({"task": {"messages": "mini"}}, "task.messages: mini has no chat template; name an instruct model"),
            ({"receiver": "./gone"}, "receiver ./gone: no such folder; give mini, mini-arithmetic, a folder"),
            ({"receiver": "mini", "splits__select": "10000000:10000010"}, "splits.select: overlaps .*; move it"),
        ],
    )
    def test_a_bad_setting(self, refused, tmp_path, tiny_folder, changes, said):
        config = write_yaml(tmp_path, SMALL, **{"receiver": str(tiny_folder), **changes})
        line = refused(train, config, "--out", tmp_path / "run")
        assert line.startswith(f"error: {config}: ")
        assert_says(line, said)

    @pytest.mark.parametrize("kind", ["empty", "junk", "t5", "file"])
    def test_a_receiver_that_is_no_causal_lm(self, refused, tmp_path, tiny_folder, kind):
        folder = tmp_path / "receiver"
        if kind == "file":
            folder.write_text("weights")
        else:
            folder.mkdir()
        if kind == "junk":
            (folder / "config.json").write_bytes(b"\x00\xff{{")
        if kind == "t5":
            shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
            transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1).save_pretrained(folder)
        line = refused(train, write_yaml(tmp_path, SMALL, receiver=str(folder)), "--out", tmp_path / "run")
        faults = "(: not loadable as a causal LM|: no such folder|/config.json: not JSON)"
        assert_says(line, rf"config.yaml: (receiver )?{folder}{faults}")

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (None, "no such file; check the path"),
            ("folder", "a folder; give a YAML file in it"),
            (b"\x80\x81\xfe\x00\xff", "not valid YAML .*; fix the syntax"),
            (b"codec: {k: 4", "not valid YAML .*; fix the syntax"),
            (b"- codec", "expected a mapping"),
            (b"", "expected a mapping"),
            (b"codec: 3", "codec: expected a mapping"),
        ],
    )
    def test_a_file_that_is_no_configuration(self, refused, tmp_path, content, said):
        config = tmp_path / "config.yaml"
        if content == "folder":
            config.mkdir()
        elif content is not None:
            config.write_bytes(content)
        line = refused(train, config, "--out", tmp_path / "run")
        assert line.startswith(f"error: {config}: ")
        assert_says(line, said)

    def test_bad_words_on_the_command_line(self, refused, tmp_path, tiny_folder):
        config = write_yaml(tmp_path, SMALL, receiver=str(tiny_folder))
        (tmp_path / "taken").write_text("a file")
        assert_says(refused(train), "required: config; see `python -m m2ray.train --help`")
        assert_says(refused(train, config, "--sed", 1), "unrecognized arguments: --sed 1; see")
        assert_says(refused(train, config, "--seed", "x"), "argument --seed: invalid int value: 'x'")
        for seed in (-1, 2**64):
            assert_says(refused(train, config, f"--seed={seed}"), f"--seed {seed}: out of range; use 0 to")
        assert_says(refused(train, config, "--out", "taken"), "--out: .*/taken is a file; choose another folder")

    def test_a_folder_that_holds_a_training_already(self, refused, checkpoint, tmp_path, tiny_folder):
        config = write_yaml(tmp_path, SMALL, receiver=str(tiny_folder), training__lr=5e-4)
        line = refused(train, config, "--out", tmp_path)
        assert_says(line, r"seed-0: already there; continue with --resume, or choose another --out")
        line = refused(train, config, "--out", tmp_path, "--resume")
        assert_says(line, r"training.safetensors: made with other settings; choose another name or remove")

    def test_there_is_nothing_to_resume(self, refused, tmp_path, tiny_folder):
        config = write_yaml(tmp_path, SMALL, receiver=str(tiny_folder))
        line = refused(train, config, "--out", tmp_path / "run", "--resume")
        assert_says(line, "--resume: .*/run/seed-0 does not exist; check --out and --seed, or leave --resume out")


class TestEvaluateRefuses:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--seeds", "5"], "--episodes: '5' is not a range of seeds; write it as 1000:1100"),
            (["--seeds", "9:3"], "--episodes: '9:3' is not a range of seeds"),
            (["--seeds=-4:9"], "--episodes: '-4:9' is not a range of seeds"),
            (["--seeds", "5:6"], "condition shuffle: too few different messages among the episodes; use more"),
            (
                ["--seeds", "5:9", "--split", "search"],
                "argument --split: not allowed with argument --episodes/--seeds",
            ),
            (["--split", "train"], "argument --split: invalid choice: 'train'"),
            (["--conditions", "normal,decode"], "--conditions: 'decode' does not exist; use some of normal, null"),
            (["--out", "rows.csv"], "--out rows.csv: rows are Parquet; name it something.parquet"),
            (["--out", "here.parquet"], "--out here.parquet: is a folder; name a file"),
            (["--out", "taken/rows.parquet"], "--out taken/rows.parquet: .*taken is a file; choose another"),
            (["--receiver", "./gone"], "receiver ./gone: no such folder; give mini, mini-arithmetic, a folder"),
            (["--receiver", "mini"], r"trained with receiver .*, not with mini \(.*; use the receiver it was"),
            (
                ["--receiver", "mini", "--other-receiver"],
                "does not fit mini, of width 128; give a receiver of the",
            ),
            (["--receiver-dtype", "int8"], "argument --receiver-dtype: invalid choice: 'int8'"),
            (
                ["--other-receiver"],
                "--other-receiver: needs a checkpoint and a receiver; name that with --receiver",
            ),
        ],
    )
    def test_bad_words_on_the_command_line(self, refused, checkpoint, tmp_path, words, said):
        (tmp_path / "here.parquet").mkdir()
        (tmp_path / "taken").write_text("a file")
        assert_says(refused(evaluate, checkpoint, *words), said)

    @pytest.mark.parametrize(
        ("fault", "said"),
        [
            (shutil.rmtree, "epoch-02: no config.json; give a checkpoint folder"),
            (lambda at: (shutil.rmtree(at), at.write_text("")), "epoch-02: no config.json; give a checkpoint"),
            (lambda at: (at / "config.json").write_bytes(b"\xff{"), "config.json: not JSON .*; remake the"),
            (lambda at: (at / "config.json").write_text("[1]"), "config.json: not the record of a codec; give a"),
            (lambda at: (at / "codec.safetensors").unlink(), "codec.safetensors: no such file"),
            (lambda at: cut(at / "codec.safetensors", 50), "codec.safetensors: truncated .*; remake it"),
        ],
    )
    def test_a_broken_checkpoint(self, refused, checkpoint, fault, said):
        fault(checkpoint)
        assert_says(refused(evaluate, checkpoint, "--seeds", "5:20", "--out", "rows.parquet"), said)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"codec__k": 5}, "digest: weights or settings were changed since training; remake it"),
            ({"codec__width": 64}, "codec.safetensors: does not fit config.json .*; restore the k"),
            ({"receiver_digest": "0" * 16}, r"receiver_digest: trained with receiver .* \(0000"),
            ({"trial__receiver": "./gone"}, "epoch-02: receiver ./gone: no such .* --receiver says"),
            ({"trial__codex": {}}, "config.json: trial: codex: unknown key; did you mean `codec`"),
            ({"trial": None}, "config.json: trial: expected a mapping"),
            ({"drop": "trial"}, "config.json: trial: missing; give a checkpoint that m2ray.train wrote"),
            ({"drop": "seed"}, "config.json: seed: missing or not int; give a checkpoint"),
            ({"config": 3}, "config.json: config: missing or not str; give a checkpoint"),
            ({"trial__evaluation": NO_CONDITIONS}, "evaluation.conditions: empty; name at least one"),
        ],
    )
    def test_a_changed_record(self, refused, checkpoint, changes, said):
        change(checkpoint, **changes)
        assert_says(refused(evaluate, checkpoint, "--seeds", "5:20", "--out", "rows.parquet"), said)

    def test_a_second_look_at_confirm(self, refused, checkpoint, tmp_path):
        """Neither by name, nor by its seeds, nor through another epoch of the same training."""
        first = checkpoint.with_name("epoch-01")
        line = refused(evaluate, checkpoint, "--split", "confirm", "--receiver", "./gone")
        assert_says(line, "no such folder")  # a look that failed does not count
        look = ["--split", "confirm", "--conditions", "P0,normal"]
        go(evaluate, checkpoint, *look)
        said = "seed-0: .*confirm.* has been looked at; use fresh --episodes A:B, or look again with --unlock"
        for at in (checkpoint, first):
            assert_says(refused(evaluate, at, *look), said)
            assert_says(refused(evaluate, at, "--seeds", "1990:2001"), said)
        go(evaluate, checkpoint, "--seeds", "2012:2014", "--conditions", "P0")
        go(evaluate, first, *look, "--unlock")
        looks = (checkpoint.parent / "confirm-looks.log").read_text().splitlines()
        assert [line.split("evaluate ")[1] for line in looks] == ["epoch-02 on confirm", "epoch-01 on confirm"]

    @pytest.mark.parametrize(
        "words", [["--split", "confirm"], ["--episodes", "2000:2012"], ["--episodes", "7000:7012"]]
    )
    def test_a_second_look_from_a_copied_folder(self, refused, trained, checkpoint, tmp_path, words, capfd):
        """The ledger in the user's cache knows the messages, whatever the folder that the checkpoint lies in."""
        look = [*words, "--conditions", "P0,normal"]
        go(evaluate, checkpoint, *look)
        assert f"{words[1]}: first look at these messages" in capfd.readouterr().out
        copied = Path(shutil.copytree(trained, tmp_path / "elsewhere" / "seed-0")) / "epoch-01"
        line = refused(evaluate, copied, *look)
        assert_says(
            line, f"{' '.join(words)}: 1[0-2] of 1[0-2] messages were looked at before, by 20.* m2ray.evaluate"
        )
        assert_says(line, r"; use fresh --episodes A:B, or look again with --unlock, which is recorded$")
        go(evaluate, copied, "--seeds", "9000:9012", "--conditions", "P0,normal")
        capfd.readouterr()
        go(evaluate, copied, *look, "--unlock")
        assert f"{words[1]}: look 2 at these messages; earlier: 20" in capfd.readouterr().out

    def test_a_published_codec_is_not_refused_but_its_looks_count(self, refused, checkpoint, tmp_path):
        published = Path(shutil.copytree(checkpoint, tmp_path / "best"))
        change(published, published={"verdict": "PASS"})
        look = ["--seeds", "7000:7012", "--conditions", "P0"]
        for _ in range(2):
            go(evaluate, published, *look)
        assert not (published / "confirm-looks.log").exists()
        line = refused(evaluate, checkpoint, *look)
        assert_says(
            line, f"looked at before, by .*evaluate {published} --seeds .*; .*evaluate {published} --seeds"
        )

    def test_a_failed_look_and_looks_at_search_are_not_recorded(self, refused, checkpoint):
        for words in (["--seeds", "5:6"], ["--seeds", "5:20", "--receiver", "./gone"]):
            refused(evaluate, checkpoint, *words)
        for _ in range(2):
            go(evaluate, checkpoint, "--split", "search", "--conditions", "P0")
        assert not ledger_folder().exists()

    def test_lines_of_a_file_that_the_receiver_was_trained_on(
        self, refused, tiny, tiny_folder, trained, tmp_path, monkeypatch
    ):
        drawn = [*episodes(level("easy"), range(20), "train"), *episodes(level("easy"), range(20), "confirm")]
        fields = ("receiver_context", "sender_message", "receiver_output")
        texts = [(e.context, e.message, write_answer(e.level, e.solution, "json")) for e in drawn]
        (tmp_path / "e.jsonl").write_text(
            "\n".join(json.dumps(dict(zip(fields, each, strict=True))) for each in texts)
        )
        checkpoint = Path(shutil.copytree(trained, tmp_path / "seed-0")) / "epoch-02"
        change(checkpoint, trial__task={"file": str(tmp_path / "e.jsonl")})
        splits = {"train": "0:10", "search": "20:25", "select": "25:30", "confirm": "30:35"}
        change(checkpoint, trial__splits=splits)
        look = ["--seeds", "12:22", "--conditions", "P0"]
        assert_says(
            refused(evaluate, checkpoint, "--seeds", "5:15"), "line 6: its message is in --episodes and, from"
        )
        monkeypatch.setattr(tiny, "card", {"train_seeds": "0:100", "level": "easy"})
        line = refused(evaluate, checkpoint, *look)
        assert_says(line, "e.jsonl: line 13: its message and those of 7 others are in the part of level easy that")
        go(evaluate, checkpoint, "--seeds", "20:30", "--conditions", "P0")


def test_from_the_shell_bad_input_is_one_line_and_exit_code_2(tmp_path):
    config = write_yaml(tmp_path, SMALL, receiver="no-such-org/no-such-model")
    for module, words in (("train", [config]), ("evaluate", [tmp_path])):
        before = tree_of(tmp_path)
        done = run_module(module, *words, cwd=tmp_path)
        assert done.returncode == BAD_INPUT
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(f"error: {words[0]}: ")
        assert tree_of(tmp_path) == before
