"""Receivers by name: embedded, fetched, in folders, on the hub. Loaded once a process, never unpickled."""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2ray.receiver.prompts import CARD, STYLES
from m2ray.util.errors import UserError, describe_error

if TYPE_CHECKING:
    import torch

    from m2ray.receiver.receiver import Receiver


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder can be one on the model hub, OWNER/NAME: a path is none."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


EMBEDDED = Path(__file__).parent / "embedded"


OWN_CODE = "comes with code of its own, which is never run; use a model that transformers itself knows"


def default_device() -> torch.device:
    """The accelerator where there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_receiver(name: str) -> str:
    """Where a receiver's files are: an embedded or fetched one by its short name, else the name as given.

    Raises:
        UserError: looks like a path, and is no folder.
    """
    for root in (EMBEDDED, fetched_receivers()):
        if name and "/" not in name and (root / name / "config.json").is_file():
            return str(root / name)
    if Path(name).is_dir():
        return name
    if not is_hub_name(name):
        raise UserError(
            f"receiver {name}: no such folder; give mini, mini-arithmetic, a folder, a hub name such as "
            "Qwen/Qwen2.5-3B-Instruct, or fetch one with python -m m2ray.fetch"
        )
    return name


def fetched_receivers() -> Path:
    """The user's cache of receivers that python -m m2ray.fetch converted."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "m2ray" / "receivers"


@cache
def load_receiver(name: str, device: str | None = None, dtype: str | None = None) -> Receiver:
    """Load a frozen receiver, once per process.

    Args:
        name: `mini`, a fetched receiver's short name, a folder, or a hub name.
        device: Default: the accelerator where there is one.
        dtype: float32, bfloat16 or float16. Default: bfloat16 on an accelerator, on CPU what the file holds.

    Raises:
        UserError: missing, unreadable, incomplete, or not a causal LM. Code that comes with a model is never run.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    from m2ray.receiver.receiver import Receiver

    path = resolve_receiver(name)
    target = torch.device(device) if device else default_device()
    if target.type == "cpu":
        # Query heads then share keys and values where they are. Transformers would copy them for each wherever
        # there is a mask, since accelerators have no fast kernel for that; the CPU's has, and gives the same.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    for file in ("config.json", "tokenizer_config.json"):
        if "auto_map" in _read_object(Path(path) / file):
            raise UserError(f"receiver {name}: {file}: auto_map: {OWN_CODE}")
    kind: Any = getattr(torch, dtype) if dtype else (torch.bfloat16 if target.type == "cuda" else "auto")
    tokenizer_class = _tokenizer_class(path)
    transformers.utils.logging.disable_progress_bar()
    # Each retry at an unreachable hub is a warning; the one line that a user needs is the UserError below.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # What its load report warns of is refused below.
    transformers.utils.logging.set_verbosity_error()
    try:
        tokenizer = tokenizer_class.from_pretrained(path, trust_remote_code=False)
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=kind,
            trust_remote_code=False,
            attn_implementation="sdpa",
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        said = describe_error(error)
        if "trust_remote_code" in said:
            raise UserError(f"receiver {name}: {OWN_CODE}") from None
        if "connect to" in said:
            raise UserError(
                f"receiver {name}: the model hub does not answer, and the cache has no such model; check the "
                "network and the name, or give a folder"
            ) from None
        raise UserError(
            f"receiver {name}: not loadable as a causal LM ({said}); check the folder or hub name"
        ) from None
    declared = model.config.architectures or [type(model).__name__]
    if type(model).__name__ not in declared:
        raise UserError(
            f"receiver {name}: config.json: architectures: {declared[0]} is no causal LM; use one that is"
        )
    unread = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    if unread:
        raise UserError(
            f"receiver {name}: {len(unread)} weights are missing or not of the shape that config.json says, "
            f"{min(unread)} among them; fetch or save it again"
        )
    card_file = Path(path) / CARD
    card = _read_object(card_file)
    style = card.get("style") or ("chat" if tokenizer.chat_template else "plain")
    if style not in STYLES:
        raise UserError(f"{card_file}: style: {style!r} does not exist; use one of {', '.join(STYLES)}")
    return Receiver(model.to(target), tokenizer, style, name, card)


def _read_object(file: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); mend or remove it") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: holds no JSON object; mend or remove it")
    return data


def _tokenizer_class(path: str) -> Any:
    """AutoTokenizer, but for a folder that declares a plain tokenizer.json: for some model types, Qwen2 among
    them, AutoTokenizer overrules that declaration and rebuilds the tokenizer with the type's own word borders.
    """
    import transformers

    declared = _read_object(Path(path) / "tokenizer_config.json").get("tokenizer_class")
    plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
