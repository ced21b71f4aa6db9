"""Receivers as files: which load, which are refused, what a digest covers, and those in the package."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from m2ray.api import evaluate, judge
from m2ray.codec.codec import Codec
from m2ray.config.task import parse_seeds
from m2ray.config.trial import CodecConfig
from m2ray.receiver.loading import EMBEDDED, load_receiver, resolve_receiver
from m2ray.receiver.prompts import STYLES
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import Episode, draw_episode, episodes
from m2ray.tasks.registry import level
from m2ray.util.errors import UserError

MINI = EMBEDDED / "mini"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny receiver to change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "changed"))


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def change_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, file, {"format": "pt"})


def rename_token(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["never"] = data["model"]["vocab"].pop("~")
    (folder / "tokenizer.json").write_text(json.dumps(data))


def change_tokenizer(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"].update(changes.pop("model", {}))
    file.write_text(json.dumps(data | changes))


def drop_merge(folder: Path) -> None:
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    change_tokenizer(folder, model={"merges": merges[:-1]})


def change_rope(folder: Path) -> None:
    edit(folder / "config.json", rope_parameters={"rope_theta": 100.0, "rope_type": "default"})


def end_otherwise(folder: Path) -> None:
    ends = [0, json.loads((folder / "config.json").read_text())["eos_token_id"]]
    edit(folder / "generation_config.json", eos_token_id=ends)


# --- loading ---


def test_short_names_folders_and_hub_names_resolve(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = tmp_path / "m2ray" / "receivers" / "fetched-one"
    fetched.mkdir(parents=True)
    with pytest.raises(UserError, match=r"fetched-one: no such folder.*python -m m2ray\.fetch$"):
        resolve_receiver("fetched-one")
    (fetched / "config.json").write_text("{}")
    assert resolve_receiver("fetched-one") == str(fetched)
    assert resolve_receiver("mini") == str(MINI)
    assert resolve_receiver(str(tmp_path)) == str(tmp_path)
    assert resolve_receiver("Qwen/Qwen2.5-3B-Instruct") == "Qwen/Qwen2.5-3B-Instruct"


def test_a_receiver_is_frozen_in_the_requested_dtype_else_that_of_its_file(tiny_folder):
    as_filed = load_receiver(str(tiny_folder), device="cpu")
    assert as_filed.dtype == torch.float32
    assert not any(p.requires_grad for p in as_filed.model.parameters())
    assert not as_filed.model.training
    assert load_receiver(str(tiny_folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    assert load_receiver(str(tiny_folder), device="cpu") is as_filed


def test_the_tokenizer_is_the_one_in_the_file(tiny_folder):
    """For some model types AutoTokenizer would split words by its own rules."""
    receiver = load_receiver(str(tiny_folder))
    file = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    for seed in range(50):
        text = draw_episode(level("lookup-6x10"), seed).message
        assert receiver.tokens(text) == file.encode(text, add_special_tokens=False).ids
        assert receiver.tokenizer.decode(receiver.tokens(text)) == text


def test_the_style_is_that_of_the_card_else_chat_where_there_is_a_template_else_plain(folder):
    assert load_receiver(str(folder)).style_name == "chat"
    (folder / "m2ray.json").write_text('{"style": "compact"}')
    load_receiver.cache_clear()
    assert load_receiver(str(folder)).style == STYLES["compact"]
    (folder / "m2ray.json").unlink()
    (folder / "chat_template.jinja").unlink()
    load_receiver.cache_clear()
    plain = load_receiver(str(folder))
    assert plain.style_name == "plain"
    episode = draw_episode(level("easy"), 0)
    before, after = (plain.tokenizer.decode(ids) for ids in plain.prompt_ids(episode))
    assert before.endswith("that satisfy every constraint:\n")
    assert after.startswith(f"; {episode.context}\n")


# --- refused ---


def _bert(folder: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)


def _t5(folder: Path) -> None:
    config = transformers.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def _classifier(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.Qwen2ForSequenceClassification(config).save_pretrained(folder)


def _small_vocabulary(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = 100
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _no_end(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "generation_config.json", eos_token_id=None)
    edit(folder / "config.json", eos_token_id=None)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, "no such folder; give mini, mini-arithmetic, a folder, a hub name"),
    "empty": (_empty, "not loadable as a causal LM"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no file named model\.safetensors"),
    "truncated weights": (_truncated, "not loadable as a causal LM .*incomplete"),
    "cut in the header": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "not loadable .*header"),
    "weights of nothing": (_pickled, r"no file named model\.safetensors"),
    "a layer too few": (
        lambda f: edit(f / "config.json", num_hidden_layers=3, layer_types=None),
        r"12 weights are missing .*model\.layers\.2\.",
    ),
    "another width": (lambda f: edit(f / "config.json", hidden_size=64), "do not have the shape in config.json"),
    "a masked LM": (_bert, r"config\.json: architectures: BertForMaskedLM is not a causal LM; use one that is"),
    "a classifier": (_classifier, "architectures: Qwen2ForSequenceClassification is not a causal LM"),
    "an encoder-decoder": (_t5, "not loadable as a causal LM .*T5Config"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not JSON .*; fix"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "not loadable as a causal LM"),
    "broken tokenizer settings": (
        lambda f: (f / "tokenizer_config.json").write_text("["),
        r"tokenizer_config\.json: not JSON .*; fix or remove it",
    ),
    "no tokenizer": (_no_tokenizer, "its tokenizer knows [01] tokens, its model 270"),
    "another model's tokenizer": (_small_vocabulary, "its tokenizer knows 270 tokens, its model 100"),
    "no end token": (_no_end, r"neither its tokenizer nor its generation_config\.json names an end token"),
    "broken card": (lambda f: (f / "m2ray.json").write_text("{'"), r"m2ray\.json: not JSON .*; fix or remove it"),
    "a card that is a list": (
        lambda f: (f / "m2ray.json").write_text("[]"),
        "m2ray.json: does not hold a JSON object",
    ),
    "unknown style": (
        lambda f: (f / "m2ray.json").write_text('{"style": "chatty"}'),
        r"m2ray\.json: style: 'chatty' does not exist; use one of compact, chat, plain",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_folder_is_one_line_that_says_what_to_fix(folder, fault, capfd):
    spoil, message = BAD[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_receiver(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model_type", ["qwen2", "unheard-of"])
def test_code_in_a_folder_is_never_run(folder, tmp_path, model_type):
    proof = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    auto_map = {
        "AutoConfig": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    edit(folder / "config.json", model_type=model_type, auto_map=auto_map)
    edit(folder / "tokenizer_config.json", auto_map=auto_map)
    if model_type == "qwen2":  # transformers has its own code for it
        assert type(load_receiver(str(folder), device="cpu").model) is transformers.Qwen2ForCausalLM
    else:
        with pytest.raises(UserError, match="comes with its own code, which is never run"):
            load_receiver(str(folder), device="cpu")
    assert not proof.exists()


# --- the digest ---


@pytest.mark.parametrize(
    "change",
    [
        change_weight,
        rename_token,
        lambda f: (f / "m2ray.json").write_text('{"style": "plain"}'),
        lambda f: (f / "chat_template.jinja").write_text((f / "chat_template.jinja").read_text() + " "),
        change_rope,
        lambda f: edit(f / "config.json", rms_norm_eps=1e-3),
        lambda f: edit(f / "config.json", hidden_act="gelu"),
        lambda f: edit(f / "config.json", max_position_embeddings=512),
        drop_merge,
        lambda f: change_tokenizer(f, normalizer={"type": "Lowercase"}),
        end_otherwise,
    ],
    ids=[
        "weight", "vocabulary", "style", "chat template", "rope_theta", "epsilon", "activation", "context",
        "merges", "normalizer", "end tokens",
    ],
)  # fmt: skip
def test_the_digest_changes_with_anything_that_affects_b(folder, tiny, change):
    assert load_receiver(str(folder), device="cpu").digest == tiny.digest
    change(folder)
    load_receiver.cache_clear()
    assert load_receiver(str(folder), device="cpu").digest != tiny.digest


def test_the_digest_covers_the_files_of_a_tokenizer_without_tokenizer_json(folder, tiny, tmp_path):
    tiny.tokenizer.backend_tokenizer.model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    before = load_receiver(str(folder), device="cpu").digest
    merges = (folder / "merges.txt").read_text().splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:-1]) + "\n")
    load_receiver.cache_clear()
    assert load_receiver(str(folder), device="cpu").digest != before


def test_the_digest_does_not_change_with_the_folders_name_or_another_save(folder, tiny, tmp_path):
    again = tmp_path / "again"
    receiver = load_receiver(str(folder), device="cpu")
    receiver.model.save_pretrained(again)
    receiver.tokenizer.save_pretrained(again)
    assert load_receiver(str(again), device="cpu").digest == tiny.digest
    assert re.fullmatch(r"[0-9a-f]{16}", tiny.digest)


def test_the_digest_is_that_of_the_file_whatever_the_dtype_and_settings_without_effect(folder, tiny):
    assert load_receiver(str(folder), device="cpu", dtype="bfloat16").digest == tiny.digest
    edit(folder / "config.json", transformers_version="5.0.0", _name_or_path="elsewhere", use_cache=False)
    load_receiver.cache_clear()
    assert load_receiver(str(folder), device="cpu").digest == tiny.digest


def test_a_receiver_in_memory_has_the_digest_of_its_files(tiny):
    model = transformers.Qwen2ForCausalLM.from_pretrained(tiny.name)
    again = Receiver(model, transformers.PreTrainedTokenizerFast.from_pretrained(tiny.name), "chat", "made", {})
    assert again.digest == tiny.digest


# --- those in the package ---

SHIPPED = ["mini", "mini-arithmetic"]
LARGEST = {"mini": 8 * 2**20, "mini-arithmetic": 2 * 2**20}  # bytes
SOLVED = {"mini": (930, range(330, 450)), "mini-arithmetic": (900, range(10))}  # of 1000: P1 at least, P0 within


def test_the_embedded_receivers_are_those_that_are_tested():
    assert sorted(folder.name for folder in EMBEDDED.iterdir()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_an_embedded_receiver_is_a_small_qwen2_in_safetensors_with_a_card_that_names_its_digest(name):
    folder = EMBEDDED / name
    files = {file.name for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "m2ray.json", "README.md"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in files)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST[name]
    receiver = load_receiver(name, device="cpu")
    assert type(receiver.model) is transformers.Qwen2ForCausalLM
    assert receiver.style_name == "compact"
    assert sum(p.numel() for p in receiver.model.parameters()) == receiver.card["parameters"]
    assert f"Digest {receiver.digest}." in (folder / "README.md").read_text()
    assert set(level(receiver.card["level"]).words) <= set(receiver.tokenizer.get_vocab())


def test_receivers_keep_the_digests_that_published_codecs_and_rows_name():
    assert load_receiver("mini", device="cpu").digest == "0b33fa035e9b658a"
    assert load_receiver("mini-arithmetic", device="cpu").digest == "f36b7aaf0d1a88c0"


@pytest.mark.parametrize("name", SHIPPED)
def test_an_embedded_receiver_was_trained_on_seeds_outside_every_evaluation(name):
    card = json.loads((EMBEDDED / name / "m2ray.json").read_text())
    seeds = parse_seeds(card["train_seeds"])
    assert seeds.start >= 10_000_000
    assert len(seeds) == card["samples"]
    assert card["held_out"]["part"] != "train"


@pytest.mark.parametrize("name", SHIPPED)
def test_an_embedded_receiver_reproduces_its_cards_p0_and_p1_on_the_held_out_episodes(name):
    """Up to five episodes: another processor may round a near tie the other way."""
    receiver = load_receiver(name, device="cpu")
    held_out = receiver.card["held_out"]
    drawn = episodes(level(receiver.card["level"]), parse_seeds(held_out["seeds"]), held_out["part"])

    def solved(texts_of: Callable[[Episode], str]) -> int:
        count = 0
        for start in range(0, len(drawn), 250):
            batch = drawn[start : start + 250]
            texts = receiver.decode(batch, [texts_of(episode) for episode in batch])
            pairs = zip(batch, texts, strict=True)
            count += sum(verify(episode, text, "values").success for episode, text in pairs)
        return count

    p1, p0 = solved(lambda episode: episode.message), solved(lambda episode: "")
    least, guesses = SOLVED[name]
    assert len(drawn) == receiver.card["P1"]["n"] == receiver.card["P0"]["n"] == 1000
    assert abs(p1 - receiver.card["P1"]["successes"]) <= 5
    assert p1 >= least
    assert abs(p0 - receiver.card["P0"]["successes"]) <= 5
    assert p0 in guesses


@pytest.mark.parametrize("name", SHIPPED)
def test_an_embedded_receiver_passes_g0_on_fresh_messages(name):
    receiver = load_receiver(name, device="cpu")
    codec = Codec(CodecConfig(k=8, width=16, layers=1), receiver).eval()  # G0 does not depend on it
    fresh = episodes(level(receiver.card["level"]), range(90_000_000, 90_000_300), "confirm")
    verdict = judge(evaluate(codec, receiver, fresh))
    assert verdict.gate("validity") == "PASS"


def test_a_small_receiver_is_one_in_a_process_however_its_type_is_named(tiny_folder):
    """Whichever name of the type comes first; see `m2ray.receiver.model.numeric_type`."""
    for order in ((None, "float32", "auto"), ("auto", None, "float32"), ("float32", "auto", None)):
        load_receiver.cache_clear()
        loaded = [load_receiver(str(tiny_folder), dtype=name) for name in order]
        assert loaded[0] is loaded[1] is loaded[2]
