"""The ablation conditions: what stands in B's slots. One small function each, in one table.

Every condition plays the same episodes in the same order with the same decoding, so all comparisons are paired.

Shapes: E episodes, K slots, D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from m2ray.codec.codec import Codec
from m2ray.receiver.layout import Place
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.requests import EncodedMessage
from m2ray.tasks.episodes import Episode
from m2ray.util import plugins
from m2ray.util.errors import UserError

SHIFT = 17  # the attempt's: the message of the episode 17 places on


class Injection(NamedTuple):
    """What B gets: a text per episode in the message's place, or vectors [K, D] per episode in open slots."""

    texts: list[str] | None
    prefixes: Sequence[Tensor] | None
    place: Place
    partners: list[int] | None = None  # episodes whose message was used, by index


@dataclass
class ConditionInputs:
    """What a condition may draw on. `codec` and `constant` are None where no such condition is asked for."""

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
        """What the codec's encoder makes of all messages: what `Codec.decode` takes."""
        codec = self.tested_codec
        return self.encode(lambda reading: codec.encode(reading, codec.config.k))

    @cached_property
    def prefixes_EKD(self) -> Tensor:
        """The codec's prefixes of all messages."""
        codec = self.tested_codec
        return self.encode(lambda reading: codec(reading).prefix_BKD)

    def encode(self, forward: Callable[[EncodedMessage], Tensor]) -> Tensor:
        """A forward pass over all messages, in batches."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(self.episodes), self.batch_size):
                batch = self.episodes[start : start + self.batch_size]
                parts.append(forward(self.receiver.encode_messages([episode.message for episode in batch])))
        return torch.cat(parts).detach()  # a view of a parameter keeps its gradient even here

    def noise(self, shape: Sequence[int], stream: int) -> Tensor:
        """N(0, 1) per episode, [E, *shape], that depends on the episode and the stream only."""
        rows = []
        for episode in self.episodes:
            generator = torch.Generator().manual_seed(stream * 1_000_003 + episode.seed)
            rows.append(torch.randn(*shape, generator=generator))
        return torch.stack(rows).to(self.receiver.device)


def derangement(episodes: Sequence[Episode], shift: int = SHIFT) -> list[int]:
    """Whose message each episode gets under `shuffle`: a permutation in which nobody gets its own content.

    Starts from the message `shift` places on; where that says the same, two episodes swap.

    Raises:
        UserError: too few different messages for any such permutation.
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
    """Where no swap helps: rare, but a message in free words may match two episodes that differ."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    partner: list[int] = maximum_bipartite_matching(csr_array(allowed), perm_type="column").tolist()
    if min(partner) < 0:
        raise UserError(
            "condition shuffle: too few different messages among the episodes; use more or a larger level"
        )
    return partner


def normal(inputs: ConditionInputs) -> Injection:
    """The codec's prefix of the right message."""
    return Injection(None, list(inputs.prefixes_EKD), inputs.tested_codec.config.place)


def null(inputs: ConditionInputs) -> Injection:
    """True zeros in the slots; not decode(0), whose bias leaks."""
    return Injection(None, list(torch.zeros_like(inputs.prefixes_EKD)), inputs.tested_codec.config.place)


def random(inputs: ConditionInputs) -> Injection:
    """The codec's decode of latents drawn from N(0, 1)."""
    codec = inputs.tested_codec
    latent_EKD = inputs.noise((codec.config.k, codec.width), stream=1)
    with torch.no_grad():
        return Injection(None, list(codec.decode(latent_EKD).prefix_BKD), codec.config.place)


def shuffle(inputs: ConditionInputs) -> Injection:
    """The codec's prefix of another episode's message."""
    partners = derangement(inputs.episodes)
    return Injection(None, list(inputs.prefixes_EKD[partners]), inputs.tested_codec.config.place, partners)


def constant(inputs: ConditionInputs) -> Injection:
    """A trained prefix with no content: the ceiling of mere priming."""
    codec = inputs.constant
    assert codec is not None, "the condition constant needs a trained content-free codec"
    return Injection(None, list(inputs.encode(lambda reading: codec(reading).prefix_BKD)), codec.config.place)


def mean(inputs: ConditionInputs) -> Injection:
    """The mean prefix of the split."""
    prefixes_EKD = inputs.prefixes_EKD
    means_EKD = prefixes_EKD.mean(0, keepdim=True).expand_as(prefixes_EKD)
    return Injection(None, list(means_EKD), inputs.tested_codec.config.place)


def matched(inputs: ConditionInputs) -> Injection:
    """Gaussian prefixes with the mean and covariance of the split's.

    mean + (w / sqrt(E)) (X - mean), w ~ N(0, I_E), has exactly the sample covariance of X and needs no
    factorisation of it.
    """
    prefixes_EKD = inputs.prefixes_EKD
    centre_KD = prefixes_EKD.mean(0)
    weights_EE = inputs.noise((len(prefixes_EKD),), stream=2) / len(prefixes_EKD) ** 0.5
    drawn_EKD = centre_KD + torch.einsum("ef,fkd->ekd", weights_EE, prefixes_EKD - centre_KD)
    return Injection(None, list(drawn_EKD), inputs.tested_codec.config.place)


def p0(inputs: ConditionInputs) -> Injection:
    """No slots, no message."""
    return Injection([""] * len(inputs.episodes), None, "message")


def p1(inputs: ConditionInputs) -> Injection:
    """The full message as text."""
    return Injection([episode.message for episode in inputs.episodes], None, "message")


def identity(inputs: ConditionInputs) -> Injection:
    """The message's own token embeddings in the slots, as many as it has tokens: must equal P1."""
    receiver = inputs.receiver
    rows = [receiver.tokens(episode.message) for episode in inputs.episodes]
    vectors = [receiver.embedding_ND[torch.tensor(row, device=receiver.device)] for row in rows]
    return Injection(None, vectors, "message")


def text_bytes(inputs: ConditionInputs, limit: int) -> Injection:
    """The message as text, cut to its first `limit` bytes: the rate-distortion rival."""
    cut = [episode.message.encode()[:limit].decode(errors="ignore") for episode in inputs.episodes]
    return Injection(cut, None, "message")


def scale_gate(inputs: ConditionInputs, gate: float) -> Injection:
    """The right message's prefix at another scale: `gate` times the mean token-embedding norm."""
    codec = inputs.tested_codec
    with torch.no_grad():
        prefix_EKD = codec.decode(inputs.latents_EKD, gate).prefix_BKD
    return Injection(None, list(prefix_EKD), codec.config.place)


class Condition(NamedTuple):
    """A condition and what its rows depend on: a checkpoint; only its k and place (slots); or neither."""

    inject: Callable[[ConditionInputs], Injection]
    depends_on: Literal["checkpoint", "slots", "receiver"]


CONDITIONS: dict[str, Condition] = {
    "normal": Condition(normal, "checkpoint"),
    "null": Condition(null, "slots"),
    "random": Condition(random, "checkpoint"),
    "shuffle": Condition(shuffle, "checkpoint"),
    "P0": Condition(p0, "receiver"),
    "P1": Condition(p1, "receiver"),
    "identity": Condition(identity, "receiver"),
    "constant": Condition(constant, "slots"),
    "mean": Condition(mean, "checkpoint"),
    "matched": Condition(matched, "checkpoint"),
}


def get_condition(name: str) -> Condition:
    """A condition by name; `text-16` and `scale_gate=0.5` carry their parameter in it.

    Raises:
        UserError: no such condition.
    """
    added = plugins.installed(plugins.CONDITIONS)
    if name in CONDITIONS or name in added:
        found = plugins.load(plugins.CONDITIONS, CONDITIONS, name)
        if not isinstance(found, Condition):
            raise plugins.plugin_error(
                plugins.CONDITIONS, name, f"is {found!r:.60}, which is no m2ray.conditions.Condition"
            )
        return found
    if cut := re.fullmatch(r"text-([1-9][0-9]{0,17})", name):
        limit = int(cut[1])
        return Condition(lambda inputs: text_bytes(inputs, limit), "receiver")
    scale = re.fullmatch(r"scale_gate=([0-9]{1,20}(\.[0-9]{0,20})?(e[+-]?[0-9]{1,3})?)", name)
    if scale and (gate := float(scale[1])) < float("inf"):
        return Condition(lambda inputs: scale_gate(inputs, gate), "checkpoint")
    known = ", ".join([*CONDITIONS, *added])
    raise UserError(f"--conditions: {name!r} does not exist; use some of {known}, text-16, scale_gate=0.5")


def build_injection(name: str, inputs: ConditionInputs) -> Injection:
    """What B gets under a condition.

    Raises:
        UserError: no such condition, or one of another package breaks down or gives something else.
    """
    kind = get_condition(name)
    with plugins.blame(plugins.CONDITIONS, name):
        injection = kind.inject(inputs)
        given = injection.texts if injection.prefixes is None else injection.prefixes
        if given is None or len(given) != len(inputs.episodes):
            raise ValueError("an Injection holds a text or a prefix for each episode; this one does not")
    return injection
