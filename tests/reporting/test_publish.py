"""Published codecs: self-contained folders to evaluate on any seeds, and to train again."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from m2ray.cli.evaluate import main as evaluate
from m2ray.cli.publish import main
from m2ray.codec.checkpoints import trial_of
from m2ray.codec.local_paths import without_folders
from m2ray.config.trial import TrialConfig
from m2ray.engine.jobs import EvaluationJob, run_evaluation
from m2ray.evaluation.rows import RowStore
from m2ray.receiver.loading import EMBEDDED, load_receiver
from m2ray.reporting.publish import publish
from m2ray.training.trainer import train
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import load_yaml, validate

CONFIG = "k8"


@pytest.fixture(scope="module")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished sweep of one configuration, judged on eight episodes."""
    root = tmp_path_factory.mktemp("finished") / "sweep"
    settings = {
        "splits": {"confirm": "2000:2008", "search": "1000:1004"},
        "codec": {"k": 8, "width": 32, "layers": 1},
        "training": {"epochs": 1, "epoch_samples": 64, "batch_size": 32},
    }
    trial = validate(TrialConfig, settings, "test")
    folder = root / "checkpoints" / CONFIG / "seed-0"
    checkpoint = train(trial, 0, load_receiver("mini"), folder, lambda metrics, at: None, {"config": CONFIG})
    RowStore(root).append(run_evaluation(EvaluationJob(trial, "confirm", ("normal", "P0"), checkpoint, root)))
    line = {"config": CONFIG, "seed": 0, "verdict": "PASS", "split": "confirm", "n": 8, "normal": 0.83}
    pd.DataFrame([line]).to_csv(root / "leaderboard.csv", index=False)
    (root / "sweep.yaml").write_text(yaml.safe_dump({"command": "python -m m2ray.sweep"}))
    return root


@pytest.fixture
def sweep(finished_sweep: Path, tmp_path: Path) -> Path:
    """Return a copy to write into."""
    shutil.copytree(finished_sweep, tmp_path / "sweep")
    return tmp_path / "sweep"


def test_a_published_codec_can_be_evaluated_on_any_seeds_even_the_judged_ones(sweep, capsys):
    assert main([str(sweep), CONFIG, "--as", "best-k8"]) == 0
    best = sweep / "best-k8"
    conditions = "normal,shuffle,P0"
    for seeds in ("2000:2008", "7000000:7000008"):
        assert evaluate([str(best), "--seeds", seeds, "--conditions", conditions]) == 0
        assert "Normal" in capsys.readouterr().out
    judged = sweep / "checkpoints" / CONFIG / "seed-0"
    with pytest.raises(UserError, match="looked at"):
        evaluate([str(judged / "epoch-01"), "--seeds", "2000:2008", "--conditions", conditions])


def test_its_folder_gives_the_verdict_and_how_to_train_it_again(sweep):
    best = publish(sweep, CONFIG, 0, "best-k8")
    assert load_yaml(TrialConfig, best / "trial.yaml") == trial_of(best)
    card = (best / "README.md").read_text()
    assert "PASS on confirm, n = 8: normal 83.0 %" in card
    assert "python -m m2ray.train" in card
    assert json.loads((best / "config.json").read_text())["published"]["verdict"].startswith("PASS")


def test_a_codec_of_several_seeds_has_the_verdict_of_its_configuration_first(sweep):
    line = {"config": CONFIG, "split": "confirm", "n": 8}
    lines = [
        {**line, "seeds": "0 1 2", "verdict": "FAIL", "normal": 0.5},
        {**line, "seed": 0, "seeds": "0", "verdict": "PASS", "normal": 0.83},
        {**line, "seed": 1, "seeds": "1", "verdict": "FAIL", "normal": 0.3},
    ]
    pd.DataFrame(lines).to_csv(sweep / "leaderboard.csv", index=False)
    best = publish(sweep, CONFIG, 0, "best")
    assert json.loads((best / "config.json").read_text())["published"]["verdict"] == (
        "FAIL on confirm, n = 8: normal 50.0 % over training seeds 0, 1, 2; "
        "of this seed: PASS on confirm, n = 8: normal 83.0 %"
    )


def test_no_file_of_it_has_local_paths(sweep):
    command = (
        f"python -m m2ray.sweep '{sweep}/my space.yaml' --receiver /data/models/big --set a.b={sweep}/x.jsonl "
        f"--set 'trial.task={{file: {sweep}/x.jsonl, scorer: exact}}' --results=/data/results"
    )
    (sweep / "sweep.yaml").write_text(yaml.safe_dump({"command": command}))
    folder = sweep / "checkpoints" / CONFIG / "seed-0" / "epoch-01"
    record = json.loads((folder / "config.json").read_text())
    trial = record["trial"]
    trial["receiver"] = trial["task"]["messages"] = "/data/models/big"
    trial["task"]["file"] = f"{sweep}/mine.jsonl"
    trial["training"]["start"] = "~/codecs/first"
    record |= {"receiver": "/data/models/big", "task_file": "d", "trial": trial}
    record["params"] = {"training.start": "~/codecs/first", "codec.k": 8}
    (folder / "config.json").write_text(json.dumps(record))
    best = publish(sweep, CONFIG, 0, "best")
    for file in best.iterdir():
        content = file.read_bytes()
        for path in ("/data", str(sweep), str(sweep.parent), "~/codecs"):
            assert path.encode() not in content, file
    made = (
        "python -m m2ray.sweep 'my space.yaml' --receiver big --set a.b=x.jsonl "
        "--set 'trial.task={file: x.jsonl, scorer: exact}' --results=results"
    )
    card = (best / "README.md").read_text()
    assert f"`{made}`" in card
    assert 'from_pretrained("results/sweep/best"' in card
    assert 'load_receiver("big")' in card
    now = json.loads((best / "config.json").read_text())
    assert now["published"]["made"] == made
    assert {key: now[key] for key in ("receiver_digest", "digest", "task_file", "codec")} == {
        key: record[key] for key in ("receiver_digest", "digest", "task_file", "codec")
    }
    for own in (now["trial"], yaml.safe_load((best / "trial.yaml").read_text())):
        assert (own["receiver"], own["task"]["file"], own["training"]["start"]) == ("big", "mine.jsonl", "first")


@pytest.mark.parametrize(
    "word",
    ["mini", "Qwen/Qwen2.5-3B", "results/x", "a=b", "https://hub/x", "--set", "{a: b/c}", "1/2", "[1, 2]"],
)
def test_words_that_are_no_local_paths_stay(word):
    assert without_folders(word) == word


def test_a_published_receiver_that_is_elsewhere_is_named_on_the_command_line(sweep, tmp_path, capsys):
    folder = sweep / "checkpoints" / CONFIG / "seed-0" / "epoch-01"
    record = json.loads((folder / "config.json").read_text())
    shutil.copytree(EMBEDDED / "mini", tmp_path / "moved")
    record["receiver"] = record["trial"]["receiver"] = str(tmp_path / "moved")
    (folder / "config.json").write_text(json.dumps(record))
    best = str(publish(sweep, CONFIG, 0, "best"))
    options = ["--seeds", "7000000:7000008", "--conditions", "normal,P0"]
    with pytest.raises(UserError, match=r"receiver moved: no such folder; .*--receiver says where it is now"):
        evaluate([best, *options])
    assert evaluate([best, *options, "--receiver", str(tmp_path / "moved")]) == 0
    assert "Normal" in capsys.readouterr().out


def test_a_codec_that_was_not_confirmed_says_so_in_name_and_card(sweep):
    line = {"config": CONFIG, "seed": 0, "verdict": "not confirmed", "split": "select", "n": 8, "normal": 0.83}
    pd.DataFrame([line]).to_csv(sweep / "leaderboard.csv", index=False)
    best = publish(sweep, CONFIG, 0, "best")
    assert best.name == "best-not-confirmed"
    card = (best / "README.md").read_text()
    assert "# best-not-confirmed" in card
    assert (
        "Verdict: none: NOT CONFIRMED, evaluated on select only, which it may have been chosen by, n = 8:" in card
    )
    with pytest.raises(UserError, match="best-not-confirmed is already there"):
        publish(sweep, CONFIG, 0, "best")


def test_a_codec_that_a_later_look_at_confirm_judged_is_confirmed(sweep):
    line = {"config": CONFIG, "seed": 0, "verdict": "PASS", "split": "confirm-2", "n": 8, "normal": 0.83}
    pd.DataFrame([line]).to_csv(sweep / "leaderboard.csv", index=False)
    best = publish(sweep, CONFIG, 0, "best")
    assert best.name == "best"
    assert "Verdict: PASS on confirm-2, n = 8: normal 83.0 %" in (best / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "seed", "name", "error"),
    [
        ("k99", 0, "best-k99", "no checkpoint of k99; use one of the configurations: k8"),
        (CONFIG, 1, "best-k8", "no checkpoint of k8, seed 1; use one of its seeds: 0"),
        (CONFIG, 0, "../out", "not a plain folder name; use letters, digits, - and _"),
        (CONFIG, 0, "report.html", "not a plain folder name"),
        (CONFIG, 0, "figures", "--as: 'figures' is a folder that sweeps use; choose another name, such as best"),
        (CONFIG, 0, "rows", "a folder that sweeps use"),
    ],
)
def test_what_cannot_be_published_is_refused(sweep, config, seed, name, error):
    before = sorted(sweep.rglob("*"))
    with pytest.raises(UserError, match=re.escape(error)):
        publish(sweep, config, seed, name)
    assert sorted(sweep.rglob("*")) == before


def test_a_published_codec_is_not_replaced_unless_it_is_asked_for(sweep):
    best = publish(sweep, CONFIG, 0, "best")
    (best / "README.md").write_text("notes")
    with pytest.raises(UserError, match="best is already there; choose another name, or remove it first"):
        publish(sweep, CONFIG, 0, "best")
    assert (best / "README.md").read_text() == "notes"
    publish(sweep, CONFIG, 0, "best", replace=True)
    assert "PASS on confirm" in (best / "README.md").read_text()


def test_a_training_without_a_line_on_the_leaderboard_is_refused(sweep):
    leaderboard = sweep / "leaderboard.csv"
    pd.read_csv(leaderboard).assign(seed=1).to_csv(leaderboard, index=False)
    with pytest.raises(UserError, match="no line of k8, seed 0; finish the sweep with --resume first"):
        publish(sweep, CONFIG, 0, "best")


RECIPE = Path(__file__).parents[2] / "results" / "recipe-mini"


@pytest.mark.parametrize(("name", "least"), [("best-k4", 0.6), ("best-k8", 0.65), ("best-k16", 0.85)])
def test_the_codecs_in_the_repository_carry_their_messages(name, least):
    """Test on 100 unused messages: far fewer than were judged, so `least` is well below the published rates."""
    conditions = ("normal", "shuffle", "P0")
    trial = trial_of(RECIPE / name)
    rows = run_evaluation(EvaluationJob(trial, "8000000:8000100", conditions, RECIPE / name, RECIPE))
    solved = rows.groupby("condition").success.mean()
    assert solved["normal"] >= least
    assert solved["shuffle"] < solved["P0"] < solved["normal"] - 0.2
