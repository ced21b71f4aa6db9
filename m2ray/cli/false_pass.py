"""Estimate false passes and power of a gate by simulation: `python -m m2ray.false_pass --out FOLDER`.

`m2ray.judging.false_pass` describes the simulation.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from m2ray.cli.runner import DONE, Parser
from m2ray.config.gate_file import GateConfig, load_gate
from m2ray.config.space import Judge
from m2ray.judging.false_pass import (
    ALIKE,
    P1,
    SPREAD,
    PassRate,
    false_pass_rates,
    false_pass_table,
    power_rates,
    power_table,
)
from m2ray.util.errors import UserError
from m2ray.util.files import check_writable, write_atomic, write_json
from m2ray.util.tables import markdown


def main(argv: Sequence[str]) -> int:
    """Simulate sweeps, print the tables, and write false-pass.json and false-pass.md."""
    parser = Parser(prog="python -m m2ray.false_pass", description="How often what must not pass does.")
    parser.add_argument("--out", type=Path, required=True, help="folder for false-pass.json and false-pass.md")
    parser.add_argument("--gate", help="content (default), or a gate file with grades")
    parser.add_argument("--sweeps", type=int, default=1000, help="simulated sweeps of each kind; default: 1000")
    parser.add_argument("--n", type=int, default=500, help="episodes on confirm; default: 500")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds of a configuration; default: 3")
    parser.add_argument("--draws", type=int, default=0, help="seed of the simulation; default: 0")
    args = parser.parse_args(argv)
    for name, least in (("sweeps", 1), ("seeds", 1), ("n", 2), ("draws", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: give {least} or more")
    check_writable("--out", args.out)
    gate = load_gate(args.gate)
    if gate.grades is None:
        raise UserError(f"--gate {args.gate}: has no grades, so it judges no configuration; use content")
    gc.freeze()  # statsmodels collects garbage at each of its calls, which takes 0.2 s with all modules
    rates = false_pass_rates(gate, args.sweeps, args.draws, seeds=args.seeds, n=args.n)
    power = power_rates(gate, args.sweeps, args.draws)
    text = false_pass_text(gate, rates, power)
    print("\n" + text)
    lines = [rate._asdict() for rate in (*rates, *power)]
    write_json(args.out / "false-pass.json", {"gate": gate.name, "draws": args.draws, "lines": lines})
    write_atomic(args.out / "false-pass.md", text.encode())
    return DONE


def false_pass_text(gate: GateConfig, rates: Sequence[PassRate], power: Sequence[PassRate]) -> str:
    """Return both tables in Markdown with their explanation."""
    one = rates[0]
    return f"""# False passes and power of the gate `{gate.name}`

Share of {one.sweeps} simulated sweeps in which the gate passes something that must not pass, with 95 % Wilson
intervals. All configurations of a sweep are of the kind named, with {one.seeds} training seeds each. The sweep
ranks them on search, takes {Judge().select} to select and judges {Judge().confirm} on {one.n} confirm episodes. A
pass is PASS or WHOLE, and for codecs that carry nothing PART as well. Full text solves {100 * P1:.0f} %; outcomes
of the same episode correlate ({ALIKE:g} of the underlying variable), rates of training seeds differ by
{100 * SPREAD:g} points. The naive reading takes the best training of all on one split of the same size, and passes
it if it beats no message there (McNemar, p <= 0.05).

{markdown(false_pass_table(rates))}

## Power

Share of {power[0].sweeps} simulated codecs of which the gate says so, judged alone.

{markdown(power_table(power))}
"""
