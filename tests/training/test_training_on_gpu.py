"""A training on a GPU against the same training in float32 on the CPU: steps, packs, NCCL, too little memory."""

import pytest
import torch
import torch.distributed as dist
from gpu_device import cuda_or_skip, gpu_or_cpu
from tiny_trainings import config, loss_curve
from torch.nn.parallel import DistributedDataParallel

from m2ray.codec.codec import load_codec
from m2ray.receiver.loading import load_receiver
from m2ray.training.packed import train_packed
from m2ray.training.trainer import Trainer, train

pytestmark = pytest.mark.gpu
LOSSES = {"ce": {}, "contrast": {"weight": 0.5}, "slots": {"weight": 0.5}, "states": {"weight": 0.5}}


@pytest.fixture(scope="module")
def on_cpu():
    return load_receiver("mini", "cpu", "float32")


@pytest.fixture
def there():
    return load_receiver("mini", gpu_or_cpu(), "float32")


def curve(receiver, folder, **changes):
    conf = config(receiver, losses=LOSSES, **changes)
    train(conf, 0, receiver, folder, lambda metrics, at: None, {"config": "one"})
    return loss_curve(folder)


@pytest.mark.parametrize("place", ["message", "after"])
def test_a_training_takes_the_same_steps_as_on_the_cpu(on_cpu, there, tmp_path, place):
    own = curve(on_cpu, tmp_path / "cpu", codec__place=place)
    other = curve(there, tmp_path / "there", codec__place=place)
    assert other == pytest.approx(own, rel=1e-2)


def test_bfloat16_trains_to_a_similar_loss(on_cpu, tmp_path):
    own = curve(on_cpu, tmp_path / "cpu")
    half = load_receiver("mini", gpu_or_cpu(), "bfloat16")
    for name, changes in {"weights": {}, "autocast": {"training__precision": "bfloat16"}}.items():
        assert curve(half, tmp_path / name, **changes) == pytest.approx(own, rel=0.1)


def test_a_pack_trains_each_codec_as_it_would_be_trained_alone(there, tmp_path):
    members = {"plain": {}, "other-k": {"codec__k": 5}, "after": {"codec__place": "after"}}
    failures = []
    pack = [
        Trainer(
            config(there, losses=LOSSES, **changes),
            0,
            there,
            tmp_path / name,
            lambda metrics, at: None,
            {"config": name},
        )
        for name, changes in members.items()
    ]
    train_packed([iter([each]) for each in pack], lambda number, error: failures.append(error))
    assert not failures
    for name, changes in members.items():
        alone = curve(there, tmp_path / "alone" / name, **changes)
        assert loss_curve(tmp_path / name) == pytest.approx(alone, rel=1e-2)


def test_one_worker_of_ddp_gets_the_gradient_of_none(there, tmp_path):
    """NCCL on a GPU, Gloo on a CPU."""
    trainer = Trainer(
        config(there, losses=LOSSES), 0, there, tmp_path / "one", lambda metrics, at: None, {"config": "one"}
    )
    arguments = trainer.next_batch()

    def gradients(module):
        module.zero_grad(set_to_none=True)
        module(*arguments)[0].backward()
        return [each.grad.clone() for each in module.parameters() if each.grad is not None]

    alone = gradients(trainer.loss_module)
    backend = "nccl" if there.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = gradients(DistributedDataParallel(trainer.loss_module))
        summed = torch.ones(1, device=there.device)
        dist.all_reduce(summed)
    finally:
        dist.destroy_process_group()
    assert float(summed) == 1
    for one, other in zip(alone, wrapped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_training_that_runs_out_of_memory_ends_with_the_same_codec(there, tmp_path):
    cuda_or_skip()
    changes = {"training__batch_size": 256, "training__epoch_samples": 512, "training__epochs": 1}
    changes["splits__train"] = "100:5000"
    conf = config(there, losses=LOSSES, **changes)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = train(conf, 0, there, tmp_path / "all", lambda metrics, at: None, {"config": "one"})
    enough = torch.cuda.max_memory_reserved()
    there.clear_caches()
    torch.cuda.empty_cache()
    reports = []
    torch.cuda.set_per_process_memory_fraction(0.6 * enough / torch.cuda.get_device_properties(0).total_memory)
    try:
        last = train(
            conf, 0, there, tmp_path / "few", lambda metrics, at: reports.append(metrics), {"config": "one"}
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert reports[-1]["rows_at_once"] < 512
    one, other = (load_codec(folder, there).state_dict() for folder in (whole, last))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-2, atol=1e-4, msg=name)
