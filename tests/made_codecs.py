"""Untrained codecs with the record of a training that is about to begin."""

from m2ray.codec.codec import Codec
from m2ray.codec.untrained import untrained_codec
from m2ray.config.trial import TrialConfig
from m2ray.receiver.receiver import Receiver


def make_codec(receiver: Receiver, seed: int = 0, **settings: object) -> Codec:
    """Return a codec with the weights that training with this seed starts from."""
    losses = {"ce": {}, **({"commitment": {}} if settings.get("bottleneck") == "vq" else {})}
    tree = {"codec": {"width": 32, "layers": 1, **settings}, "losses": losses}
    trial = TrialConfig.model_validate(tree)
    codec = untrained_codec(trial, seed, receiver).eval()
    codec.record |= {"trial": trial.model_dump(), "seed": seed}
    return codec
