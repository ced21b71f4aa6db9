"""`python -m m2ray.check_receiver`: what it prints, its JSON, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

from tiny_models import save_receiver, tiny_model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "m2ray.check_receiver", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_exact_receiver_ends_with_0_and_its_errors():
    done = run("mini", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["conforms"]
    assert result["answers_differ"] == 0
    assert max(result[f"max_{name}_error"] for name in ("logit", "logprob")) < 1e-3
    assert result["identity_error"] < 1e-3
    assert result["ways"]["trunk"] == "model"
    assert {path["path"] for path in result["paths"]} >= {"padded batch", "kept prompt prefix", "slots after"}
    assert run("mini").stdout.endswith("agrees with the model's own numbers\n")


def test_a_model_that_is_not_causal_ends_with_2_and_the_reason(tmp_path: Path):
    save_receiver(tiny_model("bert", is_decoder=False), tmp_path)
    done = run(str(tmp_path))
    assert done.returncode == 2
    assert "BertLMHeadModel: is not causal" in done.stdout
    assert run("no-such-receiver").returncode == 2
