"""A receiver's digest: all that decides its numbers and its prompts, in 16 hex digits.

Rows, codecs, caches and the confirm ledger name a receiver by it. It covers the weights as their file holds them,
the model's configuration, the tokenizer and what it makes of some texts, the prompt style with its chat template,
and the end tokens. It does not cover the numeric type that the weights are converted to when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m2ray.receiver.layout import PromptBuilder

# Digests under which receivers were published when a digest covered weights, vocabulary and style only, by today's
# digest. They are kept, so that published codecs and rows still name their receivers.
PUBLISHED = {
    "343076a74b40d69b": "0b33fa035e9b658a",  # mini
    "1c7084d1f690b6f0": "f36b7aaf0d1a88c0",  # mini-arithmetic
    "f7e029941ffddee2": "fd12390aa3c83f4b",  # qwen2.5-coder-0.5b, from data wheels
}
# Keys of config.json that no number depends on, or that the loaded class already fixes.
NOT_IN_NUMBERS = {
    "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
_PROBES = (
    "x1 + x2 = 3; x4 != 1",
    " Two  spaces,\ttab\nline",
    "Überfülle 1234567 naïve 日本語 🙂",
    "don't re-enter U.S.A.",
)


class Source(NamedTuple):
    """What a receiver was made from.

    Attributes:
        config: The model's config.json.
        tokenizer: The tokenizer's tokenizer.json; empty for one without.
        weights: Returns the weights by name, in the numeric type of their file.
    """

    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    weights: Callable[[], Mapping[str, Tensor]]


def source_of(model: Any, tokenizer: Any) -> Source:
    """Return the source of a model that was made in memory."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    return Source(model.config.to_diff_dict(), backend, model.state_dict)


def receiver_digest(prompts: PromptBuilder, source: Source) -> str:
    """Return the first 16 hex digits of a SHA-256 of all that decides the receiver's numbers."""
    config = {
        key: value for key, value in source.config.items() if key not in NOT_IN_NUMBERS and value is not None
    }
    probes = [list(prompts.tokenizer(text)["input_ids"]) for text in _PROBES]
    more = [config, source.tokenizer, probes, sorted(prompts.end_ids), prompts.opening_ids]
    text = weights_digest(prompts, source) + json.dumps(more, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return PUBLISHED.get(digest, digest)


def weights_digest(prompts: PromptBuilder, source: Source) -> str:
    """Return the first 16 hex digits of the SHA-256 of weights, vocabulary and prompt style."""
    sha = hashlib.sha256(repr(prompts.style).encode())
    if prompts.style.chat:
        sha.update(str(prompts.tokenizer.chat_template).encode())
    sha.update(json.dumps(prompts.tokenizer.get_vocab(), sort_keys=True).encode())
    for name, tensor in sorted(source.weights().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]
