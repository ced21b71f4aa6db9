"""An encoder, an objective and a condition."""

from torch import nn

from m2ray.api import Condition, Injection, mean_state


class MeanPool(nn.Module):
    """Each slot is a linear map of the mean of the message's token states."""

    def __init__(self, config, receiver):
        super().__init__()
        self.k = config.k
        self.out = nn.Linear(receiver.width, config.k * receiver.channel.width)

    def forward(self, messages, k):
        latent_BF = self.out(mean_state(messages))
        return latent_BF.reshape(len(latent_BF), self.k, -1)


def worst(signals, term):
    """The hardest message of the batch: nats per token of its answer."""
    return signals.nll_B.max()


def first_half(inputs):
    """The prefix of the right message, with zeros in the second half of its slots."""
    prefix_EKD = inputs.prefixes_EKD.clone()
    prefix_EKD[:, prefix_EKD.shape[1] // 2 :] = 0
    return Injection(None, list(prefix_EKD), inputs.tested_codec.config.place)


FIRST_HALF = Condition(first_half, depends_on="checkpoint")
