"""Made-up rows in the columns of the row store."""

import numpy as np
import pandas as pd

N = 200
GOOD = {"normal": 0.75, "null": 0.3, "random": 0.3, "shuffle": 0.15, "P0": 0.3, "P1": 0.9}
# Conditions that do not depend on a checkpoint; of these only null depends on the codec's k and place.
FREE = {"P0", "P1", "identity", "text-16", "null"}


def make_rows(shares=GOOD, config="a", seed=0, k=4, step=10, split="confirm", n=N, receiver="r"):
    """Return rows in which each condition solves its share of the episodes."""
    shares = {"identity": shares.get("P1", 0), **shares}
    frames = []
    for number, (condition, share) in enumerate(shares.items()):
        free = condition in FREE
        draw = number + 1 + (0 if free else 100 * seed)  # training seeds differ in which episodes they solve
        order = np.random.default_rng(0 if condition in ("P1", "identity") else draw).permutation(n)
        success = order < round(share * n)
        frame = pd.DataFrame({"episode": np.arange(n) + 2000, "success": success, "answer": success.astype(str)})
        frame["config"], frame["seed"] = ("", -1) if free else (config, seed)
        frame["checkpoint"], frame["step"] = ("", 0) if free else (f"{config}-{seed}-{step}", step)
        frame["k"], frame["place"] = (0, "") if free and condition != "null" else (k, "message")
        frame["condition"] = condition
        frames.append(frame)
    rows = pd.concat(frames, ignore_index=True)
    constants = {"receiver": receiver, "task": "easy", "split": split, "decoding": "greedy", "partner": -1}
    rows = rows.assign(
        **constants, parsed=True, partial=1.0, nll=0.5, truncated=False, facts="", message="", params=""
    )
    return rows.astype({"truncated": "boolean"})


ROW = {
    "config": "a",
    "seed": 0,
    "checkpoint": "c0",
    "step": 10,
    "receiver": "r",
    "task": "easy",
    "split": "confirm",
    "k": 4,
    "place": "message",
    "decoding": "greedy",
    "condition": "normal",
    "episode": 2000,
    "partner": -1,
    "success": True,
    "parsed": True,
    "partial": 1.0,
    "nll": 0.25,
    "answer": "0 2 1 1",
    "truncated": False,
    "facts": "",
    "message": "",
    "params": '{"training.lr": 0.001}',
}


def rows_with(*changes):
    """Return one row for each set of changes to `ROW`."""
    return pd.DataFrame([{**ROW, **change} for change in changes]).astype({"truncated": "boolean"})


def episode_rows(count, **changes):
    """Return rows of `count` episodes in a row, all with the same changes to `ROW`."""
    return rows_with(*({"episode": 2000 + i, "nll": i / 8, **changes} for i in range(count)))


def assert_same_rows(one, other):
    """Compare rows and their order, but not their index."""
    pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
