"""Several codecs trained on one receiver, in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from m2ray.training.trainer import Trainer, joint_backward


def train_packed(queues: Sequence[Iterator[Trainer]], failed: Callable[[int, Exception], None]) -> None:
    """Train several codecs on one receiver, a step of each at a time, their rows in common forward passes.

    Each has its own optimiser, metrics and end, and becomes what it would have become alone, to rounding.

    Args:
        queues: Trainings on one receiver, those of a queue one after the other. What differs in precision takes
            turns.
        failed: Told of a queue that broke down, and how; the others go on without it.
    """
    current: dict[int, Trainer] = {}

    def go_on(number: int) -> None:
        """To the queue's next training that has steps left."""
        if number in current:
            current.pop(number).close()
        try:
            training = next((training for training in queues[number] if not training.done), None)
        except Exception as error:  # whatever it is, it is this queue's alone
            failed(number, error)
            return
        if training is not None:
            current[number] = training

    for number in range(len(queues)):
        go_on(number)
    while current:
        for precision in sorted({training.config.training.precision for training in current.values()}):
            members = [n for n, training in current.items() if training.config.training.precision == precision]
            for number, result in zip(members, joint_backward([current[n] for n in members]), strict=True):
                try:
                    current[number].apply_step(*result)
                except Exception as error:  # as above
                    current.pop(number).close()
                    failed(number, error)
                else:
                    if current[number].done:
                        go_on(number)
