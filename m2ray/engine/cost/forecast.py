"""The share of a sweep's work that is done, and the time that is left.

Work is training samples and answers to decode. What each costs is measured while the sweep runs; trials and
evaluators share the machine, so that both kinds of work pass at the same joint speed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from m2ray.config.plan import Plan
from m2ray.config.trial import TrialConfig
from m2ray.engine.cost.estimate import ANSWERS_PER_DIAGNOSIS, count_work, longest_config

SAMPLE_COST = 4.0  # of a training sample, in answers, until both are measured
CONSTANT_COST = 0.5  # of a content-free prefix's sample, in a codec's: one objective, no encoder
MIN_SHARE = 0.05  # of the work, from which on the remaining time is estimated
END_S = 8.0  # what board, reports and figures take behind all work, in the default sweep on two cores


class Forecast:
    """The work of a sweep, and what is done of it.

    Args:
        points: Training samples of each point, all its training seeds together.
        sampled: Number of configurations that are sampled.
        each: Training samples of the longest of them.
        answers: Answers to decode.
        constant: Training samples of the content-free prefixes, in samples of a codec.
        constant_jobs: Evaluations that need one.
    """

    def __init__(
        self,
        points: Mapping[str, float],
        sampled: int,
        each: float,
        answers: float,
        constant: float = 0.0,
        constant_jobs: int = 0,
    ) -> None:
        self._points, self._sampled, self._each = points, sampled, each
        self._answers, self._constant, self._constant_jobs = max(1.0, answers), constant, max(1, constant_jobs)
        self._total: dict[str, float] = {}  # samples by configuration, of what has reported or ended
        self._done: dict[str, float] = {}
        self._answered = self._constant_done = 0.0
        self._trained_s = self._trained = self._answered_s = self._answers_timed = 0.0
        self._since: dict[str, float] = {}  # when what is trained now last began or reported
        self._epoch = 0.0  # samples of the last epoch that was reported
        self._begun: tuple[float, float, float] | None = None  # time, samples and answers where the speed starts

    def restored(self, ended: Collection[str], answers: int) -> None:
        """Count what an earlier run has done, but not towards the speed."""
        for name in ended:
            self._total[name] = self._done[name] = self._points.get(name, self._each)
        self._answered = float(answers)

    def began(self, name: str, spent_s: float) -> None:
        """Record that a configuration begins to train, so many seconds after the start."""
        self._since[name] = spent_s

    def epoch(self, name: str, done: float, total: float, seconds: float, spent_s: float) -> None:
        """Count an epoch of a configuration, which has now trained so many of its samples.

        Args:
            name: The configuration.
            done: Its samples so far.
            total: Its samples in all.
            seconds: What the epoch took.
            spent_s: Seconds after the start.
        """
        self._epoch = max(0.0, done - self._done.get(name, 0.0))
        self._trained += self._epoch
        self._trained_s += seconds
        self._done[name], self._total[name] = done, total
        self._since[name] = spent_s

    def ended(self, name: str) -> None:
        """Count a configuration as over: what it has not trained is not left."""
        self._total[name] = self._done.setdefault(name, 0.0)
        self._since.pop(name, None)

    def answered(self, answers: int, seconds: float, constant: bool = False) -> None:
        """Count a job of an evaluator; one that may have trained a content-free prefix first times nothing."""
        self._answered += answers
        if constant:
            self._constant_done += self._constant / self._constant_jobs
        else:
            self._answered_s += seconds
            self._answers_timed += answers

    @property
    def _cost(self) -> float:
        """The cost of a training sample, in answers."""
        if self._trained and self._answers_timed and self._trained_s and self._answered_s:
            return (self._trained_s / self._trained) / (self._answered_s / self._answers_timed)
        return SAMPLE_COST

    @property
    def share(self) -> float:
        """The share of the work that is done."""
        return self._share_of(*self._work())

    def _work(self, spent_s: float | None = None) -> tuple[float, float]:
        """Return the samples and answers that are done, at a time also the samples that must be under way."""
        trained = sum(self._done.values()) + min(self._constant_done, self._constant)
        if spent_s is not None and self._trained and self._trained_s:
            speed = self._trained / self._trained_s
            for name, since_s in self._since.items():
                left = self._total.get(name, self._epoch) - self._done.get(name, 0.0)
                trained += min((spent_s - since_s) * speed, self._epoch, left)
        return trained, min(self._answered, self._answers)

    def _share_of(self, trained: float, answered: float) -> float:
        unknown = [total for name, total in self._points.items() if name not in self._total]
        waiting = max(0, self._sampled - sum(name not in self._points for name in self._total))
        samples = sum(self._total.values()) + sum(unknown) + waiting * self._each + self._constant
        return (trained * self._cost + answered) / max(samples * self._cost + self._answers, 1e-9)

    def measured(self, spent_s: float) -> None:
        """Start to measure the speed where the first work of a run has ended, so many seconds after its start.

        What came before is mostly start-up: Ray and its processes, which would be taken for slow work.
        """
        if self._begun is None:
            self._begun = (spent_s, *self._work(spent_s))

    def left_s(self, spent_s: float) -> float | None:
        """Return the seconds that are left, so many after the start; None before anything can be said."""
        if self._begun is None:
            return None
        begun_s, *work = self._begun
        before = self._share_of(*work)
        share = self._share_of(*self._work(spent_s))
        done = share - before
        if done <= MIN_SHARE * (1 - before):
            return None
        return (spent_s - begun_s) * (1 - share) / done + END_S


def forecast(plan: Plan) -> Forecast:
    """Return the forecast of a sweep that has not begun."""
    work, seeds, judge = count_work(plan), len(plan.space.search.seeds), plan.space.judge

    def samples(config: TrialConfig) -> float:
        return float(config.training.epochs * config.training.epoch_samples * seeds)

    return Forecast(
        {name: samples(config) for name, config in plan.points.items()},
        plan.samples,
        samples(longest_config(plan)),
        work.answers + work.diagnoses * ANSWERS_PER_DIAGNOSIS * judge.diagnose,
        work.constant_samples * CONSTANT_COST,
        seeds * (len(plan.points) + min(judge.confirm, plan.samples)),
    )
