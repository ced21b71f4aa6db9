"""Train several codecs on one receiver, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from m2ray.training.trainer import Trainer, joint_backward


def train_packed(queues: Sequence[Iterator[Trainer]], failed: Callable[[int, Exception], None]) -> None:
    """Train several codecs a step at a time, their rows in common forward passes.

    Each has its own optimizer, metrics and end, and becomes what it would have become alone, up to rounding.

    Args:
        queues: Trainings on one receiver; those of a queue run one after the other. Trainings that differ in
            precision take turns.
        failed: Called with the number of a queue that failed, and the error; the others continue.
    """
    current: dict[int, Trainer] = {}

    def advance(number: int) -> None:
        """Start the queue's next training that has steps left."""
        if number in current:
            current.pop(number).close()
        try:
            trainer = next((trainer for trainer in queues[number] if not trainer.done), None)
        except Exception as error:  # whatever it is, it concerns this queue only
            failed(number, error)
            return
        if trainer is not None:
            current[number] = trainer

    for number in range(len(queues)):
        advance(number)
    while current:
        for precision in sorted({trainer.config.training.precision for trainer in current.values()}):
            members = [n for n, trainer in current.items() if trainer.config.training.precision == precision]
            for number, loss in zip(members, joint_backward([current[n] for n in members]), strict=True):
                try:
                    current[number].apply_step(*loss)
                except Exception as error:  # as above
                    current.pop(number).close()
                    failed(number, error)
                else:
                    if current[number].done:
                        advance(number)
