"""What the libraries alone take to a first step: a plain Ray Tune script whose one trial loads a language model.

`python scripts/benchmarks/plain_start.py FOLDER` writes seconds from its start to the step into FOLDER/first-step. It checks
nothing, searches nothing and saves nothing: what scripts/benchmarks/bench.py holds a sweep's start against.
"""

from __future__ import annotations

import time

BEGUN = time.time()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import ray  # noqa: E402
import ray.tune  # noqa: E402
import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

MODEL = str(Path(__file__).parents[2] / "m2ray" / "receiver" / "embedded" / "mini")


def trial(settings: dict[str, Any]) -> None:
    """Load the model and make a step's forward and backward pass."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    embeds_BTD = torch.randn(32, 40, model.config.hidden_size, requires_grad=True)
    model(inputs_embeds=embeds_BTD).logits.square().mean().backward()
    Path(settings["file"]).write_text(str(time.time() - settings["begun"]))
    ray.tune.report({"score": 0.0})


def main(folder: Path) -> None:
    """Look at the model here, as any script that checks its input does, then train one."""
    AutoModelForCausalLM.from_pretrained(MODEL)
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.tune.Tuner(
        trial,
        param_space={"begun": BEGUN, "file": str(folder / "first-step")},
        run_config=ray.tune.RunConfig(verbose=0, storage_path=str(folder)),
    ).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
