"""The ablation conditions: what B receives. One small function each, in one table.

All conditions use the same episodes in the same order with the same decoding, so all comparisons are paired. To
add a condition, name it in `m2ray.config.condition_names`, write its function and enter it in the table here.
Conditions without content are in `m2ray.evaluation.controls`, those of text in `m2ray.evaluation.rivals`, those
with a message through the codec here.

Shapes: E episodes, K slots, D width.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from m2ray.codec.untrained import untrained_version
from m2ray.config.condition_names import (
    BUILT_IN,
    EXAMPLES,
    DependsOn,
    bits_count,
    dropped_slot,
    facts_count,
    noise_scale,
    scale_gate_of,
    text_limit,
    tokens_count,
)
from m2ray.evaluation import controls, rivals, rounding
from m2ray.evaluation.inputs import STREAM_STRIDE, ConditionInputs, Injection
from m2ray.tasks.episodes import AnyEpisode, write_facts
from m2ray.tasks.text_episodes import TextEpisode
from m2ray.tasks.text_splits import partners as text_partners
from m2ray.util import plugins
from m2ray.util.errors import UserError

SHIFT = 17  # shuffle takes the message of the episode 17 places on, as the reference attempt does
NEAR_STREAM = 4

Inject = Callable[[ConditionInputs], Injection]


def derangement(episodes: Sequence[AnyEpisode], shift: int = SHIFT) -> list[int]:
    """Return whose message each episode gets under `shuffle`: a permutation in which none gets its own content.

    It starts from the message `shift` places on; where that has the same content, two episodes swap. In free text
    the message is also of another group and with another answer (`m2ray.tasks.text_splits.partners`).

    Raises:
        UserError: there are too few different messages for any such permutation.
    """
    if texts := [episode for episode in episodes if isinstance(episode, TextEpisode)]:
        return text_partners(texts)
    count = len(episodes)
    partner = [(i + shift) % count for i in range(count)]
    contents = [episode.content for episode in episodes]

    def clash(i: int, j: int) -> bool:
        return contents[i] == contents[j] or episodes[i].message == episodes[j].message

    for i in range(count):
        if clash(i, partner[i]):
            swap = next((j for j in range(count) if not clash(i, partner[j]) and not clash(j, partner[i])), None)
            if swap is None:
                return _any_derangement([[not clash(i, j) for j in range(count)] for i in range(count)])
            partner[i], partner[swap] = partner[swap], partner[i]
    return partner


def _any_derangement(allowed: list[list[bool]]) -> list[int]:
    """Solve the cases that no swap solves: a message in free words may match two episodes that differ."""
    from scipy.sparse import csr_array  # rarely needed, and slow to import
    from scipy.sparse.csgraph import maximum_bipartite_matching

    partner: list[int] = maximum_bipartite_matching(csr_array(allowed), perm_type="column").tolist()
    if min(partner) < 0:
        raise UserError(
            "condition shuffle: too few different messages among the episodes; use more or a larger level"
        )
    return partner


# --- a message through the codec -----------------------------------------------------------------------------


def normal(inputs: ConditionInputs) -> Injection:
    """Inject the codec's prefix of the right message."""
    return inputs.inject(inputs.prefixes_EKD)


def shuffle(inputs: ConditionInputs) -> Injection:
    """Inject the codec's prefix of another episode's message."""
    partners = derangement(inputs.episodes)
    return inputs.inject(inputs.prefixes_EKD[partners], partners)


def near(inputs: ConditionInputs) -> Injection:
    """Inject the codec's prefix of the right message with one fact changed, so that the right answer is wrong.

    Raises:
        UserError: a message is in free words, or the level cannot change a fact.
    """
    codec, changed = inputs.tested_codec, [change_message(episode) for episode in inputs.episodes]
    messages = [each if isinstance(each, str) else write_facts(each) for each in changed]
    injection = inputs.inject(inputs.encode(lambda encoded: codec(encoded).prefix_BKD, messages))
    return injection._replace(facts=[each for each in changed if not isinstance(each, str)] or None)


def change_message(episode: AnyEpisode) -> tuple[Any, ...] | str:
    """Return an episode's message with exactly one fact changed, as facts or as text, the same at every call.

    Raises:
        UserError: the message is in free words and has no changed version, or the level cannot change a fact.
    """
    if isinstance(episode, TextEpisode):
        if not episode.near:
            raise UserError(
                f"condition near: episode {episode.id[:60]!r} has no message with one fact changed; give the file "
                "a key `near`, or leave near out"
            )
        return episode.near
    if episode.message != write_facts(episode.sender):
        raise UserError(
            f"condition near: the message of episode {episode.seed} is in free words, in which no fact can be "
            "changed; leave near out"
        )
    rng = random.Random(NEAR_STREAM * STREAM_STRIDE + episode.seed)
    return episode.level.change_fact(
        episode.sender, episode.receiver, episode.solution, lambda n: int(rng.random() * n)
    )


def init(inputs: ConditionInputs) -> Injection:
    """Inject the right message's prefix by the same codec before its training.

    Raises:
        UserError: the codec's record does not name its configuration and training seed.
    """
    codec = untrained_version(inputs.tested_codec, inputs.receiver)
    return inputs.inject(inputs.encode(lambda messages: codec(messages).prefix_BKD))


def drop(inputs: ConditionInputs, slot: int) -> Injection:
    """Inject the right message's prefix with zeros in one slot, counted from 1.

    Raises:
        UserError: the codec has fewer slots.
    """
    _check_slot(slot, inputs.tested_codec.config.k)
    prefixes_EKD = inputs.prefixes_EKD.clone()
    prefixes_EKD[:, slot - 1] = 0
    return inputs.inject(prefixes_EKD)


def _check_slot(slot: int, k: int) -> None:
    if slot > k:
        raise UserError(f"condition drop-{slot}: the codec has {k} slots; use drop-1 to drop-{k}")


def scale_gate(inputs: ConditionInputs, gate: float) -> Injection:
    """Inject the right message's prefix at another norm: `gate` times the channel's unit."""
    with torch.no_grad():
        return inputs.inject(inputs.tested_codec.decode(inputs.latents_EKD, gate).prefix_BKD)


# --- by name -------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A condition, and what its rows depend on."""

    inject: Inject
    depends_on: DependsOn


_INJECT: dict[str, Inject] = {
    "normal": normal,
    "null": controls.null,
    "random": controls.random,
    "shuffle": shuffle,
    "P0": rivals.p0,
    "P1": rivals.p1,
    "identity": rivals.identity,
    "constant": controls.constant,
    "mean": controls.mean,
    "matched": controls.matched,
    "rotate": controls.rotate,
    "init": init,
    "near": near,
}
CONDITIONS = {name: Condition(_INJECT[name], depends_on) for name, depends_on in BUILT_IN.items()}

# Conditions with a parameter in their name: what reads it, the function that takes it, what the rows depend on.
_WITH_PARAMETER: list[tuple[Callable[[str], Any], Callable[[ConditionInputs, Any], Injection], DependsOn]] = [
    (facts_count, rivals.facts, "receiver"),
    (text_limit, rivals.text_bytes, "receiver"),
    (tokens_count, rivals.tokens, "slots"),
    (noise_scale, controls.noise, "slots"),
    (dropped_slot, drop, "checkpoint"),
    (bits_count, rounding.bits, "checkpoint"),
    (scale_gate_of, scale_gate, "checkpoint"),
]


def _with_parameter(
    inject: Callable[[ConditionInputs, Any], Injection], parameter: Any, inputs: ConditionInputs
) -> Injection:
    return inject(inputs, parameter)


def get_condition(name: str) -> Condition:
    """Return a condition by name; `text-16`, `drop-1` and `scale_gate=0.5` carry their parameter in it.

    Raises:
        UserError: there is no such condition.
    """
    added = plugins.installed(plugins.CONDITIONS)
    if name in CONDITIONS or name in added:
        found = plugins.load(plugins.CONDITIONS, CONDITIONS, name)
        if not isinstance(found, Condition):
            raise plugins.plugin_error(
                plugins.CONDITIONS, name, f"is {found!r:.60}, which is not an m2ray.api.Condition"
            )
        return found
    for read, inject, depends_on in _WITH_PARAMETER:
        if (parameter := read(name)) is not None:
            return Condition(partial(_with_parameter, inject, parameter), depends_on)
    known = ", ".join([*CONDITIONS, *added, *EXAMPLES])
    raise UserError(f"--conditions: {name!r} does not exist; use some of {known}")


def check_runnable(name: str, episodes: Sequence[AnyEpisode], k: int) -> None:
    """Refuse, before anything is trained, a condition that cannot run on these episodes or with k slots.

    Raises:
        UserError: as the condition itself would.
    """
    if (slot := dropped_slot(name)) is not None:
        _check_slot(slot, k)
    count = facts_count(name)
    for episode in episodes:
        if count is not None:
            rivals.first_facts(episode, count)
        elif name == "near":
            change_message(episode)


def build_injection(name: str, inputs: ConditionInputs) -> Injection:
    """Return what B receives under a condition.

    Raises:
        UserError: there is no such condition, or a plugin's fails or returns something else.
    """
    condition = get_condition(name)
    with plugins.blame(plugins.CONDITIONS, name):
        injection = condition.inject(inputs)
        given = injection.texts if injection.prefixes is None else injection.prefixes
        if given is None or len(given) != len(inputs.episodes):
            raise ValueError("an Injection holds a text or a prefix for each episode; this one does not")
    return injection
