"""The device of tests marked `gpu`: the GPU, or the CPU where a rehearsal asks for it."""

import os

import pytest
import torch

REHEARSAL = "M2RAY_GPU_TESTS"  # set to cpu: run what can be run there


def device_or_skip() -> str:
    """Return the device; skip the test where there is no GPU and no rehearsal."""
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get(REHEARSAL) == "cpu":
        return "cpu"
    pytest.skip("no CUDA device")


def cuda_or_skip() -> None:
    """Skip a test that needs a GPU's own memory."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
