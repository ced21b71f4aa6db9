"""Hold receivers of every architecture against their models' own numbers, and write docs/verified-receivers.md.

A tiny random model of every causal LM that transformers knows is saved, loaded as a receiver, and compared with
`model(input_ids).logits` and with greedy decoding that reads the whole row again for every token.

    python scripts/receiver_matrix.py                     # all, in minutes; writes the page
    python scripts/receiver_matrix.py mistral qwen3_next  # some; prints them
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from own_numbers import BOUND, answers_that_differ, gradient_error, logit_error
from tiny_models import NOT_BUILT, causal_types, tiny_receiver

from m2ray.receiver.loading import load_receiver
from m2ray.receiver.model.causal_model import Ways
from m2ray.util.errors import UserError
from m2ray.util.tables import markdown

PAGE = Path(__file__).parents[1] / "docs" / "verified-receivers.md"
TOKENS = 10  # of a greedy answer
EXACT, REFUSED, WRONG = "exact", "refused", "WRONG"


class Result(NamedTuple):
    """How a receiver of one architecture fared.

    Attributes:
        model_type: The model's type.
        model: The model's class.
        verdict: `EXACT`, `REFUSED` or `WRONG`.
        ways: The ways in which it is run; None if it is refused.
        error: Largest error of a logit, in standard deviations of a position's logits.
        gradient: Largest error of a gradient to vectors in slots, relative to the largest gradient.
        differ: Greedy answers that are not the model's own.
        answers: Greedy answers compared.
        reason: Why it is refused.
    """

    model_type: str
    model: str
    verdict: str
    ways: Ways | None = None
    error: float = 0.0
    gradient: float = 0.0
    differ: int = 0
    answers: int = 0
    reason: str = ""


def measure(model_type: str, folder: Path) -> Result:
    """Build a receiver of a type in a folder, load it, and compare it with its model's own numbers."""
    model = type(tiny_receiver(model_type, folder)).__name__
    try:
        receiver = load_receiver(str(folder), device="cpu")
        error, gradient = logit_error(receiver), gradient_error(receiver)
        differ, answers = answers_that_differ(receiver, TOKENS)
        verdict = EXACT if error < BOUND and gradient < 10 * BOUND and not differ else WRONG
        return Result(model_type, model, verdict, receiver.causal.ways, error, gradient, differ, answers)
    except UserError as refusal:
        reason = str(refusal).removeprefix(f"receiver {folder}: ").removeprefix(f"{model}: ")
        return Result(model_type, model, REFUSED, reason=reason.removesuffix("; use another model"))
    except Exception as fault:  # whatever a model raises: the other types are measured all the same
        return Result(model_type, model, WRONG, error=float("inf"), reason=repr(fault)[:200])


def page(results: Sequence[Result]) -> str:
    """Return the page that lists the results."""
    exact = [result for result in results if result.verdict == EXACT]
    wrong = [result for result in results if result.verdict == WRONG]
    refused = [result for result in results if result.verdict == REFUSED]
    lines = [
        "# Verified receivers",
        "",
        "Which architectures give their model's own numbers as receivers, and which are refused.",
        "",
        f"Written by `python scripts/receiver_matrix.py` on {datetime.date.today()} with torch "
        f"{torch.__version__} and transformers {transformers.__version__}, in float32 on a CPU. It builds a tiny "
        f"random model of each of the {len(results)} types, loads it as a receiver, and compares with "
        "`model(input_ids).logits`, a row at a time, and with greedy decoding that reads the whole row again for "
        "every token: six episodes of level `easy` as text, and with 3 random vectors before, in and after the "
        "prompt. Errors of logits are in standard deviations of a position's logits; gradients are those to "
        "vectors behind the prompt, relative to the largest.",
        "",
        "A receiver of any architecture is checked in the same way when it is first loaded, in the numeric "
        "type and on the device that are used: `python -m m2ray.check_receiver NAME` prints the check.",
        "",
        f"## Exact: {len(exact)} types",
        "",
        "The ways in which each is run. *Padded*: rows of different lengths in one batch. *Prefix*: the KV cache "
        "of a prompt's beginning is kept. *Drafts*: decoding with a KV cache and rejected drafts. A number is the "
        "longest row in which a way is exact, such as that of a sliding window; beyond it, and where there is "
        "none, the slower way is taken: rows of one length, from the first token.",
        "",
        markdown([["type", "model", "layers run", "padded", "prefix", "drafts", "logit error", "gradient error",
                   "answers that differ"], *map(_exact_line, exact)]),
        "",
    ]  # fmt: skip
    if wrong:
        lines += ["## Wrong", "", markdown([["type", "model", "logit error", "answers that differ"], *(
            [f"`{r.model_type}`", r.model, f"{r.error:.2g}", f"{r.differ} of {r.answers}"] for r in wrong
        )]), ""]  # fmt: skip
    lines += [
        f"## Refused: {len(refused)} types",
        "",
        markdown([["type", "model", "reason"], *([f"`{r.model_type}`", r.model, r.reason] for r in refused)]),
        "",
        "Encoders such as BERT are built as decoders (`is_decoder: true`). Without it they are refused, since "
        "they are not causal. BigBird is built with `attention_type: original_full`: with the default, a short "
        "row changes how it attends to all rows that follow, and it is refused.",
        "",
        "## Not built",
        "",
        markdown([["type", "reason"], *([f"`{name}`", reason] for name, reason in NOT_BUILT.items())]),
        "",
    ]
    return "\n".join(lines)


def _exact_line(result: Result) -> list[str]:
    ways = result.ways
    assert ways is not None
    run = (
        f"{'whole model' if ways.trunk is None else 'apart from the head'}{', with token ids' if ways.ids else ''}"
    )
    limits = [_limit(limit, ways.tested) for limit in (ways.padded, ways.kept, ways.drafted)]
    errors = [f"{result.error:.0e}", f"{result.gradient:.0e}", f"{result.differ} of {result.answers}"]
    return [f"`{result.model_type}`", result.model, run, *limits, *errors]


def _limit(limit: int, tested: int) -> str:
    return "yes" if limit >= tested else str(limit) if limit else "no"


def main(argv: Sequence[str]) -> int:
    """Run the matrix; exit code 1 where numbers are wrong."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("types", nargs="*", help="default: all, and the page is written")
    args = parser.parse_args(argv)
    _quiet()
    with tempfile.TemporaryDirectory() as root:
        os.environ["XDG_CACHE_HOME"] = root  # no check is kept from an earlier run
        results = list(_measure_all(args.types or [t for t in causal_types() if t not in NOT_BUILT], Path(root)))
    if not args.types:
        PAGE.write_text(page(results))
    return int(any(result.verdict == WRONG for result in results))


def _measure_all(types: Iterable[str], root: Path) -> Iterable[Result]:
    for model_type in types:
        with contextlib.redirect_stderr(None):
            result = measure(model_type, root / model_type)
        print(f"{result.verdict:8} {model_type:24} {result.error:.1e} {result.differ} {result.reason}", flush=True)
        load_receiver.cache_clear()
        yield result


def _quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # the fastest for tiny models


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
