"""Free vectors: k vectors fitted to each episode's answer, a lower bound of what k slots can do.

An episode counts as solved if B, decoding greedily, answers right with its vectors. Fitting minimizes the answer's
cross-entropy with Adam. It ends for an episode

- when B answers right, which is checked after every `ROUND_STEPS` steps with the best vectors so far: then its
  success cannot improve, although the loss still could;
- when it has converged. After a round in which the lowest loss, above the least possible one, fell by less than
  `LEAST_FALL` of itself, the learning rate is halved and fitting continues from the best vectors. When the
  learning rate is below `LEAST_RATE`, fitting starts again with other vectors, `STARTS` times in all;
- at a largest number of steps.

So more steps never solve fewer episodes. The result stays a lower bound: from yet another start, fitting may find
vectors for an episode on which it has converged.

Shapes: E episodes, O episodes that are not done, A answer tokens, V values of an answer, N values of a domain,
K slots, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from m2ray.receiver.layout import Place
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import choose_answers, reference_nll
from m2ray.tasks.answers import verify
from m2ray.tasks.episodes import AnyEpisode
from m2ray.tasks.text_episodes import TextEpisode

FREE_EPISODES = 32  # number of episodes that vectors are fitted to; in a sweep at most
FREE_SHARE = 10  # in a sweep, vectors are fitted to one in so many episodes of a diagnosis
MAX_STEPS = 3000
ROUND_STEPS = 50
LEAST_FALL = 0.01
STARTS = 6
RATE, LEAST_RATE = 0.2, 0.002  # in units of a typical embedding entry


class FreeVectors(NamedTuple):
    """The best vectors of each episode."""

    vectors_EKD: Tensor
    solved: list[bool]  # B answers right with them
    converged: list[bool]  # fitting ended before the largest number of steps


def free_vectors(
    receiver: Receiver,
    episodes: Sequence[AnyEpisode],
    k: int,
    place: Place,
    max_steps: int = MAX_STEPS,
    max_new_tokens: int = 128,
) -> FreeVectors:
    """Fit vectors to each episode's own answer, with the receiver frozen and without the message.

    In free text that is the first of the right answers.

    Args:
        receiver: Agent B, as read through the vectors' channel.
        episodes: Episodes of one level.
        k: Number of vectors of an episode.
        place: Their place in B's prompt.
        max_steps: Largest number of optimizer steps.
        max_new_tokens: Largest number of tokens of B's answers.
    """
    fit = _Fit(receiver, episodes, k, place)
    solved, converged = [False] * len(episodes), [False] * len(episodes)
    for start in range(0, max_steps, ROUND_STEPS):
        active = [i for i, done in enumerate(converged) if not done]
        if not active:
            break
        improved = fit.descend(active, min(ROUND_STEPS, max_steps - start))
        for i, right in zip(active, fit.answers_right(active, max_new_tokens), strict=True):
            solved[i] = right
            converged[i] = right or not (improved[i] or fit.halve_rate(i) or fit.restart(i))
            if converged[i]:
                fit.stop(i, right)
    return FreeVectors(fit.best_of_starts(), solved, converged)


class _Fit:
    """Vectors of all episodes and their optimizer. Episodes are fitted independently of each other."""

    def __init__(self, receiver: Receiver, episodes: Sequence[AnyEpisode], k: int, place: Place) -> None:
        self.receiver, self.episodes, self.k, self.place = receiver, episodes, k, place
        # Vectors are in units of a typical entry, so that a step means the same for any receiver and channel.
        self.unit = receiver.channel.unit / math.sqrt(receiver.channel.width)
        self.starts = [1] * len(episodes)
        self.best_EKD = self._start_vectors(0)  # of the current start
        self.kept_EKD = self.best_EKD.clone()  # of earlier starts
        self.current = [vectors_KD.clone().requires_grad_() for vectors_KD in self.best_EKD]
        self.optimizer = torch.optim.Adam([{"params": [vectors_KD]} for vectors_KD in self.current], lr=RATE)
        puzzle_targets = receiver.references(episodes).targets
        if puzzle_targets is None:
            self.least_E = torch.zeros(len(episodes), device=receiver.device)
        else:
            # Where several answers are right, no loss is below the entropy of their values.
            self.least_E = torch.special.entr(puzzle_targets.targets_BVN).sum((1, 2))
        self.best_loss_E = torch.full_like(self.least_E, math.inf)
        self.kept_loss_E = self.best_loss_E.clone()

    def _start_vectors(self, number: int) -> Tensor:
        """Return the vectors of all episodes' start of a number: the receiver's own at random tokens."""
        generator = torch.Generator().manual_seed(number)
        ids_EK = torch.randint(self.receiver.vocabulary, (len(self.episodes), self.k), generator=generator)
        return torch.stack(self.receiver.own_vectors(ids_EK.tolist())).float() / self.unit

    def best_of_starts(self) -> Tensor:
        """Return the best vectors of each episode, in the receiver's units."""
        earlier_E11 = (self.kept_loss_E < self.best_loss_E)[:, None, None]
        return self.unit * torch.where(earlier_E11, self.kept_EKD, self.best_EKD)

    def descend(self, active: Sequence[int], steps: int) -> list[bool]:
        """Take optimizer steps on some episodes; return of all episodes whether the lowest loss fell."""
        receiver, picked_O = self.receiver, list(active)
        batch, current = [self.episodes[i] for i in picked_O], [self.current[i] for i in picked_O]
        references, layout = receiver.references(batch), receiver.layout(batch, self.k, self.place)
        before_E = self.best_loss_E.clone()
        for _ in range(steps):
            logits_OAW = receiver.logits(layout, self.unit * torch.stack(current), references.length)
            nll_O = reference_nll(logits_OAW, references).sum(1)
            self._keep_best(picked_O, (nll_O.detach() - self.least_E[picked_O]).clamp(min=0))
            for vectors_KD, grad_KD in zip(current, torch.autograd.grad(nll_O.sum(), current), strict=True):
                vectors_KD.grad = grad_KD
            self.optimizer.step()
        improved: list[bool] = (self.best_loss_E < (1 - LEAST_FALL) * before_E).tolist()
        return improved

    def _keep_best(self, picked_O: list[int], loss_O: Tensor) -> None:
        for i, better in zip(picked_O, (loss_O < self.best_loss_E[picked_O]).tolist(), strict=True):
            if better:
                self.best_EKD[i] = self.current[i].detach()
        self.best_loss_E[picked_O] = torch.minimum(self.best_loss_E[picked_O], loss_O)

    def answers_right(self, active: Sequence[int], max_new_tokens: int) -> list[bool]:
        """Return whether B, decoding greedily, answers right with the best vectors of some episodes."""
        batch = [self.episodes[i] for i in active]
        vectors_OKD = self.unit * self.best_EKD[list(active)]
        chosen = [episode for episode in batch if isinstance(episode, TextEpisode) and episode.rules.choose]
        if chosen:
            texts = choose_answers(self.receiver, chosen, self.k, vectors_OKD, self.place).texts
        else:
            texts = self.receiver.decode(batch, self.k, vectors_OKD, self.place, 0.0, max_new_tokens)
        style = self.receiver.style.answer
        return [verify(episode, text, style).success for episode, text in zip(batch, texts, strict=True)]

    def halve_rate(self, i: int) -> bool:
        """Continue from an episode's best vectors with half the learning rate; return False where that is low."""
        group = self.optimizer.param_groups[i]
        group["lr"] /= 2
        self.current[i].data.copy_(self.best_EKD[i])
        return bool(group["lr"] >= LEAST_RATE)

    def restart(self, i: int) -> bool:
        """Start an episode again with other vectors; return False where it has had all its starts."""
        if self.starts[i] == STARTS:
            return False
        if self.best_loss_E[i] < self.kept_loss_E[i]:
            self.kept_loss_E[i], self.kept_EKD[i] = self.best_loss_E[i], self.best_EKD[i]
        self.best_loss_E[i], self.best_EKD[i] = math.inf, self._start_vectors(self.starts[i])[i]
        self.current[i].data.copy_(self.best_EKD[i])
        self.optimizer.state.pop(self.current[i], None)
        self.optimizer.param_groups[i]["lr"] = RATE
        self.starts[i] += 1
        return True

    def stop(self, i: int, solved: bool) -> None:
        """Leave an episode's vectors as they are. Where they solve it, they count as the best of all starts."""
        self.current[i].grad = None
        if solved:
            self.kept_loss_E[i] = math.inf
