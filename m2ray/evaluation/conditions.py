"""The ablation conditions: what B receives. One small function each, in one table.

All conditions use the same episodes in the same order with the same decoding, so all comparisons are paired. To
add a condition, name it in `m2ray.config.condition_names` and write its function here.

Shapes: E episodes, K slots, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.config.condition_names import BUILT_IN, DependsOn, scale_gate_of, text_limit
from m2ray.receiver.layout import Place
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.requests import EncodedMessage
from m2ray.tasks.episodes import Episode
from m2ray.util import plugins
from m2ray.util.errors import UserError

SHIFT = 17  # shuffle takes the message of the episode 17 places on, as the reference attempt does
STREAM_STRIDE = 1_000_003  # keeps the noise of different conditions apart


class Injection(NamedTuple):
    """B's input: a text per episode in the message's place, or vectors [K, D] per episode in open slots."""

    texts: list[str] | None
    prefixes: Sequence[Tensor] | None
    place: Place
    partners: list[int] | None = None  # index of the episode whose message was used, per episode


@dataclass
class ConditionInputs:
    """Inputs that a condition can use. `codec` and `constant` are None where no requested condition needs them."""

    receiver: Receiver
    episodes: Sequence[Episode]
    codec: Codec | None
    constant: Codec | None
    batch_size: int

    @property
    def tested_codec(self) -> Codec:
        """The codec under test."""
        assert self.codec is not None, "this condition needs a codec"
        return self.codec

    @cached_property
    def latents_EKD(self) -> Tensor:
        """The encoder's latents of all messages: the input of `Codec.decode`."""
        codec = self.tested_codec
        return self.encode(lambda messages: codec.encode(messages, codec.config.k))

    @cached_property
    def prefixes_EKD(self) -> Tensor:
        """The codec's prefixes of all messages."""
        codec = self.tested_codec
        return self.encode(lambda messages: codec(messages).prefix_BKD)

    def encode(self, forward: Callable[[EncodedMessage], Tensor]) -> Tensor:
        """Run a function of encoded messages on all messages, in batches, without gradients."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.episodes), self.batch_size):
                batch = self.episodes[start : start + self.batch_size]
                parts.append(forward(self.receiver.encode_messages([episode.message for episode in batch])))
        return torch.cat(parts).detach()  # a view of a parameter keeps its gradient even here

    def noise(self, shape: Sequence[int], stream: int) -> Tensor:
        """Return N(0, 1) noise per episode, [E, *shape], that depends on the episode and the stream only."""
        rows = []
        for episode in self.episodes:
            generator = torch.Generator().manual_seed(stream * STREAM_STRIDE + episode.seed)
            rows.append(torch.randn(*shape, generator=generator))
        return torch.stack(rows).to(self.receiver.device)

    def inject(self, prefixes_EKD: Tensor, partners: list[int] | None = None) -> Injection:
        """Return an injection of prefixes in the place of the tested codec's."""
        return Injection(None, list(prefixes_EKD), self.tested_codec.config.place, partners)


def derangement(episodes: Sequence[Episode], shift: int = SHIFT) -> list[int]:
    """Return whose message each episode gets under `shuffle`: a permutation in which none gets its own content.

    It starts from the message `shift` places on; where that has the same content, two episodes swap.

    Raises:
        UserError: there are too few different messages for any such permutation.
    """
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


# --- conditions with a codec ---------------------------------------------------------------------------------


def normal(inputs: ConditionInputs) -> Injection:
    """Inject the codec's prefix of the right message."""
    return inputs.inject(inputs.prefixes_EKD)


def null(inputs: ConditionInputs) -> Injection:
    """Inject true zeros; not decode(0), which leaks through its bias."""
    return inputs.inject(torch.zeros_like(inputs.prefixes_EKD))


def random(inputs: ConditionInputs) -> Injection:
    """Inject the codec's decode of latents drawn from N(0, 1)."""
    codec = inputs.tested_codec
    latent_EKD = inputs.noise((codec.config.k, codec.width), stream=1)
    with torch.no_grad():
        return inputs.inject(codec.decode(latent_EKD).prefix_BKD)


def shuffle(inputs: ConditionInputs) -> Injection:
    """Inject the codec's prefix of another episode's message."""
    partners = derangement(inputs.episodes)
    return inputs.inject(inputs.prefixes_EKD[partners], partners)


def constant(inputs: ConditionInputs) -> Injection:
    """Inject a trained prefix without content: the ceiling of mere priming."""
    codec = inputs.constant
    assert codec is not None, "the condition constant needs a trained content-free codec"
    prefixes_EKD = inputs.encode(lambda messages: codec(messages).prefix_BKD)
    return Injection(None, list(prefixes_EKD), codec.config.place)


def mean(inputs: ConditionInputs) -> Injection:
    """Inject the mean prefix of the split."""
    prefixes_EKD = inputs.prefixes_EKD
    return inputs.inject(prefixes_EKD.mean(0, keepdim=True).expand_as(prefixes_EKD))


def matched(inputs: ConditionInputs) -> Injection:
    """Inject Gaussian prefixes with the mean and covariance of the split's prefixes.

    mean + (w / sqrt(E)) (X - mean), w ~ N(0, I_E), has exactly the sample covariance of X and needs no
    factorization of it.
    """
    prefixes_EKD = inputs.prefixes_EKD
    mean_KD = prefixes_EKD.mean(0)
    weights_EE = inputs.noise((len(prefixes_EKD),), stream=2) / len(prefixes_EKD) ** 0.5
    return inputs.inject(mean_KD + torch.einsum("ef,fkd->ekd", weights_EE, prefixes_EKD - mean_KD))


def scale_gate(inputs: ConditionInputs, gate: float) -> Injection:
    """Inject the right message's prefix at another norm: `gate` times the mean token-embedding norm."""
    with torch.no_grad():
        return inputs.inject(inputs.tested_codec.decode(inputs.latents_EKD, gate).prefix_BKD)


# --- conditions without a codec ------------------------------------------------------------------------------


def p0(inputs: ConditionInputs) -> Injection:
    """Inject nothing: no slots, no message."""
    return Injection([""] * len(inputs.episodes), None, "message")


def p1(inputs: ConditionInputs) -> Injection:
    """Inject the full message as text."""
    return Injection([episode.message for episode in inputs.episodes], None, "message")


def identity(inputs: ConditionInputs) -> Injection:
    """Inject the message's own token embeddings, as many as it has tokens: must equal P1."""
    receiver = inputs.receiver
    rows = [receiver.tokens(episode.message) for episode in inputs.episodes]
    vectors = [receiver.embedding_ND[torch.tensor(row, device=receiver.device)] for row in rows]
    return Injection(None, vectors, "message")


def text_bytes(inputs: ConditionInputs, limit: int) -> Injection:
    """Inject the message as text, cut to its first `limit` bytes: a rival of the same size."""
    cut = [episode.message.encode()[:limit].decode(errors="ignore") for episode in inputs.episodes]
    return Injection(cut, None, "message")


# --- by name -------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """A condition, and what its rows depend on."""

    inject: Callable[[ConditionInputs], Injection]
    depends_on: DependsOn


_INJECT: dict[str, Callable[[ConditionInputs], Injection]] = {
    "normal": normal,
    "null": null,
    "random": random,
    "shuffle": shuffle,
    "P0": p0,
    "P1": p1,
    "identity": identity,
    "constant": constant,
    "mean": mean,
    "matched": matched,
}
CONDITIONS = {name: Condition(_INJECT[name], depends_on) for name, depends_on in BUILT_IN.items()}


def get_condition(name: str) -> Condition:
    """Return a condition by name; `text-16` and `scale_gate=0.5` carry their parameter in it.

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
    if (limit := text_limit(name)) is not None:
        return Condition(lambda inputs: text_bytes(inputs, limit), "receiver")
    if (gate := scale_gate_of(name)) is not None:
        return Condition(lambda inputs: scale_gate(inputs, gate), "checkpoint")
    known = ", ".join([*CONDITIONS, *added])
    raise UserError(f"--conditions: {name!r} does not exist; use some of {known}, text-16, scale_gate=0.5")


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
