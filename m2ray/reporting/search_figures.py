"""The pictures of a search: what the searcher saw of each configuration, and which keys it hung on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd

from m2ray.config.axis import Axis, Scalar
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal
from m2ray.util.plotting import COLOURS, hide_spines, legend_beside
from m2ray.util.strict_yaml import validate
from m2ray.util.text import pluralize
from m2ray.util.trees import get_key

LEAST = 5  # configurations from which on importance is more than an accident


UNSET = -0.12  # where a key that was not set stands on its axis from 0 to 1


UNITS = {"gain": "nats per answer value", "success": "probability of success"}


class EndedTrial(NamedTuple):
    """What the journal says of a configuration that ended."""

    config: str
    chosen: dict[str, Scalar]  # empty for a point
    score: float | None  # None: it failed
    minutes: float | None = None  # from the beginning of the search; journals of earlier versions do not tell


def read_trials(root: Path) -> list[EndedTrial]:
    """The configurations of a sweep in the order in which they ended; empty without a journal.

    Raises:
        UserError: a line that no sweep writes.
    """
    file = root / "trials.jsonl"
    chosen: dict[str, dict[str, Scalar]] = {}
    ended: dict[str, EndedTrial] = {}
    start: float | None = None
    for number, entry in enumerate(Journal(file).entries(), start=1):
        try:
            name, event = str(entry["config"]), entry["event"]
            at = float(entry["at"]) if "at" in entry else None
            start = at if start is None else start
            if event == "began":
                chosen[name] = dict(entry["chosen"])
                continue
            score = None if entry["score"] is None else float(entry["score"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}: entry {number}: not what a sweep writes there; remove the line") from None
        ended.pop(name, None)
        finite = score is not None and math.isfinite(score)
        minutes = None if at is None or start is None else (at - start) / 60
        ended[name] = EndedTrial(name, chosen.get(name, {}), score if finite else None, minutes)
    return list(ended.values())


def searched_axes(root: Path, about: Mapping[str, Any]) -> dict[str, Axis]:
    """The searched keys of a sweep.

    Raises:
        UserError: sweep.yaml holds axes that no space has.
    """
    found = get_key(about, "space.axes")
    axes = found if isinstance(found, dict) else {}
    return {
        str(key): validate(Axis, axis, f"{root / 'sweep.yaml'}: space.axes.{key}") for key, axis in axes.items()
    }


def draw_search(root: Path, about: Mapping[str, Any]) -> tuple[list[tuple[str, str, Any]], list[str]]:
    """The pictures of a search as (name, what it shows, figure), and what was left out, as lines."""
    trials, axes = read_trials(root), searched_axes(root, about)
    scored = [trial for trial in trials if trial.score is not None]
    searched = [trial for trial in scored if trial.chosen and set(trial.chosen) <= set(axes)]
    found: list[tuple[str, str, Any]] = []
    unit = UNITS.get(str(get_key(about, "space.trial.evaluation.score")), UNITS["gain"])
    if len(scored) > 1:
        spent = "minutes" if has_times(trials) else "configurations trained"
        found.append(("budget", f"Best search score so far, by {spent}", draw_budget(trials, unit)))
    if not searched:
        return found, ["Importance and parallel coordinates: nothing was searched."]
    if len(searched) > 1:
        found.append(("parallel", "Searched keys of every configuration", draw_parallel(searched, axes)))
    weights = importances(root, searched, axes) if len(searched) >= LEAST else {}
    if not weights:
        return found, [
            f"Parameter importance: takes {LEAST} configurations of different scores; {len(searched)} were scored."
        ]
    return [
        *found,
        ("importance", "Which searched keys the score hangs on", draw_importance(weights, len(searched))),
    ], []


def draw_scores(board: pd.DataFrame) -> Any:
    """The searcher's score of every training by its k; those of one k stand side by side, best first."""
    import matplotlib.pyplot as plt

    shown = board[board.score.notna() & board.verdict.isin(["PASS", "FAIL", "not confirmed"])].astype({"k": int})
    slots = sorted(shown.k.unique())
    turn = shown.groupby("k").score.rank(method="first", ascending=False)
    crowd = shown.groupby("k").score.transform("size")
    at = shown.k.map(slots.index) + (turn - (crowd + 1) / 2) / np.maximum(crowd + 1, 6)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    near = mark_outliers(axes, at.to_numpy(), shown.score.to_numpy())
    for verdict, marker, colour in (
        ("PASS", "o", COLOURS["P1"]),
        ("FAIL", "X", COLOURS["shuffle"]),
        ("not confirmed", "D", "#999999"),
    ):
        part = near & (shown.verdict == verdict).to_numpy()
        if part.any():
            axes.scatter(at[part], shown.score[part], marker=marker, s=50, color=colour, label=verdict, zorder=3)
    axes.axhline(0, color="#000000", lw=0.8)
    axes.set_xlabel("k, prefix vectors")
    axes.set_ylabel(f"score on the search split ({UNITS['gain']})")
    axes.set_title(f"What the right message is worth, n = {pluralize(len(shown), 'training')}", fontsize=11)
    axes.set_xticks(range(len(slots)), [str(k) for k in slots])
    axes.set_xlim(-0.6, len(slots) - 0.4)
    legend_beside(axes)
    hide_spines(axes)
    return figure


def mark_outliers(axes: Any, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which scores a picture shows where they are; one far below the rest is an arrow at its foot with its figure.

    A codec that collapsed can be nats below all others, which would then look alike.
    """
    low, high = np.nanquantile(values, [0.25, 0.75])
    near: np.ndarray = values >= low - 3 * max(high - low, 0.01)
    for at, value in zip(places[~near], values[~near], strict=True):
        if not math.isnan(value):
            axes.plot(at, values[near].min(), "v", color="#000000", ms=5)
            axes.annotate(
                f"{value:+.2f}", (at, values[near].min()), (5, -3), textcoords="offset points", fontsize=8
            )
    return near


def has_times(trials: Sequence[EndedTrial]) -> bool:
    """Whether the journal tells when each ended."""
    return all(trial.minutes is not None for trial in trials)


def draw_budget(trials: Sequence[EndedTrial], unit: str = UNITS["gain"]) -> Any:
    """Every score where its configuration ended, in minutes or at least in order, and the best until then."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    in_minutes = has_times(trials)
    places = np.array([trial.minutes for trial in trials] if in_minutes else np.arange(1, len(trials) + 1), float)
    values = np.array([math.nan if trial.score is None else trial.score for trial in trials])
    point = np.array([not trial.chosen for trial in trials])
    near = mark_outliers(axes, places, values)
    for part, marker, colour, label in (
        (point, "s", COLOURS["shuffle"], "point of the space"),
        (~point, "o", COLOURS["random"], "suggested by Optuna"),
    ):
        if (part & near).any():
            axes.scatter(
                places[part & near], values[part & near], marker=marker, s=36, color=colour, label=label, zorder=3
            )
    axes.step(places, np.fmax.accumulate(values), where="post", color=COLOURS["normal"], label="best so far")
    if lost := int(np.isnan(values).sum()):
        axes.plot(places[np.isnan(values)], [values[near].min()] * lost, "x", color="#000000", label="failed")
    axes.set_xlabel("minutes since the search began" if in_minutes else "configurations trained")
    axes.set_ylabel(f"score on the search split ({unit})")
    axes.set_title(f"What the budget bought, n = {pluralize(len(trials), 'configuration')}", fontsize=11)
    axes.locator_params(axis="x", integer=not in_minutes)
    legend_beside(axes)
    hide_spines(axes)
    return figure


def importances(root: Path, trials: Sequence[EndedTrial], axes: Mapping[str, Axis]) -> dict[str, float]:
    """Optuna's PED-ANOVA importance of each searched key, the largest first; sums to 1.

    Raises:
        UserError: the journal holds a value that the space does not.
    """
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        recorder = optuna.trial.FixedTrial(dict(trial.chosen))
        try:
            for key in trial.chosen:
                axes[key].suggest(recorder, key)
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.chosen), distributions=dict(recorder.distributions), value=trial.score
                )
            )
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{root / 'trials.jsonl'}: {trial.config}: not of sweep.yaml's space ({error}); restore either"
            ) from None
    if len({trial.score for trial in trials}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def draw_importance(weights: Mapping[str, float], n: int) -> Any:
    """Importance of each searched key."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.35 * len(weights)), layout="constrained")
    names = list(weights)
    axes.barh(names, [weights[name] for name in names], color=COLOURS["normal"], height=0.6)
    for row, name in enumerate(names):
        axes.annotate(f" {weights[name]:.2f}", (weights[name], row), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance, summing to 1 (PED-ANOVA, the best tenth against all)")
    axes.set_title(f"Which keys the search score hangs on, n = {n} configurations", fontsize=11)
    hide_spines(axes)
    return figure


def draw_parallel(trials: Sequence[EndedTrial], axes: Mapping[str, Axis]) -> Any:
    """A line a configuration through its searched keys to its rank by score, the best on top and darkest."""
    import matplotlib.pyplot as plt

    keys = [key for key in axes if any(key in trial.chosen for trial in trials)]
    ranked = sorted(trials, key=lambda trial: trial.score or 0.0)
    figure, axis = plt.subplots(figsize=(1.5 + 1.5 * (len(keys) + 1), 4.6), layout="constrained")
    for rank, trial in enumerate(ranked):
        # By rank: one codec that collapsed would take all the colours.
        height = rank / (len(ranked) - 1)
        heights = [*(position_on_axis(axes[key], trial.chosen.get(key)) for key in keys), height]
        axis.plot(heights, "o-", color=plt.get_cmap("cividis_r")(height), lw=1.4, ms=3, alpha=0.9)
    ticks: list[tuple[int, float, str]] = []
    for at, key in enumerate(keys):
        ticks += [(at, position_on_axis(axes[key], value), short_value(value)) for value in axes[key].sample()]
        if any(key not in trial.chosen for trial in trials):
            ticks.append((at, UNSET, "not set"))
    marks = dict.fromkeys((0, (len(ranked) - 1) // 2, len(ranked) - 1))
    ticks += [(len(keys), rank / (len(ranked) - 1), f"{ranked[rank].score:+.3f}") for rank in marks]
    for at, height, text in ticks:
        box = {"facecolor": "#ffffff", "alpha": 0.8, "pad": 0.5, "lw": 0}
        axis.annotate(text, (at, height), (5, 5), textcoords="offset points", fontsize=8, bbox=box)
    for at in range(len(keys) + 1):
        axis.axvline(at, color="#bbbbbb", lw=0.8, zorder=0)
    wrapped = [key.replace(".", ".\n") for key in keys]
    axis.set_xticks(range(len(keys) + 1), [*wrapped, "score,\nby rank"], fontsize=9)
    axis.set_yticks([])
    axis.set(xlim=(-0.2, len(keys) + 0.5), ylim=(-0.2, 1.1))
    axis.spines[:].set_visible(False)
    n = pluralize(len(trials), "configuration")
    axis.set_title(f"Searched keys and search score (darker: better), n = {n}", fontsize=11)
    return figure


def position_on_axis(axis: Axis, value: Scalar) -> float:
    """Where a value stands on its axis, from 0 to 1; below it where the key was not set."""
    if axis.choice is not None:
        if value not in axis.choice:
            return UNSET
        return axis.choice.index(value) / max(1, len(axis.choice) - 1)
    if not isinstance(value, (int, float)):
        return UNSET
    low, high = axis.int_ or axis.uniform or axis.loguniform or (0, 1)
    if axis.loguniform is not None and value > 0:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def short_value(value: Scalar) -> str:
    """A value in few letters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
