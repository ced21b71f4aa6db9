"""LoRA on a receiver: added, saved as a small file, and merged into the base."""

from __future__ import annotations

from pathlib import Path

import torch

from m2ray.receiver.conformance.kept import use_tested_ways
from m2ray.receiver.loading import load_receiver, load_unchecked
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError

WEIGHT_BYTES = 2  # of a saved weight: bfloat16
HEADER_BYTES = 250_000  # of a safetensors file, at most: names and positions of its tensors


def load_unshared(name: str) -> Receiver:
    """Load a receiver whose weights may be changed: the one from `load_receiver` is shared by all callers."""
    return use_tested_ways(load_unchecked(name))


def load_with_lora(base: str, rank: int, seed: int) -> Receiver:
    """Load a pretrained receiver to be trained, with LoRA on its attention and feed-forward weights.

    Rank 0 adds no LoRA: all weights are trained.
    """
    receiver = load_unshared(base)
    if rank:
        import peft  # an optional dependency

        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        receiver.set_model(peft.get_peft_model(receiver.model, config), receiver.causal.ways)
    return receiver


def largest_rank(base: str, limit_bytes: int) -> int:
    """Return the largest rank whose adapter file stays within a limit.

    Raises:
        UserError: not even rank 1 does.
    """
    receiver = load_receiver(base)
    head = receiver.model.get_output_embeddings()
    layers = [m for m in receiver.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    rank_bytes = WEIGHT_BYTES * sum(layer.in_features + layer.out_features for layer in layers)
    rank = (limit_bytes - HEADER_BYTES) // rank_bytes
    if rank < 1:
        raise UserError(f"--base {base}: an adapter of rank 1 is over {limit_bytes:,} bytes; use a smaller base")
    return rank


def save_adapter(receiver: Receiver, base: str, folder: Path) -> None:
    """Save the LoRA weights, in bfloat16, in PEFT's format."""
    weights = {name: tensor.bfloat16() for name, tensor in receiver.model.state_dict().items() if "lora_" in name}
    receiver.model.peft_config["default"].base_model_name_or_path = base
    # Embeddings are not trained. By default PEFT would ask the model hub whether they were.
    receiver.model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)


def merge_adapter(base: str, adapter: Path) -> Receiver:
    """Return base plus adapter.

    The sum is taken in float64 and rounded once, so the same weights result on any device.
    """
    import peft  # an optional dependency
    from peft.tuners.lora import LoraLayer

    receiver = load_unshared(base)
    dtype = receiver.dtype
    model = peft.PeftModel.from_pretrained(receiver.model, adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.double()
            module.merge()
            module.to(dtype)
    receiver.set_model(model.unload().eval().requires_grad_(False), receiver.causal.ways)
    return receiver
