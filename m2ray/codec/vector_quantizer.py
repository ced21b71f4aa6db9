"""Vector quantizer: the codec's VQ bottleneck.

Shapes: B messages, K slots, D width of the receiver, G groups of a slot's vector, C codes of a codebook, E entries
of a code (D / G), M vectors of the global batch (B * K of all workers).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from m2ray.config.trial import CodecConfig
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError

Gather = Callable[[Tensor], Tensor]  # returns a tensor's rows from all workers


class VectorQuantizer(nn.Module):
    """Vector quantizer whose codebooks follow the latents by moving averages.

    See van den Oord et al. 2017, appendix A.1. A code that has not been used for a while moves to a latent of the
    batch.
    """

    DECAY, DEAD = 0.97, 0.01  # of the moving averages; share of the mean use below which a code is dead

    def __init__(self, config: CodecConfig, receiver: Receiver) -> None:
        super().__init__()
        width = receiver.channel.width
        if width % config.groups:
            raise UserError(f"codec.groups: {config.groups} does not divide the receiver's width {width}")
        shape = (config.groups, config.codebook, width // config.groups)
        # The names of buffers are keys of saved checkpoints: do not rename them.
        self.register_buffer("codes_GCE", torch.randn(shape))
        self.register_buffer("count_GC", torch.zeros(shape[:2]))
        self.codes_GCE: Tensor
        self.count_GC: Tensor

    def forward(self, latent_BKD: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
        """Return the nearest codes [B, K, D], their numbers [B, K, G] and soft assignments [B, K, G, C].

        In training mode the codebooks are updated first.
        """
        with torch.autocast(latent_BKD.device.type, enabled=False):  # distances and moving averages are float32
            return self._quantize(latent_BKD.float(), gather)

    def _quantize(self, latent_BKD: Tensor, gather: Gather) -> tuple[Tensor, Tensor, Tensor]:
        parts_BKGE = latent_BKD.reshape(*latent_BKD.shape[:2], len(self.codes_GCE), -1)
        if self.training:
            with torch.no_grad():
                self._update_codebooks(gather(parts_BKGE.detach()).flatten(0, 1))
        similarity_BKGC = torch.einsum("bkge,gce->bkgc", parts_BKGE, self.codes_GCE)
        distance_BKGC = (
            parts_BKGE.square().sum(-1, keepdim=True) - 2 * similarity_BKGC + self.codes_GCE.square().sum(-1)
        )
        codes_BKG = distance_BKGC.argmin(dim=-1)
        groups_G = torch.arange(len(self.codes_GCE), device=codes_BKG.device)
        quantized_BKD = self.codes_GCE[groups_G, codes_BKG].flatten(2)
        spread = distance_BKGC.detach().mean().clamp(min=1e-6)
        probs_BKGC = torch.softmax(-distance_BKGC / (0.1 * spread), dim=-1)
        return quantized_BKD, codes_BKG, probs_BKGC

    def _update_codebooks(self, parts_MGE: Tensor) -> None:
        if not bool(self.count_GC.any()):
            self._start_on(parts_MGE)
        distance_GMC = torch.cdist(parts_MGE.transpose(0, 1), self.codes_GCE)
        hits_GMC = F.one_hot(distance_GMC.argmin(-1), self.codes_GCE.shape[1]).to(parts_MGE)
        hits_GC = hits_GMC.sum(1)
        sums_GCE = torch.einsum("gmc,mge->gce", hits_GMC, parts_MGE)
        rate_GC1 = ((1 - self.DECAY) * hits_GC / self.count_GC.clamp(min=1e-3)).clamp(max=1)[..., None]
        means_GCE = sums_GCE / hits_GC.clamp(min=1)[..., None]
        self.codes_GCE.lerp_(means_GCE, rate_GC1 * (hits_GC > 0)[..., None])
        self.count_GC.mul_(self.DECAY).add_(hits_GC, alpha=1 - self.DECAY)
        self._revive_dead_codes(parts_MGE, hits_GC)

    def _start_on(self, parts_MGE: Tensor) -> None:
        """Move all codes to vectors of the first batch, plus a little noise."""
        picks_C = torch.arange(self.codes_GCE.shape[1], device=parts_MGE.device) % len(parts_MGE)
        noise_GCE = torch.randn(self.codes_GCE.shape, generator=_generator(0)).to(parts_MGE)
        self.codes_GCE.copy_(parts_MGE[picks_C].transpose(0, 1) + 0.01 * parts_MGE.std() * noise_GCE)
        self.count_GC.fill_(1.0)

    def _revive_dead_codes(self, parts_MGE: Tensor, hits_GC: Tensor) -> None:
        dead_GC = self.count_GC < self.DEAD * hits_GC.mean()
        if bool(dead_GC.any()):
            # Every worker has the same seed and the gathered batch, so that all replicas stay equal.
            generator = _generator(int(1e6 * float(self.count_GC.sum())))
            picks_GC = torch.randint(len(parts_MGE), dead_GC.shape, generator=generator).to(parts_MGE.device)
            groups_G1 = torch.arange(len(picks_GC), device=picks_GC.device)[:, None]
            self.codes_GCE.copy_(torch.where(dead_GC[..., None], parts_MGE[picks_GC, groups_G1], self.codes_GCE))
            self.count_GC.masked_fill_(dead_GC, float(hits_GC.mean()))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
