"""Published codecs: complete folders that anybody plays, on any seeds, and can train again."""

import json
import shutil
from pathlib import Path

import pytest

from m2ray import evaluate, publish
from m2ray.command import UserError
from m2ray.config import TrialConfig, load
from m2ray.jobs import trial_of

MADE = Path(__file__).parent.parent / "results" / "quickstart-2026-11-24"
CONFIG = "segments-k16-fff3b16e"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A finished sweep."""
    shutil.copytree(MADE, tmp_path / "sweep")
    return tmp_path / "sweep"


def test_a_published_codec_plays_on_any_seeds_even_the_judged_ones(sweep, capsys):
    assert publish.main([str(sweep), CONFIG, "--as", "best-k16"]) == 0
    best = sweep / "best-k16"
    conditions = "normal,shuffle,P0"
    for seeds in ("2000:2008", "7000000:7000008"):
        assert evaluate.main([str(best), "--seeds", seeds, "--conditions", conditions]) == 0
        assert "Normal" in capsys.readouterr().out
    judged = sweep / "checkpoints" / CONFIG / "seed-0"
    with pytest.raises(UserError, match="looked at"):
        evaluate.main([str(judged / "epoch-02"), "--seeds", "2000:2008", "--conditions", conditions])


def test_its_folder_says_what_was_judged_and_how_to_train_it_again(sweep):
    best = publish.publish(sweep, CONFIG, 0, "best-k16")
    assert load(TrialConfig, best / "trial.yaml") == trial_of(best)
    told = (best / "README.md").read_text()
    assert "PASS on confirm, n = 500: normal 83.0 %" in told
    assert "python -m m2ray.train" in told
    assert json.loads((best / "config.json").read_text())["published"]["verdict"].startswith("PASS")


@pytest.mark.parametrize(
    ("config", "name", "told"),
    [("k99", "best-k99", "no checkpoint of k99"), (CONFIG, "../out", "no plain folder name")],
)
def test_what_cannot_be_published_is_refused(sweep, config, name, told):
    with pytest.raises(UserError, match=told):
        publish.publish(sweep, config, 0, name)
