"""LoRA on a receiver: put on, kept as a small file, and added to the base for good."""

from __future__ import annotations

from pathlib import Path

import torch

from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.util.errors import UserError

WEIGHT_BYTES = 2  # of a kept weight: bfloat16


HEADER_BYTES = 250_000  # of a safetensors file, at most: names and places of its tensors


def fresh(base: str) -> Receiver:
    """A receiver of one's own: what `load_receiver` gives is shared by all who ask for it."""
    return load_receiver.__wrapped__(base)


def adapted(base: str, rank: int, seed: int) -> Receiver:
    """A pretrained receiver with LoRA on its attention and feed-forward weights; rank 0 trains all weights."""
    receiver = fresh(base)
    if rank:
        import peft

        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        receiver.model = peft.get_peft_model(receiver.model, config)
    return receiver


def largest_rank(base: str, limit_bytes: int) -> int:
    """The largest rank whose adapter's file stays within a limit.

    Raises:
        UserError: not even rank 1 does.
    """
    receiver = load_receiver(base)
    head = receiver.model.get_output_embeddings()
    layers = [m for m in receiver.model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    a_rank = WEIGHT_BYTES * sum(layer.in_features + layer.out_features for layer in layers)
    rank = (limit_bytes - HEADER_BYTES) // a_rank
    if rank < 1:
        raise UserError(f"--base {base}: an adapter of rank 1 is over {limit_bytes:,} bytes; use a smaller base")
    return rank


def save_adapter(receiver: Receiver, base: str, folder: Path) -> None:
    """Keep the LoRA weights, in bfloat16, in PEFT's format."""
    weights = {name: tensor.bfloat16() for name, tensor in receiver.model.state_dict().items() if "lora_" in name}
    receiver.model.peft_config["default"].base_model_name_or_path = base
    # False: embeddings are not trained, and looking whether they were asks the model hub.
    receiver.model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)


def merged(base: str, adapter: Path) -> Receiver:
    """Base plus adapter. Summed in float64 and rounded once, so the same weights come out on any device."""
    import peft
    from peft.tuners.lora import LoraLayer

    receiver = fresh(base)
    dtype = receiver.dtype
    model = peft.PeftModel.from_pretrained(receiver.model, adapter)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.double()
            module.merge()
            module.to(dtype)
    receiver.model = model.unload().eval().requires_grad_(False)
    return receiver
