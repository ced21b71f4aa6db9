"""Tiny randomly initialised Qwen2 with a real byte-level BPE tokenizer, loaded from a folder like any model."""

import os
import uuid
from pathlib import Path

import pytest
import torch
import transformers
from random_receiver import chat_tokenizer

from m2ray.evaluation.confirm_ledger import FOLDER_VARIABLE
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level

os.environ.pop("COLUMNS", None)  # readline, which pytest imports, exports it to the processes of a run
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the processes of a run share its cores


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """Save a model with Qwen2.5's architecture, two layers of width 32, in Hugging Face format."""
    corpus = [draw_episode(level(name), s, "train").message for name in ("easy", "lookup") for s in range(50)]
    fast = chat_tokenizer(corpus, 320)
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        initializer_range=0.2,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _ledgers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep the looks of tests out of the user's ledger, those of processes that they start included."""
    folder = tmp_path_factory.mktemp("ledgers")
    os.environ[FOLDER_VARIABLE] = str(folder / "of-fixtures")
    return folder


@pytest.fixture(autouse=True)
def _ledger(_ledgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test with an empty ledger."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(_ledgers / uuid.uuid4().hex))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A receiver of the size of `tiny` with other weights."""
    return save_tiny(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Receiver:
    return load_receiver(str(tiny_folder))
