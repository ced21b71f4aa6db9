"""Load receivers by name: embedded, fetched, from folders or the hub. Once per process, never unpickled."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import cached

from m2ray.receiver.prompts import CARD, STYLES
from m2ray.util.errors import UserError, describe_error
from m2ray.util.files import cache_root, file_digest

if TYPE_CHECKING:
    import torch

    from m2ray.config.trial import TrialConfig
    from m2ray.receiver.receiver import Receiver  # imports torch as well

EMBEDDED = Path(__file__).parent / "embedded"
COMPUTED = ("rotary_emb.inv_freq", "masked_bias", "attn.bias", "attention.bias", "position_ids", "position_bias")
OLD_TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
OWN_CODE = "comes with its own code, which is never run; use a model that transformers supports"


def default_device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    import torch  # takes seconds, which commands that only read a configuration need not wait for

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_hub_name(name: str) -> bool:
    """Return whether a name can be one on the model hub, OWNER/NAME, rather than a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def resolve_receiver(name: str) -> str:
    """Return where a receiver's files are: a folder for a short name, else the name as given.

    Raises:
        UserError: the name looks like a path and there is no such folder.
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
    """Return the folder in the user's cache that `python -m m2ray.fetch` writes to."""
    return cache_root() / "receivers"


_Request = tuple[str, str | None, str | None]  # the arguments of `load_receiver`
_receivers: dict[_Request, Receiver] = {}  # of this process


def _request(name: str, device: str | None = None, dtype: str | None = None) -> _Request:
    return name, device, dtype


@cached(_receivers, key=_request)
def load_receiver(name: str, device: str | None = None, dtype: str | None = None) -> Receiver:
    """Load a frozen receiver, once per process and numeric type.

    Args:
        name: `mini`, a fetched receiver's short name, a folder, or a hub name.
        device: Default: the accelerator where there is one.
        dtype: float32, bfloat16, float16, or auto for what the file holds. Default: bfloat16 on an accelerator, on
            a CPU the fastest (`m2ray.receiver.model.numeric_type`).

    Raises:
        UserError: missing, unreadable, incomplete, not a causal LM, or no way of running it gives its own numbers.
            Code that comes with a model is never run.
    """
    # Imported here: torch and transformers take seconds, and receivers are named long before they are loaded.
    from m2ray.receiver.conformance.kept import use_tested_ways
    from m2ray.receiver.model.numeric_type import keeps_its_type

    receiver = use_tested_ways(load_unchecked(name, device, dtype))
    settings = _read_object(Path(resolve_receiver(name)) / "config.json")
    _receivers.setdefault((name, device, receiver.dtype_name), receiver)
    if receiver.dtype_name == settings.get("dtype", settings.get("torch_dtype")):
        _receivers.setdefault((name, device, "auto"), receiver)
        if receiver.device.type == "cpu" and keeps_its_type(receiver.model):
            _receivers.setdefault((name, device, None), receiver)
    return receiver


def load_trial_receiver(trial: TrialConfig) -> Receiver:
    """Load the receiver of a configuration, in the numeric type that it names; see `load_receiver`."""
    return load_receiver(trial.receiver, dtype=trial.receiver_dtype)


def faster_type(name: str, receiver: Receiver) -> str | None:
    """Return the numeric type in which this CPU would run a receiver faster than in that of its file.

    None where there is none, on an accelerator, and if the receiver runs in another type than its file's.
    """
    from m2ray.receiver.model.numeric_type import fastest_type  # see `load_receiver`

    config = _read_object(Path(resolve_receiver(name)) / "config.json")
    in_own = receiver.dtype_name == config.get("dtype", config.get("torch_dtype"))
    if receiver.device.type != "cpu" or not in_own:
        return None
    return None if (found := fastest_type(config, receiver.model)) == receiver.dtype_name else found


def load_unchecked(name: str, device: str | None = None, dtype: str | None = None) -> Receiver:
    """Load a receiver that is run in a slow way, exact for any causal LM; arguments as `load_receiver`."""
    import torch  # see `load_receiver`

    from m2ray.receiver.digest import Source
    from m2ray.receiver.model.numeric_type import fastest_type, kept_type, type_name
    from m2ray.receiver.receiver import Receiver  # these import torch as well

    path = resolve_receiver(name)
    target = torch.device(device) if device else default_device()
    if target.type == "cpu":
        # Query heads then share keys and values. Transformers would copy them for each head wherever there is a
        # mask, because accelerators have no fast kernel for that; the CPU has one, with the same result.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    settings = _read_object(Path(path) / "config.json")
    if "auto_map" in settings and settings.get("model_type") not in _causal_classes():
        raise UserError(f"receiver {name}: config.json: auto_map: {OWN_CODE}")
    fastest = dtype is None and target.type == "cpu"
    kind = dtype or ("bfloat16" if target.type == "cuda" else "auto")
    if fastest and settings:
        kind = kept_type(settings) or kind
    tokenizer, model, report = _from_pretrained(name, path, kind)
    _check_class(name, model)
    _check_complete(name, model, report)
    card = _read_object(Path(path) / CARD)
    style = _style(Path(path) / CARD, card, tokenizer)

    def weights() -> Mapping[str, torch.Tensor]:
        """Return the weights as their file holds them, from where they are loaded again if they were converted."""
        return (model if kind == "auto" else _from_pretrained(name, path, "auto")[1]).state_dict()

    config = settings or _read_object(_file(path, "config.json"))
    if fastest and kind == "auto" and (found := fastest_type(config, model)) != type_name(model.dtype):
        kind = found
        model = _from_pretrained(name, path, kind)[1]
    model.config.return_dict = True
    source = Source(config, _tokenizer_files(path, tokenizer), weights)
    return Receiver(model.to(target), tokenizer, style, name, card, source=source)


def _from_pretrained(name: str, path: str, dtype: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return tokenizer, model and transformers' report of what it loaded."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # Each retry of an unreachable hub logs a warning; the UserError below reports it in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # What the load report warns of is an error here, see `_check_complete`.
    transformers.utils.logging.set_verbosity_error()
    tokenizer_class = _tokenizer_class(path)
    try:
        tokenizer = tokenizer_class.from_pretrained(path, trust_remote_code=False)
        if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            tokenizer.backend_tokenizer.model.dropout = None  # random tokens are for training
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a class raises for a configuration that it cannot build
        raise _load_error(name, describe_error(error)) from None
    return tokenizer, model, report


def _load_error(name: str, cause: str) -> UserError:
    if "trust_remote_code" in cause:
        return UserError(f"receiver {name}: {OWN_CODE}")
    if "connect to" in cause:
        return UserError(
            f"receiver {name}: the model hub does not answer, and the cache has no such model; check the "
            "network and the name, or give a folder"
        )
    return UserError(f"receiver {name}: not loadable as a causal LM ({cause}); check the folder or hub name")


def _check_class(name: str, model: Any) -> None:
    """Refuse a model whose config.json declares another kind of model than a causal LM.

    Old files name classes that transformers does not know, such as LLaMAForCausalLM.
    """
    import transformers

    classes = _causal_classes().values()
    causal = {each for value in classes for each in ([value] if isinstance(value, str) else value)}
    for declared in model.config.architectures or []:
        if declared in {type(model).__name__, *causal}:
            continue
        if hasattr(transformers, declared) or not declared.endswith(("CausalLM", "LMHeadModel")):
            raise UserError(
                f"receiver {name}: config.json: architectures: {declared} is not a causal LM; use one that is"
            )


def _check_complete(name: str, model: Any, report: dict[str, Any]) -> None:
    """Refuse weights that are missing, of another shape, or in the file but not read."""
    unread = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if unread:
        raise UserError(
            f"receiver {name}: {len(unread)} weights are missing or do not have the shape in config.json, "
            f"such as {min(unread)}; fetch or save it again"
        )
    # Old files hold buffers that are computed today, and tied weights twice.
    tied = getattr(model, "_tied_weights_keys", None) or ()
    unused = {key for key in report["unexpected_keys"] if not key.endswith(COMPUTED) and key not in tied}
    if unused:
        raise UserError(
            f"receiver {name}: {type(model).__name__} does not read {len(unused)} weights of its file, such as "
            f"{min(unused)}; set model_type and the number of layers in config.json to the file's own"
        )


def _causal_classes() -> Mapping[str, str | Collection[str]]:
    """Return the model types that transformers has causal LMs for, each with the names of their classes."""
    import transformers

    names: Mapping[str, str | Collection[str]]
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return names


def _file(path: str, file: str) -> Path:
    """Return a receiver's file, in its folder or in the hub's cache; a path that does not exist for none."""
    from transformers.utils.hub import cached_file

    found = cached_file(path, file, _raise_exceptions_for_missing_entries=False)
    return Path(found or Path(path) / file)


def _tokenizer_files(path: str, tokenizer: Any) -> dict[str, Any]:
    """Return what decides a tokenizer, for the digest: its tokenizer.json, else the digests of its older files."""
    whole = _read_object(_file(path, "tokenizer.json"))
    names = sorted({*tokenizer.vocab_files_names.values(), *OLD_TOKENIZERS} - {"tokenizer.json"})
    files = {} if whole else {name: _file(path, name) for name in names}
    return whole or {name: file_digest(file) for name, file in files.items() if file.is_file()}


def _style(file: Path, card: dict[str, Any], tokenizer: Any) -> str:
    """Return the prompt style that the card names, else the one that fits the tokenizer."""
    style: str = card.get("style") or ("chat" if tokenizer.chat_template else "plain")
    if not isinstance(style, str) or style not in STYLES:
        raise UserError(f"{file}: style: {style!r} does not exist; use one of {', '.join(STYLES)}")
    return style


def _read_object(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); fix or remove it") from None
    if not isinstance(data, dict):
        raise UserError(f"{file}: does not hold a JSON object; fix or remove it")
    return data


def _tokenizer_class(path: str) -> Any:
    """Return AutoTokenizer, except for a folder that declares a plain tokenizer.json.

    For some model types, Qwen2 among them, AutoTokenizer overrules that declaration and rebuilds the tokenizer
    with the type's own pre-tokenizer.
    """
    import transformers

    declared = _read_object(Path(path) / "tokenizer_config.json").get("tokenizer_class")
    plain = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
