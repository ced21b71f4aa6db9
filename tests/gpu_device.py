"""The device of tests marked `gpu`: the GPU, or the CPU where there is none, so that they never go stale."""

import pytest
import torch


def gpu_or_cpu() -> str:
    """Return the device."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cuda_or_skip() -> None:
    """Skip a test that needs a GPU's own memory."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
