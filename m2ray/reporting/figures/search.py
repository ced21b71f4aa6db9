"""Figures of the search: search scores, the best score over time, and how the searched keys affect the score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd

from m2ray.config.axis import Axis, Scalar
from m2ray.judging.verdict import FAIL, INVALID, PART, PASS, WHOLE
from m2ray.reporting.figures.judged_runs import DrawnFigure
from m2ray.reporting.leaderboard import NOT_CONFIRMED, WITHDRAWN
from m2ray.util.errors import UserError
from m2ray.util.journal import Journal
from m2ray.util.plotting import COLORS, hide_spines, legend_beside
from m2ray.util.strict_yaml import validate
from m2ray.util.text import pluralize
from m2ray.util.trees import get_key

MIN_CONFIGS = 5  # scored configurations below which an importance would be chance
UNSET = -0.12  # height of a key that was not set, below its axis from 0 to 1
UNITS = {"gain": "nats per answer value", "success": "probability of success"}


class EndedTrial(NamedTuple):
    """The journal's entry of a configuration that ended."""

    config: str
    chosen: dict[str, Scalar]  # empty for a point of the space
    score: float | None  # None: it failed
    minutes: float | None = None  # since the search began; None in journals of earlier versions


def read_trials(root: Path) -> list[EndedTrial]:
    """Return the configurations of a sweep in the order in which they ended; none without a journal.

    Raises:
        UserError: The journal has an entry that no sweep writes.
    """
    file = root / "trials.jsonl"
    chosen: dict[str, dict[str, Scalar]] = {}
    ended: dict[str, EndedTrial] = {}
    search_began: float | None = None
    for number, entry in enumerate(Journal(file).entries(), start=1):
        try:
            name, event = str(entry["config"]), entry["event"]
            at = float(entry["at"]) if "at" in entry else None
            search_began = at if search_began is None else search_began
            if event == "began":
                chosen[name] = dict(entry["chosen"])
            if event in ("began", "repeated"):
                continue
            score = None if entry["score"] is None else float(entry["score"])
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}: entry {number}: not what a sweep writes there; remove the line") from None
        ended.pop(name, None)  # a later entry replaces an earlier one, at its own place in the order
        finite = score is not None and math.isfinite(score)
        minutes = None if at is None or search_began is None else (at - search_began) / 60
        ended[name] = EndedTrial(name, chosen.get(name, {}), score if finite else None, minutes)
    return list(ended.values())


def searched_axes(root: Path, record: Mapping[str, Any]) -> dict[str, Axis]:
    """Return the searched keys of a sweep with their axes, from its record.

    Raises:
        UserError: sweep.yaml holds an axis that is not valid.
    """
    axes = get_key(record, "space.axes")
    axes = axes if isinstance(axes, dict) else {}
    return {
        str(key): validate(Axis, axis, f"{root / 'sweep.yaml'}: space.axes.{key}") for key, axis in axes.items()
    }


def draw_search(root: Path, record: Mapping[str, Any]) -> tuple[list[DrawnFigure], list[str]]:
    """Return the figures of a search, and lines about what is left out."""
    trials, axes = read_trials(root), searched_axes(root, record)
    scored = [trial for trial in trials if trial.score is not None]
    searched = [trial for trial in scored if trial.chosen and set(trial.chosen) <= set(axes)]
    figures: list[DrawnFigure] = []
    if len(scored) > 1:
        unit = UNITS.get(str(get_key(record, "space.trial.evaluation.score")), UNITS["gain"])
        spent = "minutes" if has_times(trials) else "configurations trained"
        figures.append(DrawnFigure("budget", f"Best search score so far, by {spent}", draw_budget(trials, unit)))
    if not searched:
        return figures, ["Importance and parallel coordinates: nothing was searched."]
    if len(searched) > 1:
        parallel = draw_parallel(searched, axes)
        figures.append(DrawnFigure("parallel", "Searched keys of every configuration", parallel))
    weights = importances(root, searched, axes) if len(searched) >= MIN_CONFIGS else {}
    if not weights:
        return figures, [
            f"Parameter importance: needs {MIN_CONFIGS} configurations with different scores; "
            f"{len(searched)} {'was' if len(searched) == 1 else 'were'} scored."
        ]
    importance = draw_importance(weights, len(searched))
    return [*figures, DrawnFigure("importance", "Searched keys that the score depends on", importance)], []


# --- scores --------------------------------------------------------------------------------------------------


def draw_scores(leaderboard: pd.DataFrame) -> Any:
    """Draw the search score of every run by k; runs with the same k side by side, best first."""
    verdicts = {
        WHOLE: ("*", COLORS["P1"]),
        PASS: ("o", COLORS["P1"]),
        PART: ("v", COLORS["normal"]),
        INVALID: ("P", COLORS["random"]),
        FAIL: ("X", COLORS["shuffle"]),
        NOT_CONFIRMED: ("D", "#999999"),
        WITHDRAWN: ("x", "#999999"),
    }
    shown = leaderboard[
        leaderboard.score.notna() & leaderboard.seed.notna() & leaderboard.verdict.isin(verdicts)
    ].astype({"k": int})
    ks = sorted(shown.k.unique())
    rank = shown.groupby("k").score.rank(method="first", ascending=False)
    count = shown.groupby("k").score.transform("size")
    at = shown.k.map(ks.index) + (rank - (count + 1) / 2) / np.maximum(count + 1, 6)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    in_range = mark_outliers(axes, at.to_numpy(), shown.score.to_numpy())
    for verdict, (marker, color) in verdicts.items():
        part = in_range & (shown.verdict == verdict).to_numpy()
        if part.any():
            axes.scatter(at[part], shown.score[part], marker=marker, s=50, color=color, label=verdict, zorder=3)
    axes.axhline(0, color="#000000", lw=0.8)
    axes.set_xlabel("k, prefix vectors")
    axes.set_ylabel(f"score on the search split ({UNITS['gain']})")
    axes.set_title(f"Gain from the right message, n = {pluralize(len(shown), 'training')}", fontsize=11)
    axes.set_xticks(range(len(ks)), [str(k) for k in ks])
    axes.set_xlim(-0.6, len(ks) - 0.4)
    legend_beside(axes)
    hide_spines(axes)
    return figure


def mark_outliers(axes: Any, places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Draw scores far below the rest as arrows at the lower edge, labelled with their values.

    A collapsed codec can be nats below all others, which would then look alike.

    Args:
        axes: Where to draw.
        places: Horizontal positions, [S].
        values: Scores, [S]; NaN for a failed configuration.

    Returns:
        A mask [S] of the scores that are in range and are drawn at their height.
    """
    low, high = np.nanquantile(values, [0.25, 0.75])
    in_range: np.ndarray = values >= low - 3 * max(high - low, 0.01)
    is_outlier = ~in_range & ~np.isnan(values)
    for at, value in zip(places[is_outlier], values[is_outlier], strict=True):
        edge = values[in_range].min()
        axes.plot(at, edge, "v", color="#000000", ms=5)
        axes.annotate(f"{value:+.2f}", (at, edge), (5, -3), textcoords="offset points", fontsize=8)
    return in_range


# --- budget --------------------------------------------------------------------------------------------------


def has_times(trials: Sequence[EndedTrial]) -> bool:
    """Return True if the journal has the time at which each configuration ended."""
    return all(trial.minutes is not None for trial in trials)


def draw_budget(trials: Sequence[EndedTrial], unit: str = UNITS["gain"]) -> Any:
    """Draw the score of each configuration at the time when it ended, and the best score until then.

    Without times in the journal, the horizontal axis is the number of configurations that have ended.
    """
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    in_minutes = has_times(trials)
    places = np.array([trial.minutes for trial in trials] if in_minutes else np.arange(1, len(trials) + 1), float)
    scores = np.array([math.nan if trial.score is None else trial.score for trial in trials])
    is_point = np.array([not trial.chosen for trial in trials])
    in_range = mark_outliers(axes, places, scores)
    for part, marker, color, label in (
        (is_point & in_range, "s", COLORS["shuffle"], "point of the space"),
        (~is_point & in_range, "o", COLORS["random"], "suggested by Optuna"),
    ):
        if part.any():
            axes.scatter(places[part], scores[part], marker=marker, s=36, color=color, label=label, zorder=3)
    axes.step(places, np.fmax.accumulate(scores), where="post", color=COLORS["normal"], label="best so far")
    if count := int(np.isnan(scores).sum()):
        axes.plot(places[np.isnan(scores)], [scores[in_range].min()] * count, "x", color="#000000", label="failed")
    axes.set_xlabel("minutes since the search began" if in_minutes else "configurations trained")
    axes.set_ylabel(f"score on the search split ({unit})")
    axes.set_title(f"Best score over the budget, n = {pluralize(len(trials), 'configuration')}", fontsize=11)
    axes.locator_params(axis="x", integer=not in_minutes)
    legend_beside(axes)
    hide_spines(axes)
    return figure


# --- importance ----------------------------------------------------------------------------------------------


def importances(root: Path, trials: Sequence[EndedTrial], axes: Mapping[str, Axis]) -> dict[str, float]:
    """Return Optuna's PED-ANOVA importance of each searched key, the largest first; they sum to 1.

    Returns:
        An empty dictionary if all scores are equal.

    Raises:
        UserError: The journal holds a value that is not in the space.
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
                f"{root / 'trials.jsonl'}: {trial.config}: not in sweep.yaml's space ({error}); "
                "restore one of the files"
            ) from None
    if len({trial.score for trial in trials}) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def draw_importance(weights: Mapping[str, float], n: int) -> Any:
    """Draw the importance of each searched key over `n` configurations."""
    figure, axes = plt.subplots(figsize=(7, 1.3 + 0.35 * len(weights)), layout="constrained")
    names = list(weights)
    axes.barh(names, [weights[name] for name in names], color=COLORS["normal"], height=0.6)
    for row, name in enumerate(names):
        axes.annotate(f" {weights[name]:.2f}", (weights[name], row), va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance, summing to 1 (PED-ANOVA, the best tenth against all)")
    axes.set_title(f"Searched keys that the score depends on, n = {n} configurations", fontsize=11)
    hide_spines(axes)
    return figure


# --- parallel coordinates ------------------------------------------------------------------------------------


def draw_parallel(trials: Sequence[EndedTrial], axes: Mapping[str, Axis]) -> Any:
    """Draw a line for each configuration through its searched keys to its rank by score; the best is darkest."""
    keys = [key for key in axes if any(key in trial.chosen for trial in trials)]
    ranked = sorted(trials, key=lambda trial: trial.score or 0.0)
    figure, axis = plt.subplots(figsize=(1.5 + 1.5 * (len(keys) + 1), 4.6), layout="constrained")
    for rank, trial in enumerate(ranked):
        # By rank: on a scale of scores, one collapsed codec would leave all others the same color.
        height = rank / (len(ranked) - 1)
        heights = [*(position_on_axis(axes[key], trial.chosen.get(key)) for key in keys), height]
        axis.plot(heights, "o-", color=plt.get_cmap("cividis_r")(height), lw=1.4, ms=3, alpha=0.9)
    for x, height, text in _parallel_labels(ranked, keys, axes):
        box = {"facecolor": "#ffffff", "alpha": 0.8, "pad": 0.5, "lw": 0}
        axis.annotate(text, (x, height), (5, 5), textcoords="offset points", fontsize=8, bbox=box)
    for x in range(len(keys) + 1):
        axis.axvline(x, color="#bbbbbb", lw=0.8, zorder=0)
    wrapped = [key.replace(".", ".\n") for key in keys]
    axis.set_xticks(range(len(keys) + 1), [*wrapped, "score,\nby rank"], fontsize=9)
    axis.set_yticks([])
    axis.set(xlim=(-0.2, len(keys) + 0.5), ylim=(-0.2, 1.1))
    axis.spines[:].set_visible(False)
    n = pluralize(len(trials), "configuration")
    axis.set_title(f"Searched keys and search score (darker: better), n = {n}", fontsize=11)
    return figure


def _parallel_labels(
    ranked: Sequence[EndedTrial], keys: Sequence[str], axes: Mapping[str, Axis]
) -> list[tuple[int, float, str]]:
    """Return x, height and text of the labels: values on each key's axis; lowest, middle and highest score."""
    labels: list[tuple[int, float, str]] = []
    for x, key in enumerate(keys):
        values = axes[key].choices_or_bounds()
        labels += [(x, position_on_axis(axes[key], value), short_value(value)) for value in values]
        if any(key not in trial.chosen for trial in ranked):
            labels.append((x, UNSET, "not set"))
    last = len(ranked) - 1
    marked = dict.fromkeys((0, last // 2, last))
    return labels + [(len(keys), rank / last, f"{ranked[rank].score:+.3f}") for rank in marked]


def position_on_axis(axis: Axis, value: Scalar) -> float:
    """Return a value's height on its axis, from 0 to 1; `UNSET` if the key was not set."""
    if axis.choice is not None:
        if value not in axis.choice:
            return UNSET
        return axis.choice.index(value) / max(1, len(axis.choice) - 1)
    if not isinstance(value, (int, float)):
        return UNSET
    low, high = axis.bounds
    if (axis.loguniform or axis.logint) and value > 0:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def short_value(value: Scalar) -> str:
    """Return a value as text, a float with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
