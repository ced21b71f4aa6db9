"""Choose the messages of a diagnosis: held-out ones, those that fit the probes, and those of the codec's training.

Held-out messages are of the search part, or of the select split where it is named; never of the confirm part.
"""

from __future__ import annotations

from collections.abc import Sequence

from m2ray.config.task import Splits, parse_seeds
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.probes import probed_facts
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.episodes import AnyEpisode, Episode
from m2ray.training.schedule import training_batch
from m2ray.util.errors import UserError

HELD_OUT_MESSAGES = 1000  # where neither a split nor seeds are named
PROBE_MESSAGES = 2000  # largest number of messages of the training part that fit the probes
PROBE_TIMES = 4  # times as many messages fit the probes as are held out


def puzzles(episodes: Sequence[AnyEpisode]) -> list[Episode]:
    """Return the episodes whose facts are known, so that probes can look for them: those not in free text."""
    return [episode for episode in episodes if isinstance(episode, Episode)]


def first_fresh_seed(trial: TrialConfig, receiver: Receiver) -> int:
    """Return the first seed after those of all splits and of the receiver's own training."""
    ranges = [trial.splits.seeds(name) for name in Splits.model_fields]
    if seeds := receiver.card.get("train_seeds"):
        ranges.append(parse_seeds(seeds))
    return max(seeds.stop for seeds in ranges)


def fresh_seeds(trial: TrialConfig, receiver: Receiver, count: int) -> range:
    """Return the seeds of episodes that nothing has used yet."""
    first = first_fresh_seed(trial, receiver)
    return range(first, first + count)


def unseen_episodes(trial: TrialConfig, receiver: Receiver, count: int) -> list[AnyEpisode]:
    """Return fresh episodes of the search part; for a task file, the first lines of the search split."""
    source = open_source(trial.task)
    if trial.task.file is None:
        seeds: Sequence[int] = fresh_seeds(trial, receiver, count)
    else:
        seeds = source.seeds(trial.splits, "search")[:count]
    return list(source.get(seeds, "search"))


def probe_messages(trial: TrialConfig, receiver: Receiver, held_out: int) -> list[Episode]:
    """Return fresh episodes of the training part that fit the probes, with each message once.

    For a task file they are the first lines of its train split; of a task in free text there are none. `held_out`
    is the number of held-out messages.
    """
    if trial.task.is_text:
        return []
    count = min(PROBE_MESSAGES, PROBE_TIMES * held_out)
    source = open_source(trial.task)
    if trial.task.file is None:
        seeds: Sequence[int] = fresh_seeds(trial, receiver, count)
    else:
        seeds = source.seeds(trial.splits, "train")[:count]
    episodes = puzzles(source.get(seeds, "train"))
    return list({episode.content: episode for episode in episodes}.values())


def training_messages(trial: TrialConfig, training_seed: int, count: int) -> list[AnyEpisode]:
    """Return the first `count` of the episodes that the codec was trained on, or all where there are fewer."""
    source, training = open_source(trial.task), trial.training
    seeds = source.seeds(trial.splits, "train")
    count = min(count, len(seeds), training.epochs * training.epoch_samples)
    return list(training_batch(source, seeds, range(count), training_seed))


def check_messages(trial: TrialConfig, receiver: Receiver, count: int) -> None:
    """Refuse, before anything is trained, a number of held-out messages that is too small for a diagnosis.

    Raises:
        UserError: there are too few messages.
    """
    probed_facts(probe_messages(trial, receiver, count), puzzles(unseen_episodes(trial, receiver, count)))


def held_out_episodes(
    trial: TrialConfig, receiver: Receiver, split: str | None, seeds: str | None
) -> list[AnyEpisode]:
    """Return the episodes to diagnose on: those of a split, or of seeds A:B; default: fresh ones.

    Messages of named seeds are of the search part.

    Raises:
        UserError: `seeds` is not a range, or names lines of a file that are in training or on confirm.
    """
    source = open_source(trial.task)
    if split is not None:
        return list(source.get(source.seeds(trial.splits, split), split))
    if seeds is None:
        return unseen_episodes(trial, receiver, HELD_OUT_MESSAGES)
    try:
        requested = parse_seeds(seeds)
    except ValueError as error:
        raise UserError(f"--episodes: {error}") from None
    source.check_unseen(requested, trial.splits)
    confirm = source.seeds(trial.splits, "confirm")
    if trial.task.file is not None and not set(confirm).isdisjoint(requested):
        raise UserError(
            f"--episodes {seeds}: lines of splits.confirm {trial.splits.confirm}, which a diagnosis must not use; "
            "choose other lines"
        )
    return list(source.get(requested, "search"))
