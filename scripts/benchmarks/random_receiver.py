"""Receivers of the sizes of Qwen2.5, with random weights: speed and memory do not depend on what a model knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from m2ray.receiver.prompts import STYLES
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level

# Width, width of the MLP, layers, query heads, key-value heads, vocabulary.
SHAPES = {
    "qwen2.5-0.5b": (896, 4864, 24, 14, 2, 151_936),
    "qwen2.5-3b": (2048, 11_008, 36, 16, 2, 151_936),
    "tiny": (64, 128, 2, 4, 2, 1_024),
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LEVELS = ("easy", "lookup-6x10")


def prompts() -> list[str]:
    """Return prompts to train a tokenizer on, so that they are as long in its tokens as in those of Qwen."""
    chat = STYLES["chat"]
    texts = [chat.system]
    for name in LEVELS:
        for episode in episodes(level(name), range(200), "train"):
            names = {"names": ", ".join(episode.level.names), "top": episode.level.domain - 1}
            texts.append(chat.user.format(message=episode.message, context=episode.context, **names))
    return texts


def chat_tokenizer(texts: Sequence[str], vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on some texts, with a chat template as Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT
    return fast


def save_random_receiver(shape: str, folder: Path) -> Path:
    """Save a model of a size in `SHAPES` in bfloat16, unless the folder holds one; return the folder."""
    if (folder / "tokenizer.json").is_file():
        return folder
    width, mlp, layers, heads, kv_heads, vocabulary = SHAPES[shape]
    tokenizer = chat_tokenizer(prompts(), 1_000)
    config = transformers.Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.Qwen2ForCausalLM(config)
    model.to("cpu", torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # last: marks the folder as complete
    return folder
