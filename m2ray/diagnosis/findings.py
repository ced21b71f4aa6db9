"""The figures of a diagnosis, the findings that follow from them, and both as JSON.

Each finding is a sentence that a rule yields, by the thresholds below. A gap is NLL(condition) - NLL(right
message) in nats per digit: above 0, the right message is worth something. `worth`, what the message as text is
worth to the receiver, is the difference in NLL between P0 (no message) and P1 (the message as text).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from m2ray.diagnosis.probes import Probe, SimilarityMap
from m2ray.judging import statistics as stats
from m2ray.judging.statistics import Estimate
from m2ray.judging.verdict_tables import format_count
from m2ray.util.text import percent

READS = 0.1  # a gap counts where its interval lies above this share of the worth
RECOVERED = 0.8  # from this retention on, no loss at a stage is reported
HOLDS, EMPTY = 0.5, 0.1  # `Probe.held` from which a stage holds the message; up to which it holds nothing
KEEPS = 0.6  # a stage loses the message where it keeps less than this share of what the stage before held
ALIKE = 0.98  # mean cosine above which prefixes are all alike
ONE_WAY = 2.0  # effective rank below which prefixes differ in one way only
FAR = 3.0  # largest factor, up or down, between a prefix vector's norm and a token embedding's
CAPACITY = 0.8  # where free vectors, or the codec, reach this share of the text's success, k slots suffice
MIN_FREE_EPISODES = 10  # with free vectors for fewer episodes, a low success says nothing about k

STAGE = {
    "tokens": "all token states",
    "pooled": "the pooled state",
    "latent": "the latent",
    "prefix": "the prefix",
}
LOSS = {"pooled": "at the pooled state", "latent": "in the encoder", "prefix": "at bottleneck and calibration"}


# --- figures -------------------------------------------------------------------------------------------------


class Finding(NamedTuple):
    """A sentence with its figures, under a short name."""

    name: str
    sentence: str


class Gap(NamedTuple):
    """NLL(condition) - NLL(right message), nats per token of its kind, with 95 % bootstrap intervals."""

    digits: Estimate
    format: Estimate


class Norms(NamedTuple):
    """Prefix-vector norms over the mean token-embedding norm: mean, and 5 % and 95 % quantiles."""

    mean: float
    low: float
    high: float
    scale_gate: float


class Success(NamedTuple):
    """Episodes solved by decoding, and mean nats per digit."""

    successes: int
    n: int
    digits: float

    @property
    def share(self) -> float:
        """Share of the episodes that are solved, in 0..1."""
        return self.successes / self.n

    def __str__(self) -> str:
        return format_count((self.successes, self.n))


@dataclass(frozen=True)
class Diagnosis:
    """The figures of one checkpoint. Field names are the keys of diagnosis.json."""

    about: dict[str, Any]  # the checkpoint, its settings, and the messages used
    path: tuple[str, ...]  # the stages that a message passes through in this encoder
    maps: dict[str, SimilarityMap]
    probes: dict[str, Probe]  # none of a task in free text, whose facts are not known
    nll: dict[str, tuple[float, float]]  # nats per digit, nats per format token
    gaps: dict[str, Gap]
    seen: dict[str, Estimate]  # gaps of digits on messages that the codec was trained on
    success: dict[str, Success]  # `constant` and `free` only where ceilings were measured
    ahead: dict[str, Estimate]  # success(right message) - success(condition), paired
    retention: Estimate  # `m2ray.judging.statistics.retention`
    norms: Norms
    free_converged: int | None = (
        None  # episodes on which `m2ray.diagnosis.free_vectors` ended before its last step
    )

    @property
    def free_bound(self) -> str:
        """The number of episodes that free vectors solve, a lower bound of what k vectors can do."""
        free = self.success["free"]
        low, high = stats.wilson(free.successes, free.n)
        return (
            f"{self.about['k']} vectors fitted to each episode solve at least {free} [{percent(low)}, "
            f"{percent(high)}], fits converged: {self.free_converged} of {free.n}"
        )

    @property
    def digit(self) -> str:
        """What the answer is counted in: a puzzle's digits, or the tokens of an answer in free text."""
        return "digit" if self.probes else "answer token"

    @property
    def worth(self) -> float:
        """Nats per digit that the message as text is worth to the receiver."""
        return self.nll["P0"][0] - self.nll["P1"][0]

    @property
    def text_gain(self) -> float:
        """Success rate with the message as text minus that without a message."""
        return self.success["P1"].share - self.success["P0"].share

    @property
    def prefix_helps(self) -> bool:
        """True if B solves more with the right prefix than without a message."""
        return self.ahead["P0"].low > READS * self.text_gain

    @property
    def is_read(self) -> bool:
        """True if B reads the prefix and is helped by it; what is lost then is a part of the message."""
        return self.prefix_helps and self.gaps["shuffle"].digits.low > READS * self.worth > 0

    @property
    def findings(self) -> list[Finding]:
        """The findings, first whose receiver it is, then whether it reads the prefix."""
        rules = (
            check_receiver,
            check_reading,
            check_confidence,
            check_stages,
            check_collapse,
            check_memorisation,
            check_priming,
            check_format,
            check_norm,
            check_capacity,
        )
        return [finding for rule in rules for finding in rule(self)]

    def json(self) -> dict[str, Any]:
        """Return all figures and findings as plain values; NaN becomes None."""
        figures = {field.name: to_plain(getattr(self, field.name)) for field in fields(self)}
        return {"findings": to_plain(self.findings), **figures, "worth": to_plain(self.worth)}


def to_plain(value: Any) -> Any:
    """Return named tuples as mappings, floats rounded to 6 places, and NaN as None."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: to_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(part) for part in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def format_nats(estimate: Estimate) -> str:
    """Return a gap with its interval."""
    return f"{estimate.value:+.3f} nats [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def probe_accuracy(probe: Probe) -> str:
    """Return how often a probe is right about facts."""
    return percent(probe.facts.value)


# --- rules ---------------------------------------------------------------------------------------------------


def check_receiver(d: Diagnosis) -> Iterator[Finding]:
    """Find a codec that was trained with another receiver."""
    if own := d.about.get("trained_with"):
        yield Finding(
            "other_receiver",
            f"The codec was trained with another receiver, {own}; these figures are of {d.about['receiver']}.",
        )


def check_reading(d: Diagnosis) -> Iterator[Finding]:
    """Find whether the receiver reads the prefix, and whether there is anything to read."""
    shuffle, threshold = d.gaps["shuffle"].digits, READS * d.worth
    wrong, solved = format_nats(shuffle), d.success
    count = f"{solved['normal']} solved with it, {solved['P0']} without, {solved['P1']} with the text"
    content = held = "cannot be probed for facts, since the task is in free text"
    if d.probes:
        content, probed = _prefix_content(d.probes["prefix"]), f"probe {probe_accuracy(d.probes['prefix'])}"
        held, content = f"{content}: {probed} (chance 50%)", f"{content} ({probed}, chance 50%)"
    unread = f"shuffle gap {wrong} per {d.digit}, where the text is worth {d.worth:.3f}; {count}."
    if d.worth <= 0 or d.text_gain <= 0:
        yield Finding(
            "deaf",
            "The receiver does not use the message even as text, so no codec can be judged on it: "
            f"{solved['P1']} solved with it, {solved['P0']} without; it is worth {d.worth:+.3f} nats per "
            f"{d.digit}.",
        )
    elif shuffle.high < 0:
        yield Finding(
            "backwards", f"Backwards: a wrong message does better than the right one, shuffle gap {wrong}."
        )
    elif shuffle.low > threshold and d.prefix_helps:
        yield Finding(
            "healthy",
            f"The codec carries its message and the receiver reads it: {count}, retention {d.retention.value:.2f} "
            f"[{d.retention.low:.2f}, {d.retention.high:.2f}]; a wrong message costs {wrong} per "
            f"{d.digit}.",
        )
    elif shuffle.low > threshold:
        share = "little" if d.ahead["P0"].low > 0 else "nothing"
        yield Finding(
            "wrong_hurts",
            f"The receiver reads something of the prefix, but {share} of it helps: a wrong one costs {wrong} per "
            f"{d.digit}, with the right one {count}; the prefix {content}.",
        )
    elif shuffle.high < threshold:
        yield Finding(
            "unread",
            f"The prefix {held}; the receiver does not read it: {unread}",
        )
    else:
        yield Finding(
            "hardly_read",
            f"The prefix {held}; the receiver hardly reads it, if at all: {unread}",
        )


def _prefix_content(prefix: Probe) -> str:
    if prefix.held <= EMPTY:
        return "holds nothing of the message"
    return "holds the message" if prefix.held >= HOLDS else "holds a part of the message"


def check_confidence(d: Diagnosis) -> Iterator[Finding]:
    """Find success that the nats do not show."""
    gap = d.gaps["P0"].digits
    if d.worth > 0 and d.prefix_helps and gap.value < d.worth * d.retention.value / 2:
        yield Finding(
            "overconfident",
            "The receiver is overconfident with the prefix: it solves "
            f"{100 * d.ahead['P0'].value:.1f} points more than without, yet gains only {format_nats(gap)} per "
            f"{d.digit} (text {d.worth:.3f}): where it errs, it is sure of itself. A score in nats undervalues "
            "this codec.",
        )


def check_stages(d: Diagnosis) -> Iterator[Finding]:
    """Find the stages at which the message is lost, unless the receiver recovers it anyway."""
    if d.retention.value >= RECOVERED or not d.probes:
        return
    lost, what = False, "A part of the message" if d.is_read else "The message"
    for before, stage in zip(d.path, d.path[1:], strict=False):
        earlier, later = d.probes[before], d.probes[stage]
        if later.held < KEEPS * earlier.held and later.facts.high < earlier.facts.low:
            lost = True
            yield Finding(
                f"lost_{stage}",
                f"{what} is lost {LOSS[stage]}: probes are right about its facts {probe_accuracy(earlier)} "
                f"of the time from {STAGE[before]}, {probe_accuracy(later)} from {STAGE[stage]} (chance 50%).",
            )
    if not lost:
        steps = ", ".join(f"{probe_accuracy(d.probes[stage])} from {STAGE[stage]}" for stage in d.path)
        yield Finding("kept", f"No single stage loses the message: probes are right about its facts {steps}.")


def check_collapse(d: Diagnosis) -> Iterator[Finding]:
    """Find prefixes that are all alike, or differ in one way only."""
    prefix = d.maps["prefix"]
    if prefix.cosine > ALIKE or prefix.effective_rank < ONE_WAY:
        alike = "Nearly alike, though B tells them apart" if d.is_read else "Collapsed"
        yield Finding(
            "collapsed",
            f"{alike}: prefixes of different messages have mean cosine {prefix.cosine:.3f} and effective rank "
            f"{prefix.effective_rank:.1f}; what varies between them is {percent(prefix.spread)} of their norm.",
        )


def check_memorisation(d: Diagnosis) -> Iterator[Finding]:
    """Find training messages that are read where unseen ones are not."""
    seen, unseen = d.seen["shuffle"], d.gaps["shuffle"].digits
    if seen.low > READS * d.worth and seen.low > unseen.high and unseen.value < seen.value / 2:
        yield Finding(
            "memorised",
            "The codec memorised its training messages: on those the right one is worth "
            f"{format_nats(seen)} per {d.digit} over a wrong one, on unseen messages {format_nats(unseen)}.",
        )


def check_priming(d: Diagnosis) -> Iterator[Finding]:
    """Find a trained prefix without content that does as well."""
    ahead = d.ahead.get("constant")
    if ahead is not None and d.text_gain > 0 and ahead.high < READS * d.text_gain:
        points = ", ".join(f"{100 * bound:+.1f}" for bound in ahead[1:])
        yield Finding(
            "priming",
            f"A trained prefix without content does as well: it solves {d.success['constant']}, this one "
            f"{d.success['normal']}, {100 * ahead.value:+.1f} [{points}] points apart; what it gains is priming.",
        )


def check_format(d: Diagnosis) -> Iterator[Finding]:
    """Find a gain over zeros that lies in the answer's form."""
    gap = d.gaps["null"]
    if gap.format.low > READS * d.worth and gap.format.value > gap.digits.value:
        yield Finding(
            "format",
            "What the prefix gains over zeros is form, not content: "
            f"{format_nats(gap.format)} per format token against {format_nats(gap.digits)} per "
            f"{d.digit}.",
        )


def check_norm(d: Diagnosis) -> Iterator[Finding]:
    """Find a scale that is far from that of token embeddings."""
    if not 1 / FAR <= d.norms.mean <= FAR:
        yield Finding(
            "norm",
            f"The prefix's norm is {d.norms.mean:.2f} times a token embedding's (90 % of vectors: "
            f"{d.norms.low:.2f} to {d.norms.high:.2f}; scale_gate {d.norms.scale_gate:.2f}): far off what the "
            "receiver was trained on.",
        )


def check_capacity(d: Diagnosis) -> Iterator[Finding]:
    """Find whether k vectors could carry the message at all.

    Success with free vectors is a lower bound of what k vectors can do: fitting them may fail where better vectors
    exist. So it can show that k suffices, but not that k is too small.
    """
    free, text, own = (d.success.get(name) for name in ("free", "P1", "normal"))
    if free is None or text is None or own is None:
        return
    figures = f"{d.free_bound}, the text {text}, the codec {own}"
    bar = CAPACITY * text.share
    if own.share >= bar or (free.n >= MIN_FREE_EPISODES and free.share >= bar):
        yield Finding("capacity_suffices", f"Capacity is not the limit: {figures}.")
    elif free.n < MIN_FREE_EPISODES:
        yield Finding("capacity_unknown", f"Too few episodes to tell whether capacity is the limit: {figures}.")
    else:
        yield Finding("capacity_limits", f"Capacity may be the limit, or the fit: {figures}; try a larger k.")
