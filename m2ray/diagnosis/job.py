"""The diagnosis of a sweep's checkpoint, as a unit of work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from m2ray.codec.checkpoints import checkpoint_id
from m2ray.codec.codec import load_codec
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.free_vectors import FREE_EPISODES, FREE_SHARE
from m2ray.diagnosis.measure import diagnose
from m2ray.diagnosis.messages import unseen_episodes
from m2ray.diagnosis.report import write_report
from m2ray.receiver.loading import load_trial_receiver


@dataclass(frozen=True)
class DiagnosisJob:
    """A diagnosis of one checkpoint on fresh episodes of the search part."""

    trial: TrialConfig
    folder: Path  # the checkpoint's
    constants: Path  # where trained content-free prefixes are kept
    episodes: int
    out: Path  # the folder for the report

    @property
    def label(self) -> str:
        """Name for progress lines."""
        return f"{'/'.join(self.folder.parts[-3:])}: diagnosis on {self.episodes} messages"


def run_diagnosis(job: DiagnosisJob) -> None:
    """Diagnose a checkpoint of a sweep on fresh episodes, and write the report into the job's folder.

    Raises:
        UserError: the receiver or the checkpoint is missing, or they do not fit each other.
    """
    receiver = load_trial_receiver(job.trial)
    codec, episodes = load_codec(job.folder, receiver), unseen_episodes(job.trial, receiver, job.episodes)
    free_episodes = min(FREE_EPISODES, job.episodes // FREE_SHARE)
    checkpoint = checkpoint_id(job.folder)
    diagnosis, shown = diagnose(receiver, codec, job.trial, episodes, checkpoint, job.constants, free_episodes)
    write_report(job.out, diagnosis, shown)
