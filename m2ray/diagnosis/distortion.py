"""`python -m m2ray.distortion CHECKPOINT...`: success against bits per message, codecs beside text.

Codecs send their prefixes in the ways of `m2ray.quantisers`, fitted on messages that they were trained on, never
on those that are played. Their rivals have the same bits: the message as text, cut to whole bytes; and the first
of A's facts in a fixed code that both sides know, log2(number of possible facts) bits each, read by B as text. The
code knows what a message can say; codec and cut do not.

Shapes: E episodes, K slots, D width.
"""

from __future__ import annotations

import io
import itertools
import math
import operator
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
from m2ray.evaluation.conditions import ConditionInputs, Injection
from m2ray.judging import statistics as stats
from m2ray.receiver.receiver import Receiver
from m2ray.tasks.ceilings import Ceilings, ceilings
from m2ray.tasks.episodes import Episode, write_facts
from m2ray.util.files import write_atomic
from m2ray.util.plotting import COLOURS, png_and_svg, save, use_file_backend
from m2ray.util.tables import Table, markdown
from m2ray.util.text import percent

MESSAGES = 8192  # that fit ranges and codebooks, at most


STRIDE = 4  # bytes between cuts of the text


TEXT, FACTS = "text", "facts"


MARKERS = {"whole prefix": "v", "slot": "o", "quarter slot": "s", "16th of a slot": "D", "entry": "P", "VQ": "*"}


class Played(NamedTuple):
    """What was sent, and which episodes it solved."""

    sender: str  # a codec, TEXT or FACTS
    scheme: str
    setting: str
    bits: float
    solved_E: list[bool]


def codec_name(checkpoint: Path) -> str:
    """A codec as table and picture call it."""
    subject = checkpoint_id(checkpoint)
    return f"{subject.config}, seed {subject.seed}, step {subject.step}"


def play_codec(
    receiver: Receiver, trial: TrialConfig, folder: Path, episodes: Sequence[Episode], messages: int
) -> Iterator[Played]:
    """A checkpoint, sent in every way."""
    codec = load_codec(folder, receiver)
    fit_MKD, prefix_EKD = (
        ConditionInputs(receiver, part, codec, None, trial.evaluation.batch_size).prefixes_EKD.float()
        for part in (training_messages(trial, checkpoint_id(folder).seed, messages), episodes)
    )
    for way in transmission_schemes(codec, fit_MKD):
        sent = Injection(None, list(way.restore(prefix_EKD)), codec.config.place)
        solved_E, _ = decode_success(receiver, trial, episodes, sent)
        yield Played(codec_name(folder), way.scheme, way.setting, way.bits, solved_E)


def play_text(
    receiver: Receiver, trial: TrialConfig, episodes: Sequence[Episode], limits: Sequence[float]
) -> Iterator[Played]:
    """The rivals: text cut to the whole bytes in so many bits, and between; and A's first facts."""
    longest = max(len(episode.message.encode()) for episode in episodes)
    for size in sorted({*range(0, longest, STRIDE), longest, *(min(longest, int(bits / 8)) for bits in limits)}):
        texts = [episode.message.encode()[:size].decode(errors="ignore") for episode in episodes]
        solved_E, _ = decode_success(receiver, trial, episodes, Injection(texts, None, "message"))
        yield Played(TEXT, "cut", "all of it" if size == longest else f"{size} B", 8 * size, solved_E)
    fact_bits = math.log2(episodes[0].level.possible_facts)
    for count in range(1, max(len(episode.sender) for episode in episodes) + 1):
        texts = [write_facts(episode.sender[:count]) for episode in episodes]
        solved_E, _ = decode_success(receiver, trial, episodes, Injection(texts, None, "message"))
        yield Played(FACTS, "fixed code", f"first {count}", count * fact_bits, solved_E)


def summary(played: Sequence[Played]) -> pd.DataFrame:
    """One line each: bits, success with its Wilson interval, a codec's lead over the best text of its bits."""
    texts = [one for one in played if one.sender == TEXT]
    lines = []
    for one in played:
        n, solved = len(one.solved_E), sum(one.solved_E)
        line: dict[str, Any] = {**one._asdict(), "n": n, "solved": solved, "success": solved / n}
        line["ci_low"], line["ci_high"] = stats.wilson(solved, n)
        if one.sender not in (TEXT, FACTS):
            # A cut in the middle of a fact may mislead: the rival is the best that fits.
            rival = max((t for t in texts if t.bits <= one.bits), key=lambda t: (sum(t.solved_E), t.bits))
            lead = stats.paired_difference(one.solved_E, rival.solved_E)
            line |= {"text": rival.setting, "lead": lead.value, "lead_low": lead.low, "lead_high": lead.high}
        lines.append(line)
    return pd.DataFrame(lines).drop(columns="solved_E")


def codecs_of(table: pd.DataFrame) -> list[str]:
    """Senders that are neither rival."""
    return [str(name) for name in table.sender.unique() if name not in (TEXT, FACTS)]


def comparison_sentence(table: pd.DataFrame, codec: str) -> str:
    """Where a codec beats text and where it does not, of each number of bits the way that solves most."""
    own = table[(table.sender == codec) & (table.scheme != UNCHANGED)]
    best = own.sort_values("success").drop_duplicates("bits", keep="last").sort_values("bits").to_dict("records")

    def standing(line: dict[Any, Any]) -> str:
        return "beats" if line["lead_low"] > 0 else "loses to" if line["lead_high"] < 0 else "cannot be told from"

    lead = operator.itemgetter("lead")
    clauses = []
    for verdict, run_of_lines in itertools.groupby(best, standing):
        part = list(run_of_lines)
        points = sorted(
            {f"{100 * line['lead']:+.0f}" for line in (min(part, key=lead), max(part, key=lead))}, key=int
        )
        bits = dict.fromkeys(f"{round(part[i]['bits'], 1):,g}" for i in (0, -1))
        clauses.append(f"at {' to '.join(bits)} bits it {verdict} text ({' to '.join(points)} points)")
    facts = table[table.sender == FACTS].iloc[-1]
    within = own[own.bits <= facts.bits]
    most = f"it at most {percent(within.success.max())}" if len(within) else "it cannot send so few"
    clauses.append(f"A's facts in a fixed code of {facts.bits:.1f} bits solve {percent(facts.success)}, {most}")
    return f"{codec}: {'; '.join(clauses)}."


def draw_distortion(table: pd.DataFrame, content: Ceilings) -> Any:
    """Success against bits: a colour for each sender, a marker for each way of sending."""
    import matplotlib.pyplot as plt

    palette = [COLOURS[name] for name in ("normal", "shuffle", "constant", "matched", "random")]
    colours = {name: palette[i % len(palette)] for i, name in enumerate(codecs_of(table))}
    colours |= {TEXT: COLOURS["P0"], FACTS: COLOURS["P1"]}
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    sent = table[(table.bits > 0) & (table.scheme != UNCHANGED)]
    for (sender, scheme), part in sent.groupby(["sender", "scheme"], sort=False):
        at = part.sort_values("bits")
        spans = 100 * np.stack([at.success - at.ci_low, at.ci_high - at.success])
        marker, colour = MARKERS.get(str(scheme), "^"), colours[str(sender)]
        label = f"{sender}: {scheme}"
        axes.errorbar(at.bits, 100 * at.success, spans, fmt=f"{marker}-", color=colour, ms=6, lw=1, label=label)
    for line in table[table.scheme == UNCHANGED].to_dict("records"):
        label = f"{line['sender']}: {UNCHANGED}"
        axes.axhline(100 * line["success"], color=colours[line["sender"]], lw=1, ls=":", label=label)
    nothing = table[(table.sender == TEXT) & (table.bits == 0)].iloc[0]
    axes.axhline(100 * nothing.success, color=COLOURS["null"], lw=1, ls="--", label="no message")
    axes.axvline(content.message_bits, color=COLOURS["null"], lw=1, ls="-.")
    note = f"{content.message_bits:.1f} bits: what a\nmessage tells about\nthe solution"
    axes.annotate(note, (content.message_bits, 2), (4, 0), textcoords="offset points", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(ylim=(0, 100), xlabel="bits per message", ylabel="episodes solved (%), 95 % Wilson interval")
    axes.set_title(f"Success against bits per message, n = {int(table.n.iloc[0])}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def distortion_cells(table: pd.DataFrame) -> Table:
    """The table for people."""
    out = [["Sender", "Sent", "Setting", "Bits", "Solved", "95 % CI", "Best text", "Lead (points)"]]
    for line in table.to_dict("records"):
        cell = [line["sender"], line["scheme"], line["setting"], f"{line['bits']:,.1f}", percent(line["success"])]
        cell.append(f"[{percent(line['ci_low'])}, {percent(line['ci_high'])}]")
        if math.isnan(line["lead"]):
            cell += ["", ""]
        else:
            low, high = 100 * line["lead_low"], 100 * line["lead_high"]
            cell += [line["text"], f"{100 * line['lead']:+.1f} [{low:+.1f}, {high:+.1f}]"]
        out.append(cell)
    return out


def write_distortion(
    folder: Path, played: Sequence[Played], episodes: Sequence[Episode], receiver: Receiver
) -> str:
    """Write distortion.md, .csv, .png and .svg, and outcomes.parquet with every episode; returns the text."""
    table, content = summary(played), ceilings(episodes)
    about = (
        f"Receiver {receiver.name} ({receiver.digest}), level {episodes[0].level.name}, n = {len(episodes)} "
        f"fresh messages that no training saw, seeds {episodes[0].seed}:{episodes[-1].seed + 1}. A message tells "
        f"{content.message_bits:.1f} bits about the solution, {content.news_bits:.1f} of them news to B. The lead "
        "is over the best cut of the text to at most as many bits, on the same episodes, with a 95 % bootstrap "
        "interval."
    )
    sentences = "\n".join(f"- {comparison_sentence(table, name)}" for name in codecs_of(table))
    text = f"{about}\n\n{sentences}\n\n{markdown(distortion_cells(table))}"
    picture = "![Success against bits per message](distortion.png)"
    outcomes = [
        pd.DataFrame({**dict(zip(Played._fields[:4], one, strict=False)), "success": one.solved_E}).assign(
            episode=[episode.seed for episode in episodes]
        )
        for one in played
    ]
    parquet = io.BytesIO()
    pd.concat(outcomes, ignore_index=True).to_parquet(parquet, index=False)
    write_atomic(folder / "outcomes.parquet", parquet.getvalue())
    write_atomic(folder / "distortion.csv", table.to_csv(index=False).encode())
    write_atomic(folder / "distortion.md", f"# Rate and distortion\n\n{text}\n\n{picture}\n".encode())
    use_file_backend()
    save(draw_distortion(table, content), *png_and_svg(folder / "distortion"))
    return text
