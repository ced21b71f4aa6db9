"""Tensors on disk: safetensors with a JSON header, written atomically. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import replace_atomically


def save_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Save tensors with a JSON header, atomically."""
    # Tied weights share memory, which safetensors refuses, so each is copied.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    header = {"m2ray": json.dumps(meta)}
    replace_atomically(path, lambda temporary: temporary.write_bytes(save(copies, metadata=header)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header that `save_tensors` saved.

    Raises:
        UserError: missing, truncated, or not written by this program.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["m2ray"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: truncated or not a checkpoint of m2ray ({describe_error(error)}); remake it"
        ) from None


def training_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of module and optimizer as one flat dictionary of tensors."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


def restore_training(tensors: dict[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the output of `training_tensors` into module and optimizer."""
    prefix = "module."
    module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
