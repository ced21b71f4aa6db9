"""Too little memory: a training continues with fewer rows at once, with the same result."""

import json
import re
import resource
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from m2ray.codec.tensor_file import load_tensors
from m2ray.config.trial import EvaluationConfig, TrialConfig
from m2ray.evaluation.conditions import get_condition
from m2ray.evaluation.inputs import ConditionInputs
from m2ray.evaluation.runner import answer_episodes
from m2ray.receiver.loading import load_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import episodes
from m2ray.tasks.registry import level
from m2ray.training.microbatch import ROWS_FILE, MicrobatchSize, read_rows_at_once
from m2ray.training.trainer import OUT_OF_MEMORY, TrainingFailed, train
from m2ray.util.errors import UserError
from m2ray.util.memory import halve_on_oom, is_out_of_memory
from m2ray.util.strict_yaml import validate

SPLITS = {"train": "100:5000", "search": "5000:5010", "select": "5010:5012", "confirm": "5012:5014"}
OBJECTIVES = {
    "answer": {"ce": {}, "contrast": {"weight": 0.5}, "kl": {"weight": 0.5}},
    "codes": {"ce": {}, "commitment": {"weight": 0.25}, "diversity": {"weight": 0.1}, "infonce": {"weight": 0.1}},
    "states": {"ce": {}, "states": {"weight": 0.5}, "slots": {"weight": 0.5}},
}


def config(receiver: str, losses: str = "answer", **training) -> TrialConfig:
    tree = {
        "receiver": receiver,
        "splits": SPLITS,
        "codec": {"encoder": "segments", "k": 3, "width": 32, "layers": 1},
        "losses": OBJECTIVES[losses],
        "training": {"epochs": 1, "epoch_samples": 24, "batch_size": 8, "log_every": 1, **training},
    }
    if losses == "codes":
        tree["codec"] |= {"bottleneck": "vq", "codebook": 16, "groups": 2}
    return validate(TrialConfig, tree, "test")


def run(conf: TrialConfig, folder: Path) -> dict:
    reports = []
    train(
        conf, 0, load_receiver(conf.receiver), folder, lambda metrics, at: reports.append(metrics), {"config": "m"}
    )
    return reports[-1]


def assert_same_codec(one: Path, other: Path) -> None:
    (left, _), (right, _) = (load_tensors(at / "epoch-01" / "codec.safetensors") for at in (one, other))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.allclose(tensor.float(), right[name].float(), atol=2e-5), name


@pytest.mark.parametrize("losses", OBJECTIVES)
@pytest.mark.parametrize("place", ["message", "after"])
def test_fewer_rows_at_once_train_the_same_codec(tiny_folder, tmp_path, losses, place):
    conf = config(str(tiny_folder), losses)
    conf = conf.model_copy(update={"codec": conf.codec.model_copy(update={"place": place})})
    assert "rows_at_once" not in run(conf, tmp_path / "all")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "rows-at-once.json").write_text("3\n")
    assert run(conf, tmp_path / "few")["rows_at_once"] == 3
    assert_same_codec(tmp_path / "all", tmp_path / "few")


def train_within(tree: str, folder: str, extra_mb: int) -> None:
    """Train in a process that may allocate `extra_mb` beyond what it holds at its start."""
    # Threads that find no memory for their stacks end the process; oneDNN then cannot even do what is small.
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    conf = TrialConfig.model_validate_json(tree)
    load_receiver(conf.receiver)
    held = int(re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    limit = (held << 10) + (extra_mb << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        metrics = run(conf, Path(folder))
    except TrainingFailed as error:
        metrics = {"failed": str(error)}
    (Path(folder) / "metrics.json").write_text(json.dumps(metrics))


def in_little_memory(conf: TrialConfig, folder: Path, extra_mb: int) -> dict:
    process = mp.get_context("spawn").Process(
        target=train_within, args=(conf.model_dump_json(), str(folder), extra_mb)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_a_training_that_runs_out_of_memory_halves_its_rows_until_they_fit(tmp_path):
    conf = config("mini", epoch_samples=512, batch_size=512)
    run(conf, tmp_path / "enough")
    metrics = in_little_memory(conf, tmp_path / "little", 900)
    assert 1 <= metrics["rows_at_once"] < 512
    assert read_rows_at_once(tmp_path / "little") == metrics["rows_at_once"]
    assert_same_codec(tmp_path / "enough", tmp_path / "little")


@pytest.mark.slow
def test_where_not_even_one_row_fits_the_training_says_so(tmp_path):
    metrics = in_little_memory(config("mini", epoch_samples=64, batch_size=64), tmp_path, 8)
    assert metrics == {"failed": OUT_OF_MEMORY}


@pytest.mark.parametrize(
    ("error", "is_that"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
    ],
)
def test_other_errors_do_not_count_as_out_of_memory(error, is_that):
    assert is_out_of_memory(error) is is_that
    with pytest.raises(type(error)):
        halve_on_oom([1], lambda rows: (_ for _ in ()).throw(error))


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 40))
def test_halves_are_all_the_rows_in_order_and_small_enough(rows, fits):
    def do(some):
        if len(some) > fits:
            raise torch.OutOfMemoryError("too many")
        return list(some)

    with mock.patch("m2ray.util.memory.gc.collect"):  # takes a second on the heap of a whole test run
        parts = halve_on_oom(rows, do)
    assert [row for part in parts for row in part] == rows
    assert all(1 <= len(part) <= fits for part in parts)


def test_an_evaluation_whose_batch_does_not_fit_gives_the_same_rows(tiny, monkeypatch):
    batch, short = episodes(level("easy"), range(10)), EvaluationConfig(max_new_tokens=12)
    wanted = answer_episodes(
        tiny, batch, get_condition("P1").inject(ConditionInputs(tiny, batch, None, None, 10)), short
    )
    generate_and_score = Receiver.generate_and_score

    def tight(self, rows, *rest):
        if len(rows) > 3:
            raise torch.OutOfMemoryError("too many")
        return generate_and_score(self, rows, *rest)

    monkeypatch.setattr(Receiver, "generate_and_score", tight)
    answers, nll_E, _ = answer_episodes(
        tiny, batch, get_condition("P1").inject(ConditionInputs(tiny, batch, None, None, 10)), short
    )
    assert answers == wanted[0]
    assert torch.allclose(nll_E, wanted[1], atol=1e-5)


@pytest.mark.parametrize("text", ["", "0", "-1", "{}", "null", "1" * 5000])
def test_a_damaged_number_of_rows_is_one_line(tmp_path, text):
    (tmp_path / ROWS_FILE).write_text(text)
    with pytest.raises(UserError, match=r"rows-at-once.json: not a number of rows; remove it$"):
        MicrobatchSize(tmp_path, 8)
