"""Find the ways of running a receiver that reproduce the model's own logits.

The reference is the plain way: one row at a time, no padding, no cache, `model(input_ids).logits`. Rows of random
tokens are then run in each faster way: layers and head separately, rows of different lengths in one padded
batch, continuing a kept KV cache, decoding with rejected drafts, with vectors in slots. A way that agrees within
the bound of the numeric type is used; otherwise the slower way is taken. A receiver that no way reproduces is
refused.

Ways are tested up to a number of token positions. Longer rows are tested when they first appear. Layers with a
sliding window or chunks, and rotary factors that change with the length, are exact up to that length only; the
configuration names it.
"""

from __future__ import annotations

from collections.abc import Callable

from m2ray.receiver.conformance.measurement import Conformance, Measurement, relative_error
from m2ray.receiver.conformance.own_path import FAILURES, OwnPath, RandomRows, horizon, possible_trunks
from m2ray.receiver.conformance.paths import PathMeasurer
from m2ray.receiver.layout import PLACES
from m2ray.receiver.model.causal_model import Ways
from m2ray.receiver.model.numeric_type import type_name
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import describe_error

FIRST, COLUMNS = 24, 64  # tested when a receiver is loaded; longer rows when they appear
CAUSAL_BOUND = 5e-3  # in standard deviations of a position's logits


class _Refusal(Exception):
    """The receiver cannot be used; the message says why.

    Args:
        why: Why.
        fix: What to do.
    """

    def __init__(self, why: str, fix: str = "use another model") -> None:
        super().__init__(f"{why}; {fix}")


def check(receiver: Receiver) -> Conformance:
    """Find the ways of running a receiver that reproduce the model's own logits.

    Returns:
        The ways, tested up to `COLUMNS`; with `refusal` where a receiver has none.
    """
    return _Check(receiver).run()


def extend(receiver: Receiver, known: Conformance, columns: int) -> Conformance:
    """Test the ways of a receiver for rows of up to `columns` columns."""
    return _Check(receiver, known).extend(columns)


class _Check:
    """A check of one receiver. It runs a twin of the receiver, which shares its model."""

    def __init__(self, receiver: Receiver, known: Conformance | None = None) -> None:
        self._receiver = receiver
        self._own = OwnPath(receiver)
        self._horizon = min(horizon(receiver.model.config) - 1, receiver.max_positions)
        self._result = known or Conformance(Ways(tested=0))
        self._rows = RandomRows(receiver)
        self._paths = PathMeasurer(receiver, self._own, self._rows)

    def run(self) -> Conformance:
        """Find where vectors enter in rows of `FIRST` tokens, and test everything else in rows of `COLUMNS`."""
        first, longest = (min(columns, self._receiver.max_positions) for columns in (FIRST, COLUMNS))
        try:
            self._check_modes(first)
            self._result.bound = self._own.bound(self._rows.draw(first))
            self._find_entry(first)
            self.extend(longest)
            self._verify(longest)
        except FAILURES as error:
            return self._refuse(_Refusal(f"cannot be run with vectors in its input ({describe_error(error)})"))
        except _Refusal as refusal:
            return self._refuse(refusal)
        return self._result

    def _refuse(self, refusal: _Refusal) -> Conformance:
        name = type(self._own.model).__name__
        self._result.refusal = f"receiver {self._receiver.name}: {name}: {refusal}"
        return self._result

    # --- the steps ---

    def _find_entry(self, columns: int) -> None:
        """Find how to enter the model before its first layer and leave it behind its last."""
        rows = self._rows.draw(columns)
        self._check_causal(rows[0])
        self._own.skip_logits(rows[0], self._result.bound)
        by_embeddings = self._own.takes_embeddings(rows[0], self._result.bound)
        alone: list[Measurement] = []
        for trunk in (*possible_trunks(self._own.model), None):
            ways = Ways(trunk, not by_embeddings, tested=0)
            measured = self._paths.text(
                "layers and head apart" if trunk else "whole model", ways, rows, together=False
            )
            if self._agrees(measured):
                self._result.ways = ways
                self._result.measurements.append(measured)
                self._result.rejected += alone
                return
            alone.append(measured)
        raise _Refusal(f"its logits differ from the model's own: {alone[-1].problem()}")

    def _check_modes(self, columns: int) -> None:
        """Refuse a model that a row switches to another mode, in which it predicts otherwise from then on.

        BigBird leaves its sparse attention for good at the first short row.
        """
        before = self._own.modes()
        self._own.logits(self._rows.draw(columns)[-1])
        for name, mode in self._own.modes().items():
            if mode != before.get(name, mode):
                setting = name.rpartition(".")[2]
                raise _Refusal(
                    f"a row of few tokens changes its {setting} from {before[name]} to {mode}, also for rows that "
                    "follow",
                    f"set {setting} to {mode} in its config.json, or use another model",
                )

    def _check_causal(self, row: list[int]) -> None:
        half = len(row) // 2
        changed = row[:half] + self._rows.replaced(row[half:])
        before, after = self._own.logits(row)[:half], self._own.logits(changed)[:half]
        if before.isnan().any() or after.isnan().any():
            raise _Refusal(f"its logits are not numbers in {type_name(before.dtype)}")
        # Rows of one length run through the same kernels: what comes later changes nothing, in any numeric type.
        if relative_error(before, after) > min(CAUSAL_BOUND, self._result.bound):
            raise _Refusal("is not causal: later tokens change what it predicts at earlier ones")

    def extend(self, columns: int) -> Conformance:
        """Test padded batches, kept caches and drafts for longer rows than before."""
        ways, paths, bound = self._result.ways, self._paths, self._result.bound
        tests: dict[str, Callable[[Ways, list[list[int]]], Measurement]] = {
            "reread": lambda _, rows: paths.followed(rows, ways.reread),
            "padded": lambda trial, rows: paths.text("padded batch", trial, rows),
            "kept": lambda trial, rows: paths.text("kept prompt prefix", trial, rows, kept=True),
            "drafted": lambda trial, rows: paths.decoding("drafts with a KV cache", trial, rows, bound),
        }
        for name, test in tests.items():
            # Most models stay causal beyond their horizon.
            most = self._receiver.max_positions if name == "reread" else self._horizon
            limit = min(columns, most)
            if getattr(ways, name) < min(ways.tested, most) or limit <= getattr(ways, name):
                continue  # it failed before, or has reached the model's horizon
            trial = Ways(**{**ways._asdict(), name: limit})
            measured = test(trial, self._rows.draw(limit))
            if self._agrees(measured):
                ways = trial
                self._result.measurements.append(measured)
            else:
                self._result.rejected.append(measured)
        self._result.ways = ways._replace(tested=max(columns, ways.tested))
        return self._result

    def _verify(self, columns: int) -> None:
        """Test what every receiver must get right, in the ways that were found."""
        ways, rows = self._result.ways, self._rows.draw(columns)
        tests = [self._paths.slots(place, ways, rows) for place in PLACES]
        if ways.drafted < columns:
            tests.append(self._paths.decoding("answers", ways, rows, self._result.bound))
        for measured in tests:
            self._result.measurements.append(measured)
            if not self._agrees(measured):
                raise _Refusal(f"{measured.path} differ from the model's own: {measured.problem()}")
        identity = self._paths.identity_error(ways, rows)
        self._result.identity_error = max(self._result.identity_error, identity[0])
        if identity[1] > self._result.bound:
            raise _Refusal(
                f"a text's own embeddings in slots give other logits than the text, by {identity[0]:.3g}"
            )
        gradient = self._paths.gradient_error(ways, rows)
        self._result.gradient_error = max(self._result.gradient_error, gradient)
        if not gradient <= 10 * self._result.bound:
            raise _Refusal(
                f"gradients to vectors in slots differ from the model's own by {gradient:.3g} of the largest"
            )
        widths = self._paths.widths(ways, rows[0])
        if widths != {self._receiver.width}:
            raise _Refusal(
                f"its embeddings are {self._receiver.width} wide, the output of its layers {max(widths)}; "
                "messages are read from both"
            )
        messages = self._paths.twin(ways).encode_token_ids(rows)
        if messages.states_BTD.shape != messages.embeds_BTD.shape:
            raise _Refusal(f"its hidden states have the shape {list(messages.states_BTD.shape)}, not [B, T, D]")

    def _agrees(self, measured: Measurement) -> bool:
        return (
            not measured.failure and not measured.answers_differ and measured.relative_error <= self._result.bound
        )
