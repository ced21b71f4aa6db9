"""The result of a receiver's check: what was measured, and the ways that give the model's own numbers.

Shapes: T positions, A answer tokens, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m2ray.receiver.model.causal_model import Ways

COMPARED_WORDS = 4_096
ANSWER = 6  # tokens of a row whose logits are compared


class Measurement(NamedTuple):
    """How far one way of running a receiver is from the model's own.

    Attributes:
        path: The way.
        columns: Tokens of the longest row.
        logit_error: Largest difference of a logit.
        logprob_error: Largest difference of a log-probability of an answer token, in nats.
        relative_error: `logit_error` in standard deviations of a position's logits.
        answers_differ: Of `rows` greedy answers, those that are not the model's own.
        rows: Rows compared.
        failure: Why it cannot be run this way at all; empty otherwise.
    """

    path: str
    columns: int
    logit_error: float = 0.0
    logprob_error: float = 0.0
    relative_error: float = 0.0
    answers_differ: int = 0
    rows: int = 0
    failure: str = ""

    def problem(self) -> str:
        """Return what differs, and by how much."""
        if self.failure:
            return self.failure
        answers = f"{self.answers_differ} of {self.rows} answers differ, " if self.answers_differ else ""
        return f"{answers}a logit by {self.logit_error:.3g}, a log-probability by {self.logprob_error:.3g} nats"


@dataclass
class Conformance:
    """The result of a check.

    Attributes:
        ways: The ways of running the receiver that give the model's own numbers.
        bound: Largest relative error that counts as equal.
        measurements: Of the ways in use.
        rejected: Of the ways that are not used.
        identity_error: Largest difference of a logit between a text and its own embeddings in slots.
        gradient_error: Largest difference of a gradient to vectors in slots, relative to the largest gradient.
        refusal: Why the receiver cannot be used; empty otherwise.
    """

    ways: Ways
    bound: float = 0.0
    measurements: list[Measurement] = field(default_factory=list)
    rejected: list[Measurement] = field(default_factory=list)
    identity_error: float = 0.0
    gradient_error: float = 0.0
    refusal: str = ""

    def summary(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        used = self.measurements
        return {
            "conforms": not self.refusal,
            "refusal": self.refusal,
            "max_logit_error": max((m.logit_error for m in used), default=0.0),
            "max_logprob_error": max((m.logprob_error for m in used), default=0.0),
            "answers_differ": sum(m.answers_differ for m in used),
            "identity_error": self.identity_error,
            "gradient_error": self.gradient_error,
            "bound": self.bound,
            "ways": self.ways._asdict(),
            "paths": [m._asdict() for m in used],
            "rejected": [m._asdict() for m in self.rejected],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Conformance:
        """Read what `dataclasses.asdict` gave, from JSON."""
        made = {**data, "ways": Ways(*data["ways"])}
        for name in ("measurements", "rejected"):
            made[name] = [Measurement(*each) for each in data[name]]
        return cls(**made)


def relative_error(own_TW: Tensor, other_TW: Tensor) -> float:
    """Return the largest difference, in standard deviations of a position's own logits.

    Of a large vocabulary, evenly spaced words are compared.
    """
    step = -(-own_TW.shape[-1] // COMPARED_WORDS)
    own_TW, other_TW = own_TW[..., ::step], other_TW[..., ::step]
    scale_T1 = own_TW.float().std(dim=-1, keepdim=True).clamp(min=1e-12)
    error = float(((own_TW.float() - other_TW.float()).abs() / scale_T1).max())
    return error if error == error else float("inf")  # nan is an error


def compared(
    path: str, columns: int, ours: Sequence[Tensor], own: Sequence[Tensor], rows: Sequence[Sequence[int]]
) -> Measurement:
    """Return the errors of logits [A, W] that predict the rows' last tokens."""
    logit, logprob, relative, differ = 0.0, 0.0, 0.0, 0
    for i, (ours_AW, own_AW) in enumerate(zip(ours, own, strict=True)):
        ids_A1 = torch.tensor(rows[i % len(rows)][-ANSWER:], device=own_AW.device)[:, None]
        each = [logits.float().log_softmax(-1).gather(1, ids_A1) for logits in (ours_AW, own_AW)]
        logit = max(logit, float((ours_AW.float() - own_AW.float()).abs().max()))
        logprob = max(logprob, float((each[0] - each[1]).abs().max()))
        relative = max(relative, relative_error(own_AW, ours_AW))
    return Measurement(path, columns, logit, logprob, relative, differ, len(ours))
