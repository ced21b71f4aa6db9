"""Which layers carry a message that crosses as it is: the answer's cost under each, on the part `select`.

For points that train nothing (encoder `own`), before their confirm part is looked at. Layers stand between spaces,
as `0-2` or `1,2`; one hidden state crosses at one layer only.

    python scripts/choose_layers.py search_spaces/methods.yaml kvcomm 0-2 1,2 1 0
    python scripts/choose_layers.py search_spaces/methods.yaml activation 0 1 2 --k 24
    python scripts/choose_layers.py search_spaces/methods-gemma.yaml activation-k8 2 4 9 --n 24
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from m2ray.codec.untrained import untrained_codec
from m2ray.config.plan import load_plan
from m2ray.config.trial import TrialConfig
from m2ray.evaluation.conditions import derangement
from m2ray.evaluation.search_score import search_score
from m2ray.receiver.episode_source import open_source
from m2ray.receiver.loading import load_trial_receiver
from m2ray.receiver.receiver import Receiver
from m2ray.receiver.scoring import value_nll
from m2ray.tasks.episodes import AnyEpisode
from m2ray.util.errors import UserError
from m2ray.util.strict_yaml import validate
from m2ray.util.tables import Table, markdown


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the layers asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("point", help="a point that trains nothing")
    parser.add_argument("layers", nargs="+", help="such as 0-2 or 1,2")
    parser.add_argument("--k", type=int, help="slots, in place of the point's own")
    parser.add_argument(
        "--n", type=int, default=200, help="messages of the part `select`, from its first; at most all"
    )
    options = parser.parse_args(arguments)
    try:
        print(markdown(layer_table(options.space, options.point, options.layers, options.k, options.n)))
    except UserError as error:
        sys.exit(f"choose_layers: {error}")


def layer_table(space: Path, point: str, layers: Sequence[str], k: int | None, n: int) -> Table:
    """Return nats per token that carries the answer, under each set of layers and under text.

    Raises:
        UserError: no such point, a point that trains, fewer than two messages, or layers that the receiver lacks.
    """
    if n < 2:
        raise UserError(f"--n {n}: at least two messages, so that one can be wrong for the other")
    points = load_plan(space).points
    if point not in points:
        raise UserError(f"{space}: points: no {point}; there are {', '.join(points)}")
    example = points[point]
    if not example.codec.trains_nothing:
        raise UserError(f"{space}: points.{point}: it trains, so layers cannot be compared before training")
    receiver, source = load_trial_receiver(example), open_source(example.task)
    episodes = source.get(source.seeds(example.splits, "select")[:n], "select")
    return [
        [f"layers (n = {len(episodes)})", "the message", "a wrong message", "no message"],
        ["text", *_text_costs(receiver, episodes, example)],
        *(_costs(receiver, episodes, _with_layers(example, each, k), each) for each in layers),
    ]


def _with_layers(config: TrialConfig, layers: str, k: int | None) -> TrialConfig:
    """Return a configuration whose codec crosses at other layers, checked like any other."""
    chosen: list[int] = []
    for part in layers.split(","):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last:
            raise UserError(f"{layers!r:.60}: not layers; write them as 0-2 or 1,2")
        chosen += range(first, last + 1)
    data = config.model_dump()
    codec = {**data["codec"], "channel_layers": chosen, "k": config.codec.k if k is None else k}
    return validate(TrialConfig, {**data, "codec": codec}, f"layers {layers}")


@torch.no_grad()
def _text_costs(receiver: Receiver, episodes: Sequence[AnyEpisode], config: TrialConfig) -> list[str]:
    messages = [episode.message for episode in episodes]
    wrong = [messages[i] for i in derangement(episodes)]  # the partners that the codec's rows have
    return [
        f"{value_nll(receiver, episodes, texts, None, config.codec.place).mean():.3f}"
        for texts in (messages, wrong, [""] * len(messages))
    ]


def _costs(receiver: Receiver, episodes: Sequence[AnyEpisode], config: TrialConfig, layers: str) -> list[str]:
    score = search_score(receiver, untrained_codec(config, 0, receiver).eval(), episodes, config.evaluation)
    nll = score["search_nll"]
    return [layers, *(f"{cost:.3f}" for cost in (nll, nll + score["gain_shuffle"], nll + score["gain_P0"]))]


if __name__ == "__main__":
    main()
