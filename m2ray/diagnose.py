"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2ray import stats
from m2ray.codec import Codec, load_codec
from m2ray.command import DONE, Parser, UserError, run
from m2ray.conditions import Injection, Material, condition, derangement
from m2ray.config import Splits, TrialConfig, parse_seeds
from m2ray.diagnosis_figures import Shown
from m2ray.diagnosis_text import sections, write
from m2ray.evaluation import Subject, play
from m2ray.findings import Diagnosis, Gap, Norms, Success
from m2ray.jobs import DiagnosisJob, subject_of, trained_constant, trial_of
from m2ray.layout import Place
from m2ray.loading import load_receiver
from m2ray.losses import answer_nll
from m2ray.probes import facts_of, fields_of, probe, shared_facts, similarity_map, stages
from m2ray.receiver import Receiver
from m2ray.schedule import draw_batch
from m2ray.source import Source, cache_root
from m2ray.task import Episode, verify

EPISODES = 1000  # held-out messages, where no seeds are named
PROBE_MESSAGES, PROBE_TIMES = (
    2000,
    4,
)  # of the training part, that fit the probes: at most; times the held-out ones
FREE_EPISODES, FREE_STEPS, FREE_SHARE = 32, 60, 20  # at most; steps; of a sweep's episodes, one in so many


class AnswerNll(NamedTuple):
    """Mean nats per token of the answer: of its values (digits), of all its other tokens (format), [E] each."""

    digits_E: Tensor
    format_E: Tensor


@torch.no_grad()
def answer_parts(
    receiver: Receiver, episodes: Sequence[Episode], injection: Injection, batch_size: int
) -> AnswerNll:
    """Nats as `m2ray.evaluation.value_nll` counts them, and those it leaves out. All episodes have the same k."""
    frame = receiver.frame(episodes[0].level)
    digits_A = torch.zeros(len(frame.ids_A), dtype=torch.bool)
    digits_A[frame.places_V] = True
    parts = []
    for start in range(0, len(episodes), batch_size):
        chunk = slice(start, start + batch_size)
        batch, prefix_BKD = episodes[chunk], None
        texts: list[str] | int = (injection.texts or [])[chunk]
        if injection.prefixes is not None:
            prefix_BKD = torch.stack(list(injection.prefixes[chunk]))
            texts = prefix_BKD.shape[1]
        logits_BAW = receiver.logits(receiver.layout(batch, texts, injection.place), prefix_BKD, len(frame.ids_A))
        parts.append(answer_nll(logits_BAW, frame, receiver.targets(batch)).cpu())
    nll_EA = torch.cat(parts)
    return AnswerNll(nll_EA[:, digits_A].mean(1), nll_EA[:, ~digits_A].mean(1))


def free_vectors(receiver: Receiver, episodes: Sequence[Episode], k: int, place: Place, steps: int) -> Tensor:
    """Vectors for each episode, fitted to its own answers against the frozen receiver: what k slots can do.

    They start as random token embeddings and follow Adam on the answer's cross-entropy, whatever the message.

    Returns:
        [E, K, D]
    """
    unit = receiver.embedding_norm / math.sqrt(receiver.width)
    dice = torch.Generator().manual_seed(0)
    picks_EK = torch.randint(len(receiver.embedding_ND), (len(episodes), k), generator=dice).to(receiver.device)
    # In units of an embedding's entries, so that a step means the same for any receiver.
    free_EKD = (receiver.embedding_ND[picks_EK].float() / unit).requires_grad_()
    optimizer = torch.optim.Adam([free_EKD], lr=0.2)
    frame, layout = receiver.frame(episodes[0].level), receiver.layout(episodes, k, place)
    targets_EVN = receiver.targets(episodes)
    for _ in range(steps):
        nll_EA = answer_nll(receiver.logits(layout, unit * free_EKD, len(frame.ids_A)), frame, targets_EVN)
        (free_EKD.grad,) = torch.autograd.grad(nll_EA.sum(), free_EKD)
        optimizer.step()
    return (unit * free_EKD).detach()


def fresh(trial: TrialConfig, receiver: Receiver) -> int:
    """The first seed past every split and past the receiver's own training."""
    ranges = [trial.splits.seeds(name) for name in Splits.model_fields]
    if seeds := receiver.card.get("train_seeds"):
        ranges.append(parse_seeds(seeds))
    return max(seeds.stop for seeds in ranges)


def unseen(trial: TrialConfig, receiver: Receiver, count: int) -> list[Episode]:
    """Fresh episodes of the search part; of a file, lines of the search split."""
    start = fresh(trial, receiver)
    seeds = range(start, start + count)
    if trial.task.file is not None:
        seeds = trial.splits.seeds("search")[:count]
    return Source(trial.task).get(seeds, "search")


def probe_messages(trial: TrialConfig, receiver: Receiver, count: int) -> list[Episode]:
    """Episodes of the training part that fit the probes, each message once; of a file, its training lines."""
    start = fresh(trial, receiver)
    seeds = range(start, start + count)
    if trial.task.file is not None:
        seeds = trial.splits.seeds("train")[:count]
    drawn = Source(trial.task).get(seeds, "train")
    return list({episode.content: episode for episode in drawn}.values())


def trained_messages(trial: TrialConfig, training_seed: int, count: int) -> list[Episode]:
    """The first of the episodes that the codec was trained on."""
    seeds, training = trial.splits.seeds("train"), trial.training
    taken = min(count, len(seeds), training.epochs * training.epoch_samples)
    return draw_batch(Source(trial.task), seeds, range(taken), training_seed)


def diagnose(
    receiver: Receiver,
    codec: Codec,
    trial: TrialConfig,
    episodes: Sequence[Episode],
    subject: Subject,
    constants: Path,
    free_episodes: int = FREE_EPISODES,
) -> tuple[Diagnosis, Shown]:
    """Measure one codec.

    Args:
        receiver: Agent B, frozen.
        codec: The codec, trained for that receiver.
        trial: Its configuration.
        episodes: Held-out ones, of the part search or select.
        subject: Whose checkpoint it is; its training seed says which episodes it was trained on.
        constants: Where trained content-free prefixes are kept; see `m2ray.jobs.trained_constant`.
        free_episodes: On how many episodes free vectors are fitted; 0 leaves all ceilings out.

    Returns:
        The figures, with the findings that follow from them, and what the pictures need.

    Raises:
        UserError: too few episodes, or too few different messages among them.
    """
    size, slots = trial.evaluation.batch_size, codec.config
    constant = trained_constant(receiver, trial, slots, constants) if free_episodes else None
    fitting = probe_messages(trial, receiver, min(PROBE_MESSAGES, PROBE_TIMES * len(episodes)))
    held, fit = (Material(receiver, part, codec, constant, size) for part in (episodes, fitting))
    facts = facts_of(fit.episodes, held.episodes)
    shown = Shown(stages(held), shared_facts(episodes))
    fit_features, known, wanted = stages(fit), fields_of(fit.episodes, facts), fields_of(episodes, facts)

    names = ["normal", "shuffle", "null", "P0", "P1", *(["constant"] if constant else [])]
    injections = {name: condition(name).inject(held) for name in names}
    nll = {name: answer_parts(receiver, episodes, injections[name], size) for name in names}
    seen = Material(receiver, trained_messages(trial, subject.seed, len(episodes)), codec, None, size)
    seen_nll = {
        name: answer_parts(receiver, seen.episodes, condition(name).inject(seen), size).digits_E
        for name in ("normal", "shuffle", "P0")
    }
    solved, success = {}, {}
    for name in names:
        solved[name], success[name] = decoded(receiver, trial, episodes, injections[name])
    if free_episodes:
        few = episodes[:free_episodes]
        vectors = free_vectors(receiver, few, slots.k, slots.place, FREE_STEPS)
        _, success["free"] = decoded(receiver, trial, few, Injection(None, list(vectors), slots.place))

    norm_S = held.prefixes_EKD.float().norm(dim=-1).flatten().cpu().numpy() / receiver.embedding_norm
    low, high = np.quantile(norm_S, [0.05, 0.95])
    path = (
        ("tokens", "pooled", "latent", "prefix")
        if slots.encoder == "last_token"
        else ("tokens", "latent", "prefix")
    )
    diagnosis = Diagnosis(
        about={
            "config": subject.config,
            "seed": subject.seed,
            "checkpoint": codec.digest,
            "receiver": f"{receiver.name} ({receiver.digest})",
            "level": trial.task.level,
            "encoder": slots.encoder,
            "k": slots.k,
            "place": slots.place,
            "n": len(episodes),
            "seeds": f"{episodes[0].seed}:{episodes[-1].seed + 1}",
            "probe_messages": len(fit.episodes),
            "probed_facts": len(facts),
            "training_messages": len(seen.episodes),
        },
        path=path,
        maps={name: similarity_map(rows, shown.shared_EE) for name, rows in shown.features.items()},
        probes={name: probe(fit_features[name], rows, known, wanted) for name, rows in shown.features.items()},
        nll={name: (float(part.digits_E.mean()), float(part.format_E.mean())) for name, part in nll.items()},
        gaps={
            name: Gap(
                stats.paired_difference(part.digits_E, nll["normal"].digits_E),
                stats.paired_difference(part.format_E, nll["normal"].format_E),
            )
            for name, part in nll.items()
            if name != "normal"
        },
        seen={name: stats.paired_difference(seen_nll[name], seen_nll["normal"]) for name in ("shuffle", "P0")},
        success=success,
        ahead={n: stats.paired_difference(solved["normal"], solved[n]) for n in solved if n != "normal"},
        retention=stats.retention(solved["normal"], solved["P0"], solved["P1"]),
        norms=Norms(float(norm_S.mean()), float(low), float(high), float(codec.scale_gate.detach())),
    )
    return diagnosis, shown


def decoded(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[Episode], injection: Injection
) -> tuple[list[bool], Success]:
    """Which episodes are solved under a condition, and how many."""
    answers, nll_E = play(receiver, episodes, injection, trial.evaluation)
    solved = [verify(e, text, receiver.style.answer).success for e, text in zip(episodes, answers, strict=True)]
    return solved, Success(sum(solved), len(solved), float(nll_E.mean()))


def check(trial: TrialConfig, receiver: Receiver, count: int) -> None:
    """Refuse a number of episodes on which no diagnosis can be made, before anything is trained.

    Raises:
        UserError: too few.
    """
    facts_of(
        probe_messages(trial, receiver, min(PROBE_MESSAGES, PROBE_TIMES * count)), unseen(trial, receiver, count)
    )


def run_diagnosis(job: DiagnosisJob) -> None:
    """Diagnose a checkpoint of a sweep on fresh episodes and write what was found into the job's folder.

    Raises:
        UserError: the receiver or the checkpoint is not there, or they do not fit each other.
    """
    receiver = load_receiver(job.trial.receiver)
    codec, episodes = load_codec(job.folder, receiver), unseen(job.trial, receiver, job.episodes)
    ceilings = min(FREE_EPISODES, job.episodes // FREE_SHARE)
    found = diagnose(receiver, codec, job.trial, episodes, subject_of(job.folder), job.constants, ceilings)
    write(job.out, *found)


def main(argv: Sequence[str]) -> int:
    """Diagnose, print figures and findings, write them where asked."""
    parser = Parser(
        prog="python -m m2ray.diagnose", description="Say where a codec loses its message and what reads it."
    )
    parser.add_argument("checkpoint", type=Path, help="folder with codec.safetensors and config.json")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--split", choices=("search", "select"), help=f"default: {EPISODES} fresh seeds")
    which.add_argument("--seeds", help="episode seeds A:B, end excluded; messages of the search part")
    parser.add_argument("--receiver", help="where the receiver is now, if it moved")
    parser.add_argument(
        "--ceilings",
        type=int,
        default=FREE_EPISODES,
        metavar="N",
        help=f"episodes to fit free vectors to (default {FREE_EPISODES}); 0 leaves all ceilings out",
    )
    parser.add_argument("--out", type=Path, help="folder for diagnosis.json, diagnosis.md and pictures")
    args = parser.parse_args(argv)
    if args.ceilings < 0:
        raise UserError(f"--ceilings {args.ceilings}: give a number of episodes, or 0 for none")
    if args.out is not None and (blocked := next((p for p in [args.out, *args.out.parents] if p.is_file()), None)):
        raise UserError(f"--out {args.out}: {blocked} is a file; choose a folder")
    trial, subject = trial_of(args.checkpoint), subject_of(args.checkpoint)
    if args.receiver:
        trial = trial.model_copy(update={"receiver": args.receiver})
    receiver = load_receiver(trial.receiver)
    codec = load_codec(args.checkpoint, receiver)
    episodes = held_out(trial, receiver, args.split, args.seeds)
    derangement(episodes)  # too few messages are refused before anything is measured
    diagnosis, shown = diagnose(
        receiver, codec, trial, episodes, subject, cache_root() / "constants", args.ceilings
    )
    print("\n\n".join(sections(diagnosis)))
    if args.out is not None:
        write(args.out, diagnosis, shown)
        print(f"\nwritten: {args.out}/diagnosis.json, diagnosis.md, maps.png, stages.png")
    return DONE


def held_out(trial: TrialConfig, receiver: Receiver, split: str | None, seeds: str | None) -> list[Episode]:
    """The episodes to diagnose on: of a split, or of seeds, which yield messages of the search part.

    Raises:
        UserError: not a range of seeds, or lines of a file that are in training or on confirm.
    """
    source = Source(trial.task)
    if seeds is None:
        return source.get(trial.splits.seeds(split), split) if split else unseen(trial, receiver, EPISODES)
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


if __name__ == "__main__":
    run(main)
