"""Measure success against bits per message, for codecs and for text of the same size.

Codecs send their prefixes by the schemes of `m2ray.diagnosis.transmission`, fitted on messages of their training,
never on those that are sent. Their rivals have the same number of bits: the message as text, cut to whole bytes;
and the first of A's facts in a fixed code that both sides know, log2(number of possible facts) bits each, which B
reads as text. The fixed code knows what a message can state; the codec and the cut text do not.

Shapes: E episodes, M messages that fit the schemes, K slots, D width.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from m2ray.codec.checkpoints import checkpoint_id
from m2ray.codec.codec import load_codec
from m2ray.config.trial import TrialConfig
from m2ray.diagnosis.measure import decode_success
from m2ray.diagnosis.messages import training_messages
from m2ray.diagnosis.transmission import UNCHANGED, transmission_schemes
from m2ray.evaluation.inputs import ConditionInputs, Injection
from m2ray.judging import statistics as stats
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.ceilings import Ceilings, ceilings
from m2ray.tasks.episodes import AnyEpisode, Episode, write_facts
from m2ray.util.files import write_atomic
from m2ray.util.plotting import COLORS, hide_spines, legend_beside, png_and_svg, save, use_file_backend
from m2ray.util.tables import Table, markdown
from m2ray.util.text import percent

MESSAGES = 8192  # largest number of messages that fit ranges and codebooks
STRIDE = 4  # bytes between cuts of the text, or more for a text that would have over `MOST_CUTS`
MOST_CUTS = 40

TEXT, FACTS = "text", "facts"  # senders that are not codecs

MARKERS = {"whole prefix": "v", "slot": "o", "quarter slot": "s", "16th of a slot": "D", "entry": "P", "VQ": "*"}


# --- sending -------------------------------------------------------------------------------------------------


class Transmission(NamedTuple):
    """All episodes' messages, sent by one codec or as text under one scheme, and which episodes B solved."""

    sender: str  # a codec's name, TEXT or FACTS
    scheme: str
    setting: str
    bits: float
    solved_E: list[bool]


def codec_name(folder: Path) -> str:
    """Return a codec's name in table and picture, from its checkpoint folder."""
    checkpoint = checkpoint_id(folder)
    return f"{checkpoint.config}, seed {checkpoint.seed}, step {checkpoint.step}"


def send_prefixes(
    receiver: Receiver, trial: TrialConfig, folder: Path, episodes: Sequence[AnyEpisode], messages: int
) -> Iterator[Transmission]:
    """Send a checkpoint's prefixes by every scheme, fitted on at most `messages` training messages."""
    codec = load_codec(folder, receiver)
    training = training_messages(trial, checkpoint_id(folder).seed, messages)
    fit_MKD, prefix_EKD = (
        ConditionInputs(receiver, part, codec, None, trial.evaluation.batch_size).prefixes_EKD.float()
        for part in (training, episodes)
    )
    for scheme in transmission_schemes(codec, fit_MKD):
        restored, channel = list(scheme.restore(prefix_EKD)), codec.receiver.channel
        injection = Injection(None, restored, codec.config.place, channel=channel)
        solved_E, _ = decode_success(receiver, trial, episodes, injection)
        yield Transmission(codec_name(folder), scheme.scheme, scheme.setting, scheme.bits, solved_E)


def send_text(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[AnyEpisode], codec_bits: Sequence[float]
) -> Iterator[Transmission]:
    """Send the rivals: text cut every few bytes and to as many whole bytes as codecs send, and A's first facts."""
    longest = max(len(episode.message.encode()) for episode in episodes)
    stride = max(STRIDE, math.ceil(longest / MOST_CUTS))
    for size in sorted({*range(0, longest, stride), longest, *(min(longest, int(b / 8)) for b in codec_bits)}):
        texts = [episode.message.encode()[:size].decode(errors="ignore") for episode in episodes]
        solved_E, _ = decode_success(receiver, trial, episodes, Injection(texts, None, "message"))
        yield Transmission(TEXT, "cut", "all of it" if size == longest else f"{size} B", 8 * size, solved_E)
    puzzles = [episode for episode in episodes if isinstance(episode, Episode)]
    if not puzzles:  # what a message in free text can state is not known, so it has no fixed code
        return
    fact_bits = math.log2(puzzles[0].level.possible_facts)
    for count in range(1, max(len(episode.sender) for episode in puzzles) + 1):
        texts = [write_facts(episode.sender[:count]) for episode in puzzles]
        solved_E, _ = decode_success(receiver, trial, episodes, Injection(texts, None, "message"))
        yield Transmission(FACTS, "fixed code", f"first {count}", count * fact_bits, solved_E)


# --- results -------------------------------------------------------------------------------------------------


def summarize(sent: Sequence[Transmission]) -> pd.DataFrame:
    """Return a line for each transmission: bits, success with its Wilson interval, and a codec's lead over text.

    The lead is over the best text that uses no more bits, paired by episode.
    """
    texts = [each for each in sent if each.sender == TEXT]
    lines = []
    for each in sent:
        n, solved = len(each.solved_E), sum(each.solved_E)
        line: dict[str, Any] = {**each._asdict(), "n": n, "solved": solved, "success": solved / n}
        line["ci_low"], line["ci_high"] = stats.wilson(solved, n)
        if each.sender not in (TEXT, FACTS):
            # Text that is cut in the middle of a fact may mislead B, so more bytes are not always better.
            rival = max((t for t in texts if t.bits <= each.bits), key=lambda t: (sum(t.solved_E), t.bits))
            lead = stats.paired_difference(each.solved_E, rival.solved_E)
            line |= {"text": rival.setting, "lead": lead.value, "lead_low": lead.low, "lead_high": lead.high}
        lines.append(line)
    return pd.DataFrame(lines).drop(columns="solved_E")


def codec_names(table: pd.DataFrame) -> list[str]:
    """Return the senders that are codecs."""
    return [str(name) for name in table.sender.unique() if name not in (TEXT, FACTS)]


def comparison_sentence(table: pd.DataFrame, codec: str) -> str:
    """Return a sentence on where a codec beats text: for each number of bits, by the scheme that solves most."""
    own = table[(table.sender == codec) & (table.scheme != UNCHANGED)]
    best = own.sort_values("success").drop_duplicates("bits", keep="last").sort_values("bits").to_dict("records")

    def outcome(line: dict[Any, Any]) -> str:
        return "beats" if line["lead_low"] > 0 else "loses to" if line["lead_high"] < 0 else "cannot be told from"

    clauses = []
    for verb, neighbors in itertools.groupby(best, outcome):
        lines = list(neighbors)
        leads = [line["lead"] for line in lines]
        points = sorted({f"{100 * lead:+.0f}" for lead in (min(leads), max(leads))}, key=int)
        bits = dict.fromkeys(f"{round(lines[i]['bits'], 1):,g}" for i in (0, -1))
        clauses.append(f"at {' to '.join(bits)} bits it {verb} text ({' to '.join(points)} points)")
    for facts in table[table.sender == FACTS].tail(1).itertuples():  # none in free text
        within = own[own.bits <= facts.bits]
        most = f"it at most {percent(within.success.max())}" if len(within) else "it cannot send so few"
        clauses.append(
            f"A's facts in a fixed code of {facts.bits:.1f} bits solve {percent(facts.success)}, {most}"
        )
    return f"{codec}: {'; '.join(clauses)}."


def draw_distortion(table: pd.DataFrame, content: Ceilings | None) -> Any:
    """Draw success against bits, with a color for each sender and a marker for each scheme."""
    import matplotlib.pyplot as plt  # slow to import

    palette = [COLORS[name] for name in ("normal", "shuffle", "constant", "matched", "random")]
    colors = {name: palette[i % len(palette)] for i, name in enumerate(codec_names(table))}
    colors |= {TEXT: COLORS["P0"], FACTS: COLORS["P1"]}
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    sent = table[(table.bits > 0) & (table.scheme != UNCHANGED)]
    for (sender, scheme), part in sent.groupby(["sender", "scheme"], sort=False):
        lines = part.sort_values("bits")
        spans = 100 * np.stack([lines.success - lines.ci_low, lines.ci_high - lines.success])
        marker, color = MARKERS.get(str(scheme), "^"), colors[str(sender)]
        label = f"{sender}: {scheme}"
        axes.errorbar(
            lines.bits, 100 * lines.success, spans, fmt=f"{marker}-", color=color, ms=6, lw=1, label=label
        )
    for line in table[table.scheme == UNCHANGED].to_dict("records"):
        label = f"{line['sender']}: {UNCHANGED}"
        axes.axhline(100 * line["success"], color=colors[line["sender"]], lw=1, ls=":", label=label)
    nothing = table[(table.sender == TEXT) & (table.bits == 0)].iloc[0]
    axes.axhline(100 * nothing.success, color=COLORS["null"], lw=1, ls="--", label="no message")
    if content is not None:
        axes.axvline(content.message_bits, color=COLORS["null"], lw=1, ls="-.")
        note = f"{content.message_bits:.1f} bits: what a\nmessage tells about\nthe solution"
        axes.annotate(note, (content.message_bits, 2), (4, 0), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(ylim=(0, 100), xlabel="bits per message", ylabel="episodes solved (%), 95 % Wilson interval")
    axes.set_title(f"Success against bits per message, n = {int(table.n.iloc[0])}")
    legend_beside(axes)
    hide_spines(axes)
    return figure


def distortion_cells(table: pd.DataFrame) -> Table:
    """Return the table with shares in percent and leads in points."""
    cells = [["Sender", "Sent", "Setting", "Bits", "Solved", "95 % CI", "Best text", "Lead (points)"]]
    for line in table.to_dict("records"):
        row = [line["sender"], line["scheme"], line["setting"], f"{line['bits']:,.1f}", percent(line["success"])]
        row.append(f"[{percent(line['ci_low'])}, {percent(line['ci_high'])}]")
        if math.isnan(line["lead"]):
            row += ["", ""]
        else:
            low, high = 100 * line["lead_low"], 100 * line["lead_high"]
            row += [line["text"], f"{100 * line['lead']:+.1f} [{low:+.1f}, {high:+.1f}]"]
        cells.append(row)
    return cells


def distortion_text(
    table: pd.DataFrame, content: Ceilings | None, episodes: Sequence[AnyEpisode], receiver: Receiver
) -> str:
    """Return the report in Markdown: what was measured, a sentence for each codec, and the table."""
    told = "What a message tells in bits, and a fixed code for its facts, do not apply to a task in free text."
    if content is not None:
        told = (
            f"A message tells {content.message_bits:.1f} bits about the solution, {content.news_bits:.1f} of them "
            "news to B."
        )
    about = (
        f"Receiver {receiver.name} ({receiver.digest}), level {episodes[0].family}, n = {len(episodes)} "
        f"fresh messages that no training saw, seeds {episodes[0].seed}:{episodes[-1].seed + 1}. {told} The lead "
        "is over the best cut of the text to at most as many bits, on the same episodes, with a 95 % bootstrap "
        "interval."
    )
    sentences = "\n".join(f"- {comparison_sentence(table, name)}" for name in codec_names(table))
    return f"{about}\n\n{sentences}\n\n{markdown(distortion_cells(table))}"


def write_distortion(
    folder: Path, sent: Sequence[Transmission], episodes: Sequence[AnyEpisode], receiver: Receiver
) -> str:
    """Write distortion.md, .csv, .png and .svg, and outcomes.parquet with every episode; return the text."""
    puzzles = [episode for episode in episodes if isinstance(episode, Episode)]
    table, content = summarize(sent), ceilings(puzzles) if puzzles else None
    text = distortion_text(table, content, episodes, receiver)
    picture = "![Success against bits per message](distortion.png)"
    write_atomic(folder / "outcomes.parquet", _outcomes_parquet(sent, episodes))
    write_atomic(folder / "distortion.csv", table.to_csv(index=False).encode())
    write_atomic(folder / "distortion.md", f"# Rate and distortion\n\n{text}\n\n{picture}\n".encode())
    use_file_backend()
    save(draw_distortion(table, content), *png_and_svg(folder / "distortion"))
    return text


def _outcomes_parquet(sent: Sequence[Transmission], episodes: Sequence[AnyEpisode]) -> bytes:
    frames = []
    for each in sent:
        columns = each._asdict()
        solved_E = columns.pop("solved_E")
        frames.append(pd.DataFrame({**columns, "success": solved_E, "episode": [e.seed for e in episodes]}))
    parquet = io.BytesIO()
    pd.concat(frames, ignore_index=True).to_parquet(parquet, index=False)
    return parquet.getvalue()
