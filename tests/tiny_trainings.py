"""Configurations that train a codec on the tests' receiver in about a second, and the losses of a training."""

import json

from m2ray.config.trial import TrialConfig
from m2ray.util.strict_yaml import validate


def config(receiver, **changes) -> TrialConfig:
    """Return the configuration with other values: `SECTION__KEY=value`, or `SECTION=...` for a whole section."""
    tree = {
        "receiver": receiver.name,
        "splits": {"train": "100:300", "search": "1000:1010", "select": "1010:1012", "confirm": "1012:1014"},
        "codec": {"encoder": "segments", "k": 3, "width": 32, "layers": 1},
        "losses": {"ce": {}, "contrast": {"weight": 0.5}},
        "training": {"epochs": 2, "epoch_samples": 32, "batch_size": 8, "lr": 1e-3, "log_every": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    return validate(TrialConfig, tree, "test")


def loss_curve(folder) -> list[float]:
    """Return the total loss at each logged step."""
    return [entry["loss"] for entry in json.loads((folder / "history.json").read_text())]
