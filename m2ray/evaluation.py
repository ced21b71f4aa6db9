"""One checkpoint x conditions x episodes -> rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from m2ray.codec import Codec
from m2ray.command import UserError
from m2ray.conditions import Injection, Material, condition, derangement, inject
from m2ray.config import EvaluationConfig
from m2ray.losses import values_nll
from m2ray.memory import in_halves
from m2ray.receiver import Receiver
from m2ray.task import Episode, solutions, verify


@dataclass(frozen=True)
class Subject:
    """Whose rows these are: a trained configuration's checkpoint."""

    config: str
    seed: int
    checkpoint: str
    step: int
    params: str


def condition_names(config: EvaluationConfig) -> list[str]:
    """All conditions a configuration asks for, the parametrised ones spelled out."""
    texts = [f"text-{limit}" for limit in config.text_bytes]
    gates = [f"scale_gate={gate:g}" for gate in config.scale_gates]
    return [*config.conditions, *texts, *gates]


def evaluate(
    receiver: Receiver,
    episodes: Sequence[Episode],
    split: str,
    names: Sequence[str],
    config: EvaluationConfig,
    subject: Subject | None = None,
    codec: Codec | None = None,
    constant: Codec | None = None,
) -> pd.DataFrame:
    """Play every episode under every condition named.

    Args:
        receiver: Agent B.
        episodes: Of one level; the same for all conditions.
        split: Their split's name, for the rows.
        names: Conditions, see `m2ray.conditions`.
        config: Decoding.
        subject: Whose checkpoint; None where no condition depends on one.
        codec: The checkpoint.
        constant: A trained content-free codec of the same k and place, for the condition `constant`.

    Returns:
        Rows with the columns of `m2ray.rows`. Rows of conditions that do not depend on the checkpoint carry
        no configuration, so that other checkpoints reuse them.

    Raises:
        UserError: no conditions are named, or one needs what these episodes or this receiver do not have.
    """
    if not names:
        raise UserError("evaluation.conditions: empty; name at least one condition")
    check_no_leak(receiver, episodes)
    material = Material(receiver, episodes, codec, constant, config.batch_size)
    frames = []
    for name in names:
        kind = condition(name)
        injection = inject(name, material)
        if name == "null":
            check_null(injection)
        answers, nll_E = play(receiver, episodes, injection, config)
        outcomes = [verify(e, text, receiver.style.answer) for e, text in zip(episodes, answers, strict=True)]
        own = subject if kind.depends == "checkpoint" else None
        slots = codec.config if codec is not None and kind.depends != "receiver" else None
        columns: dict[str, Any] = {
            "config": own.config if own else "",
            "seed": own.seed if own else -1,
            "checkpoint": own.checkpoint if own else "",
            "step": own.step if own else 0,
            "receiver": receiver.digest,
            "task": episodes[0].level.name,
            "split": split,
            "k": slots.k if slots else 0,
            "place": slots.place if slots else "",
            "decoding": config.decoding,
            "condition": name,
            "episode": [e.seed for e in episodes],
            "partner": [episodes[i].seed for i in injection.partners] if injection.partners else -1,
            "success": [o.success for o in outcomes],
            "parsed": [o.parsed for o in outcomes],
            "partial": [o.partial for o in outcomes],
            "nll": nll_E.tolist(),
            "answer": answers,
            "params": own.params if own else "",
        }
        frames.append(pd.DataFrame(columns))
    rows: pd.DataFrame = pd.concat(frames, ignore_index=True)
    return rows


def play(
    receiver: Receiver, episodes: Sequence[Episode], injection: Injection, config: EvaluationConfig
) -> tuple[list[str], Tensor]:
    """B's answers, and the nats per value that it gives the solutions left, [E]."""

    def play_batch(slots: int, picked: Sequence[int]) -> None:
        batch = [episodes[i] for i in picked]
        texts: list[str] | int = slots
        prefix_BKD = None
        if injection.prefixes is not None:
            prefix_BKD = torch.stack([injection.prefixes[i] for i in picked])
        elif injection.texts is not None:
            texts = [injection.texts[i] for i in picked]
        decoded, logits_BVW = receiver.play(
            batch, texts, prefix_BKD, injection.place, config.temperature, config.max_new_tokens
        )
        for i, text in zip(picked, decoded, strict=True):
            answers[i] = text
        nll_E[list(picked)] = nll_of_values(receiver, batch, logits_BVW).cpu()

    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(episodes)):
        groups[len(injection.prefixes[i]) if injection.prefixes is not None else 0].append(i)
    answers = [""] * len(episodes)
    nll_E = torch.zeros(len(episodes))
    for slots, members in groups.items():
        for start in range(0, len(members), config.batch_size):
            in_halves(members[start : start + config.batch_size], partial(play_batch, slots))
    return answers, nll_E


@torch.no_grad()
def value_nll(
    receiver: Receiver, batch: Sequence[Episode], texts: Sequence[str] | int, prefix_BKD: Tensor | None, place: Any
) -> Tensor:
    """Mean cross-entropy per answer value against a perfect reasoner's distribution, [B], in nats."""
    frame = receiver.frame(batch[0].level)

    def score(rows: Sequence[int]) -> Tensor:
        some = slice(rows[0], rows[-1] + 1)
        layout = receiver.layout(batch[some], texts if isinstance(texts, int) else texts[some], place)
        prefix = None if prefix_BKD is None else prefix_BKD[some]
        logits_BAW = receiver.logits(layout, prefix, len(frame.ids_A))
        return nll_of_values(receiver, batch[some], logits_BAW[:, frame.places_V.to(logits_BAW.device)])

    return torch.cat(in_halves(range(len(batch)), score))


def nll_of_values(receiver: Receiver, batch: Sequence[Episode], logits_BVW: Tensor) -> Tensor:
    """`value_nll`, of logits that predict the reference answers' values."""
    return values_nll(logits_BVW, receiver.frame(batch[0].level), receiver.targets(batch)).mean(dim=1)


@torch.no_grad()
def success_probability(
    receiver: Receiver, batch: Sequence[Episode], texts: Sequence[str] | int, prefix_BKD: Tensor | None, place: Any
) -> Tensor:
    """How likely B is to write a right answer when it samples at temperature 1, [B]: without sampling, so without
    its noise.

    The sum over all right answers, each in the wording of `m2ray.task.write_answer` with its end; what B might
    write in other words, and the verifier would read, does not count.
    """
    level = batch[0].level
    rows = [(i, values) for i, e in enumerate(batch) for values in solutions(level, e.sender + e.receiver)]
    ids_RA = receiver.answers(level, torch.tensor([values for _, values in rows])).to(receiver.device)

    def score(some: Sequence[int]) -> Tensor:
        picked = [rows[row][0] for row in some]
        answered = [replace(batch[i], solution=rows[row][1]) for i, row in zip(picked, some, strict=True)]
        layout = receiver.layout(answered, texts if isinstance(texts, int) else [texts[i] for i in picked], place)
        logits_RAW = receiver.logits(layout, None if prefix_BKD is None else prefix_BKD[picked], ids_RA.shape[1])
        written_RA1 = ids_RA[list(some)][..., None]
        return logits_RAW.float().log_softmax(-1).gather(-1, written_RA1).sum((1, 2)).exp()

    each_R = torch.cat(in_halves(range(len(rows)), score))
    whose_R = torch.tensor([i for i, _ in rows], device=each_R.device)
    return each_R.new_zeros(len(batch)).index_add(0, whose_R, each_R)


@torch.no_grad()
def search_score(
    receiver: Receiver, codec: Codec, episodes: Sequence[Episode], config: EvaluationConfig
) -> dict[str, Any]:
    """The searcher's objective while training goes on: `m2ray.rows.paired_gain` without decoding, or where the
    configuration says so the gain in `success_probability`.

    Returns:
        score: the smaller of the two paired gains, gain_P0 and gain_shuffle, in `unit`; search_nll, nats per value
        under the right message, and episode_nll, the same episode by episode; where the score is that,
        search_success.
    """
    batch_size = config.batch_size
    material = Material(receiver, episodes, codec, None, batch_size)
    prefixes_EKD, place = material.prefixes_EKD, codec.config.place
    partners = derangement(episodes)
    nll: dict[str, list[float]] = {"normal": [], "shuffle": [], "P0": []}
    success: dict[str, list[float]] = {name: [] for name in nll}
    for start in range(0, len(episodes), batch_size):
        chunk = slice(start, start + batch_size)
        batch, k = episodes[chunk], codec.config.k
        for name, texts, prefix_BKD in (
            ("normal", k, prefixes_EKD[chunk]),
            ("shuffle", k, prefixes_EKD[partners[chunk]]),
            ("P0", [""] * len(batch), None),
        ):
            nll[name] += value_nll(receiver, batch, texts, prefix_BKD, place).tolist()
            if config.score == "success":
                success[name] += success_probability(receiver, batch, texts, prefix_BKD, place).tolist()
    costs = {name: sum(values) / len(episodes) for name, values in nll.items()}
    metrics: dict[str, Any] = {"search_nll": costs["normal"], "episode_nll": nll["normal"], "unit": "nats"}
    if config.score == "success":
        costs = {name: -sum(values) / len(episodes) for name, values in success.items()}
        metrics |= {"search_success": -costs["normal"], "unit": "of success"}
    gains = {f"gain_{name}": costs[name] - costs["normal"] for name in ("P0", "shuffle")}
    return {**metrics, **gains, "score": min(gains.values())}


def check_no_leak(receiver: Receiver, episodes: Sequence[Episode]) -> None:
    """B's token ids must be the same whatever the message says: it can reach B only through the slots.

    Raises:
        UserError: they are not (a prompt style that writes the message outside its place).
    """
    for episode in episodes:
        silent = replace(episode, sender=(), message="")
        if receiver.prompt(episode) != receiver.prompt(silent):
            raise UserError(f"receiver {receiver.name}: its prompt style leaks the message; mend the style")


def check_null(injection: Injection) -> None:
    """Null must be exact zeros: decode(0) once leaked through a LayerNorm bias, and made a baseline invalid.

    Raises:
        RuntimeError: it is not.
    """
    assert injection.prefixes is not None
    if any(bool(prefix_KD.any()) for prefix_KD in injection.prefixes):
        raise RuntimeError("condition null injected something other than zeros")
