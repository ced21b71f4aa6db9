"""Tiny random models of every causal LM that transformers knows, saved as receivers that read level `easy`.

Their weights are larger than those of a fresh model: attention, experts and recurrent states then matter for what
they predict, and a fault in any of them is seen in the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from m2ray.receiver.loading import EMBEDDED

MINI = EMBEDDED / "mini"  # its tokenizer has 21 tokens
LAYERS, WINDOW = 4, 30
# By key of a configuration, whatever the type. A type gets the keys that it has.
SIZES: dict[str, Any] = {
    "vocab_size": 21, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "decoder_start_token_id": 0,
    "cls_token_id": 0, "sep_token_id": 0, "vocab_size_per_layer_input": 21, "unpadded_vocab_size": 21,
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "emb_dim": 64, "embedding_size": 64,
    "word_embed_proj_dim": 64, "lru_width": 64,
    "intermediate_size": 96, "ffn_dim": 96, "n_inner": 96, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "ffn_hidden_size": 96, "d_inner": 96, "dim_ff": 96, "intermediate_size_mlp": 96,
    "num_hidden_layers": LAYERS, "n_layer": LAYERS, "n_layers": LAYERS, "num_layers": LAYERS,
    "decoder_layers": LAYERS, "num_decoder_layers": LAYERS, "encoder_layers": 1, "num_encoder_layers": 1,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 32, "dim_head": 16, "d_head": 16,
    "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512,
    "sliding_window": WINDOW, "attention_window_size": WINDOW, "window_size": WINDOW,
    "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "moe_k": 2,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "num_expert_group": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "query_pre_attn_scalar": 16, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "state_size": 8, "time_step_rank": 4, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8,
    "mamba_n_groups": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_heads": 4, "linear_head_dim": 16,
    "is_decoder": True,
}  # fmt: skip
# Keys and values of low rank: as many of their heads as of queries, whose sizes are those of its parts.
_LATENT = {"num_key_value_heads": 4, "head_dim": None}
_CONVOLUTIONS = {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)}
_INDEXED = {
    "indexer_budget": 16, "indexer_compress_ratio": 4, "indexer_head_dim": 16, "indexer_n_heads": 2,
    "indexer_kv_heads": 1, "hc_lowrank": 8, "ple_layer_ids": [1], "ple_embed_dim": 64, "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 4,
}  # fmt: skip
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_ZAMBA = {
    "num_hidden_layers": 6,
    "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 128,
    "attention_head_dim": 32,
}
# What a type needs beside that; None leaves a key to the type's own default.
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "youtu"), _LATENT),
    **dict.fromkeys(("lfm2", "lfm2_moe"), _CONVOLUTIONS),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _INDEXED),
    "bamba": {"attn_layer_indices": [1, 3]},
    "big_bird": {"attention_type": "original_full"},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {
        "num_key_value_heads": 4, "head_dim": 24, "per_layer_config": {}, "index_topk": 8, "index_n_heads": 2,
        "index_head_dim": 16,
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "intermediate_size": [96] * LAYERS,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.0] * LAYERS,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gptj": {"rotary_dim": 8},
    "longcat_flash": {
        "num_key_value_heads": 4, "head_dim": 8, "moe_topk": 2, "zero_expert_num": 2, "expert_ffn_hidden_size": 32
    },
    "mamba2": {"num_heads": 8},
    "reformer": {
        "axial_pos_shape": (16, 32), "axial_pos_embds_dim": (32, 32), "attention_head_size": 16,
        "attn_layers": ["local", "lsh"] * (LAYERS // 2), "feed_forward_size": 96,
    },
    "rembert": {"input_embedding_size": 64, "output_embedding_size": 32},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {**_ZAMBA, "mamba_dt_rank": 4},
    "zamba2": {**_ZAMBA, "mamba_headdim": 16, "n_mamba_heads": 8, "num_key_value_heads": 4},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
# Types of which no model is built, and why.
NOT_BUILT = {
    "blt": "reads bytes in patches, by tables of millions of rows",
    "dots3_note": "no sizes of its vision part were found that fit; its text part is `dots3_note_text`",
    "gemma3n": "its vision part needs the package timm; its text part is `gemma3n_text`",
    "gemma4_assistant": "drafts for another model and cannot run alone",
    "gemma4_unified_assistant": "drafts for another model and cannot run alone",
    "musicgen": "writes audio, four codebooks at a time",
    "musicgen_melody": "writes audio, four codebooks at a time",
}


def causal_types() -> list[str]:
    """Return the model types that transformers has a causal LM for."""
    return sorted(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """Return a type's configuration in tiny sizes; of a composite type, its text part is changed."""
    kind = type(transformers.AutoConfig.for_model(model_type))
    whole = kind()
    text = whole.get_text_config()
    known = text.to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    if kinds := list(dict.fromkeys(known.get("layer_types") or [])):
        sizes["layer_types"] = (kinds * LAYERS)[:LAYERS]
    sizes |= OVERRIDES.get(model_type, {}) | changes
    sizes = {key: value for key, value in sizes.items() if value is not None}
    if text is whole:
        return kind(**sizes)
    part = next(name for name, value in vars(whole).items() if value is text)
    own = {key: value for key, value in sizes.items() if key in kind.sub_configs}
    return kind(**own, **{part: {key: value for key, value in sizes.items() if key not in own}})


def tiny_model(model_type: str, **changes: Any) -> Any:
    """Return a tiny random model of a type, in float32."""
    return _model(tiny_config(model_type, **changes))


def tiny_receiver(model_type: str, folder: Path) -> Any:
    """Save a tiny random model of a type as a receiver, and return the model.

    Its config.json is that of the whole, where the causal LM of a composite type has the text part's only.
    """
    config = tiny_config(model_type)
    model = _model(config)
    save_receiver(model, folder)
    if type(model.config) is not type(config):
        config.save_pretrained(folder)
    return model


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    return enliven(transformers.AutoModelForCausalLM.from_config(config).float())


def enliven(model: Any) -> Any:
    """Return a model with random weights large enough that all its parts matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "A_log" not in name:
                embeds = "embed" in name or "wte" in name
                weight.normal_(0, 0.2 if embeds else weight.shape[-1] ** -0.5)
            elif not weight.any():
                weight.normal_(0, 0.2)  # biases, and scales that begin at zero
    return model.eval()


def save_receiver(
    model: Any, folder: Path, style: str = "compact", settings: Mapping[str, Any] | None = None
) -> Path:
    """Save a model with the tokenizer of `mini` as a receiver.

    Args:
        model: The model.
        folder: Where it is saved.
        style: The prompt style on its card.
        settings: Changes of its config.json.
    """
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast.from_pretrained(MINI).save_pretrained(folder)
    (folder / "m2ray.json").write_text(json.dumps({"style": style}))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(settings or {})))
    return folder
