# NEWDOC
"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

from m2ray.config.trial import Splits, TrialConfig, parse_seeds
from m2ray.diagnosis.probes import facts_of
from m2ray.receiver.episode_source import EpisodeSource
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import Episode
from m2ray.training.schedule import training_batch
from m2ray.util.errors import UserError

EPISODES = 1000  # held-out messages, where no seeds are named


PROBE_MESSAGES, PROBE_TIMES = (
    2000,
    4,
)  # of the training part, that fit the probes: at most; times the held-out ones


def first_fresh_seed(trial: TrialConfig, receiver: Receiver) -> int:
    """The first seed past every split and past the receiver's own training."""
    ranges = [trial.splits.seeds(name) for name in Splits.model_fields]
    if seeds := receiver.card.get("train_seeds"):
        ranges.append(parse_seeds(seeds))
    return max(seeds.stop for seeds in ranges)


def unseen_episodes(trial: TrialConfig, receiver: Receiver, count: int) -> list[Episode]:
    """Fresh episodes of the search part; of a file, lines of the search split."""
    start = first_fresh_seed(trial, receiver)
    seeds = range(start, start + count)
    if trial.task.file is not None:
        seeds = trial.splits.seeds("search")[:count]
    return EpisodeSource(trial.task).get(seeds, "search")


def probe_messages(trial: TrialConfig, receiver: Receiver, count: int) -> list[Episode]:
    """Episodes of the training part that fit the probes, each message once; of a file, its training lines."""
    start = first_fresh_seed(trial, receiver)
    seeds = range(start, start + count)
    if trial.task.file is not None:
        seeds = trial.splits.seeds("train")[:count]
    drawn = EpisodeSource(trial.task).get(seeds, "train")
    return list({episode.content: episode for episode in drawn}.values())


def training_messages(trial: TrialConfig, training_seed: int, count: int) -> list[Episode]:
    """The first of the episodes that the codec was trained on."""
    seeds, training = trial.splits.seeds("train"), trial.training
    taken = min(count, len(seeds), training.epochs * training.epoch_samples)
    return training_batch(EpisodeSource(trial.task), seeds, range(taken), training_seed)


def check_messages(trial: TrialConfig, receiver: Receiver, count: int) -> None:
    """Refuse a number of episodes on which no diagnosis can be made, before anything is trained.

    Raises:
        UserError: too few.
    """
    facts_of(
        probe_messages(trial, receiver, min(PROBE_MESSAGES, PROBE_TIMES * count)),
        unseen_episodes(trial, receiver, count),
    )


def held_out_episodes(
    trial: TrialConfig, receiver: Receiver, split: str | None, seeds: str | None
) -> list[Episode]:
    """The episodes to diagnose on: of a split, or of seeds, which yield messages of the search part.

    Raises:
        UserError: not a range of seeds, or lines of a file that are in training or on confirm.
    """
    source = EpisodeSource(trial.task)
    if seeds is None:
        return (
            source.get(trial.splits.seeds(split), split) if split else unseen_episodes(trial, receiver, EPISODES)
        )
    try:
        named = parse_seeds(seeds)
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None
    source.check_unseen(named, trial.splits)
    confirm = trial.splits.seeds("confirm")
    if trial.task.file is not None and named.start < confirm.stop and confirm.start < named.stop:
        raise UserError(
            f"--seeds {seeds}: lines of splits.confirm {trial.splits.confirm}; a diagnosis keeps off them"
        )
    return source.get(named, "search")
