"""Writing answers: rows of one batch, token by token, or many tokens at once where a guess of the answer holds.

A guess costs one forward pass and proves as many tokens as agree with what decoding would have written anyway
(speculative decoding, Leviathan et al. 2023, with the reference answer as the draft): the tokens written are the
same as without, greedy or sampled. Answers of one task differ in a few values, so a few passes write a whole one.

Shapes: B rows, T columns of the cache, G guessed tokens, D width, V values of an answer, W words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Prefill(NamedTuple):
    """A prompt and a guess of its answer that the receiver has read, padded on the left."""

    cache: Any
    states_BGD: Tensor  # last hidden states at the prompt's last token and at each guessed one
    mask_BT: Tensor
    lengths_B: Tensor  # of the prompts


def decode_rows(
    model: Any,
    past: str,
    primed: Prefill,
    drafts: Sequence[Sequence[int]],
    places: Collection[int],
    seeds: Sequence[int],
    temperature: float,
    limits: Sequence[int],
    ends: Collection[int],
) -> tuple[list[list[int]], Tensor | None]:
    """Tokens of each row up to and with the first that ends it.

    Args:
        model: The causal LM.
        past: Its name for the cache, as argument and output.
        primed: What it has read; used up.
        drafts: A guess per row; all but its last token are in `primed`. Empty for none.
        places: Where in a draft its logits are wanted.
        seeds: Of each row's sampling noise.
        temperature: 0 decodes greedily.
        limits: Most tokens of each row.
        ends: Tokens that end a row.

    Returns:
        The tokens, and the logits [B, V, W] that predict the drafts' tokens at `places`; None without places.
    """
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    dice = [torch.Generator().manual_seed(seed) for seed in seeds]
    written: list[list[int]] = [[] for _ in drafts]
    rows, guesses = list(range(len(drafts))), [list(draft[:-1]) for draft in drafts]
    cache, states_BGD, mask_BT, lengths_B = primed
    kept, wanted, fed = [], set(places), states_BGD.shape[1] - 1
    decided = 0  # tokens at the head of what was fed that are no guess
    while rows:
        holds = [0] * len(rows)
        still = list(range(len(rows)))
        # One by one: logits over a whole vocabulary at every place are gigabytes.
        for place in range(states_BGD.shape[1]):
            if place in wanted:
                every_BW = head(states_BGD[:, place])
                kept.append(every_BW)
                logits_SW = every_BW[still]
            elif still:
                logits_SW = head(states_BGD[still, place])
            if not still:
                continue
            agreed = []
            picked = _pick(logits_SW, [dice[rows[i]] for i in still], temperature)
            for i, token in zip(still, picked, strict=True):
                row = written[rows[i]]
                row.append(token)
                ended = token in ends or len(row) == limits[rows[i]]
                if not ended and guesses[i][holds[i] : holds[i] + 1] == [token]:
                    holds[i] += 1
                    agreed.append(i)
            still = agreed
        wanted = set()
        more = [
            i for i, row in enumerate(rows) if written[row][-1] not in ends and len(written[row]) < limits[row]
        ]
        if not more:
            break
        # What was fed and did not hold stays in the cache, out of sight.
        columns_F = torch.arange(fed, device=mask_BT.device)
        held_B1 = torch.tensor(holds, device=mask_BT.device)[:, None] + decided
        mask_BT = torch.cat([mask_BT[:, : mask_BT.shape[1] - fed], columns_F < held_B1], dim=1)
        if len(more) < len(rows):
            cache.batch_select_indices(torch.tensor(more, device=mask_BT.device))
            mask_BT, lengths_B = mask_BT[more], lengths_B[more]
        # A row none of whose guesses held writes something else altogether: no more guesses for it.
        hopeless = {rows[i] for i in more if decided and not holds[i]}
        rows, decided = [rows[i] for i in more], 1
        guesses = [[] if row in hopeless else list(drafts[row][len(written[row]) : -1]) for row in rows]
        feed = [[written[row][-1], *guess] for row, guess in zip(rows, guesses, strict=True)]
        fed = max(map(len, feed))
        columns_F = torch.arange(fed, device=mask_BT.device)
        lengths_of_feed_B1 = torch.tensor([[len(tokens)] for tokens in feed], device=mask_BT.device)
        mask_BT = torch.cat([mask_BT, columns_F < lengths_of_feed_B1], dim=1)
        at_B1 = lengths_B[:, None] + torch.tensor([[len(written[row]) - 1] for row in rows], device=mask_BT.device)
        out = decoder(
            input_ids=torch.tensor([tokens + [0] * (fed - len(tokens)) for tokens in feed], device=mask_BT.device),
            position_ids=at_B1 + columns_F.clamp(max=lengths_of_feed_B1 - 1),
            attention_mask=mask_BT,
            use_cache=True,
            **{past: cache},
        )
        cache, states_BGD = out[past], out[0]
    return written, torch.stack(kept, dim=1) if kept else None


def _pick(logits_BW: Tensor, dice: Sequence[torch.Generator], temperature: float) -> list[int]:
    """The next token of each row."""
    logits_BW = logits_BW.float()
    if temperature > 0:
        # Gumbel-max: argmax(logits / t + g) is a sample of softmax(logits / t).
        uniform = [torch.rand(logits_BW.shape[1], generator=die, dtype=torch.float64) for die in dice]
        gumbel_BW = -torch.log(-torch.log(torch.stack(uniform).clamp(min=1e-300)))
        logits_BW = logits_BW / temperature + gumbel_BW.to(logits_BW)
    tokens: list[int] = logits_BW.argmax(dim=1).tolist()
    return tokens
