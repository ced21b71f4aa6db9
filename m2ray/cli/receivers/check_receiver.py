"""Command `python -m m2ray.check_receiver R`: does m2ray read this receiver exactly?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from m2ray.cli.runner import BAD_INPUT, DONE, Parser
from m2ray.util.tables import markdown

HEADS = ["path", "tokens", "logit error", "log-prob error", "answers differ"]


def main(argv: Sequence[str]) -> int:
    """Check a receiver and print how far each way of running it is from its model's own numbers."""
    parser = Parser(
        prog="python -m m2ray.check_receiver",
        description="Hold m2ray's forward passes, gradients and greedy answers against the model's own, a row at "
        "a time, without padding and cache. Exit code 0 where they agree, 2 where they do not.",
    )
    parser.add_argument("receiver", help="`mini`, a fetched receiver's name, a folder, or a hub name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as in a sweep")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    # Loads torch: --help need not wait for it.
    from m2ray.receiver.conformance.kept import tested, versions
    from m2ray.receiver.loading import load_unchecked

    receiver = load_unchecked(args.receiver, dtype=args.dtype)
    result = {
        "receiver": receiver.name,
        "model": type(receiver.model).__name__,
        "digest": receiver.digest,
        "dtype": receiver.dtype_name,
        "device": receiver.device.type,
        "versions": versions(),
        **tested(receiver).summary(),
    }
    print(json.dumps(result) if args.json else describe(result))
    return DONE if result["conforms"] else BAD_INPUT


def describe(result: Mapping[str, Any]) -> str:
    """Return a check as text."""
    ways = result["ways"]
    lines = [
        f"{result['receiver']}: {result['model']}, digest {result['digest']}, {result['dtype']} on "
        f"{result['device']}",
        "",
        markdown([HEADS, *map(_line, result["paths"])]),
        "",
        f"identity: a text's own embeddings in slots change a logit by at most {result['identity_error']:.2g}",
        f"gradients to slots: {result['gradient_error']:.2g} of the largest",
        f"layers run {'apart from' if ways['trunk'] else 'with'} the head, from "
        f"{'token ids and embeddings' if ways['ids'] else 'embeddings'}; up to {ways['padded']} columns in a "
        f"padded batch, {ways['kept']} with a kept prompt prefix, {ways['drafted']} with drafts, "
        f"{ways['reread']} with drafts and without a cache; tested up to {ways['tested']}",
    ]
    if result["rejected"]:
        lines += ["", "not used, since it differs:", markdown([HEADS, *map(_line, result["rejected"])])]
    lines += ["", result["refusal"] or "agrees with the model's own numbers"]
    return "\n".join(lines)


def _line(path: Mapping[str, Any]) -> list[str]:
    errors = [f"{path[name]:.2g}" for name in ("logit_error", "logprob_error")]
    differ = f"{path['answers_differ']} of {path['rows']}"
    return [
        path["path"],
        str(path["columns"]),
        *(["-", "-", path["failure"][:60]] if path["failure"] else [*errors, differ]),
    ]
