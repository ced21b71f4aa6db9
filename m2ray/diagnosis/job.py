# NEWDOC
"""`python -m m2ray.diagnose CHECKPOINT`: where a codec loses its message, and whether the receiver reads it.

Everything is measured on messages of the search part that no training saw, never on those of confirm.

Shapes: E episodes, B a batch of them, A answer tokens, W words, V values of an answer, N values of a domain,
K slots, D width.
"""

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
from m2ray.receiver.loading import load_receiver


def run_diagnosis(job: DiagnosisJob) -> None:
    """Diagnose a checkpoint of a sweep on fresh episodes and write what was found into the job's folder.

    Raises:
        UserError: the receiver or the checkpoint is not there, or they do not fit each other.
    """
    receiver = load_receiver(job.trial.receiver)
    codec, episodes = load_codec(job.folder, receiver), unseen_episodes(job.trial, receiver, job.episodes)
    ceilings = min(FREE_EPISODES, job.episodes // FREE_SHARE)
    found = diagnose(receiver, codec, job.trial, episodes, checkpoint_id(job.folder), job.constants, ceilings)
    write_report(job.out, *found)


@dataclass(frozen=True)
class DiagnosisJob:
    """A diagnosis of one checkpoint on fresh episodes of the search part, written into the folder `out`."""

    trial: TrialConfig
    folder: Path
    constants: Path
    episodes: int
    out: Path

    @property
    def label(self) -> str:
        """For people."""
        return f"{'/'.join(self.folder.parts[-3:])}: diagnosis on {self.episodes} messages"
