"""Time from start to first training step of a plain Ray Tune script with one trial on a language model.

`python scripts/benchmarks/plain_start.py FOLDER` writes the seconds into FOLDER/first-step. The script checks,
searches and saves nothing: scripts/benchmarks/bench.py compares a sweep's start with it.
"""

from __future__ import annotations

import time

START = time.time()  # before the imports, which are part of what is timed

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import ray  # noqa: E402
import ray.tune  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

MODEL = str(Path(__file__).parents[2] / "m2ray" / "receiver" / "embedded" / "mini")


def trial(settings: dict[str, Any]) -> None:
    """Load the model and run the forward and backward pass of one step."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    embeds_BTD = torch.randn(32, 40, model.config.hidden_size, requires_grad=True)
    model(inputs_embeds=embeds_BTD).logits.square().mean().backward()
    Path(settings["file"]).write_text(str(time.time() - settings["start"]))
    ray.tune.report({"score": 0.0})


def main(folder: Path) -> None:
    """Load the model here, as a script that checks its input does, then run the trial."""
    AutoModelForCausalLM.from_pretrained(MODEL)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.tune.Tuner(
        trial,
        param_space={"start": START, "file": str(folder / "first-step")},
        run_config=ray.tune.RunConfig(verbose=0, storage_path=str(folder)),
    ).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
