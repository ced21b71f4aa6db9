"""Small tokenizers that were trained on the prompts, and receivers that read with them."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from m2ray.receiver.prompts import STYLES
from m2ray.receiver.receiver import Receiver

END, BEGIN, TURN_END = "<end>", "<s>", "<turn_end>"
PROMPTS = [style.system + style.user for style in STYLES.values()] * 9
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def bpe(
    chat: str | None = None, opening: bool = False, **special: str | None
) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE: it has tokens for every text.

    Args:
        chat: Its chat template.
        opening: It puts `<s>` before every text.
        special: Special tokens; by default `<end>` is the end token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END, BEGIN, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    if opening:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A",
            pair=f"{BEGIN} $A $B",
            special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))],
        )
    names = {"eos_token": END, **({"bos_token": BEGIN} if opening else {}), **special}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = chat
    return fast


def without_exclamation_mark(**special: str) -> transformers.PreTrainedTokenizerFast:
    """Return a BPE over the characters of the prompts, which have no `!`; it leaves out what it does not know."""
    tokenizer = Tokenizer(models.BPE(**({"unk_token": special["unk_token"]} if special else {})))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END, *special.values()], show_progress=False)
    tokenizer.train_from_iterator([*PROMPTS, *["x1 + x2 = 3; x4 - x3 = 0 2"] * 9], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, **special)


def like_llama_2() -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer that puts a space before every text; newlines are tokens of bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", BEGIN, END, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in PROMPTS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")


def unigram() -> transformers.PreTrainedTokenizerFast:
    """Return a Unigram without `!`, whose token of unknown text only its own file names."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=[END, "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text.replace("!", "") for text in PROMPTS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def receiver(
    tokenizer: transformers.PreTrainedTokenizerFast, style: str = "plain", rows: int | None = None, **settings
) -> Receiver:
    """Return a tiny Llama that reads with a tokenizer.

    Args:
        tokenizer: The tokenizer.
        style: The prompt style.
        rows: Rows of its embedding matrix; by default as many as the tokenizer has tokens.
        settings: Of its generation configuration.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=rows or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return Receiver(model, tokenizer, style, "made", {})
