"""Command `m2ray`, or `python -m m2ray`: list all commands, or run one."""

import difflib
import importlib.metadata
import runpy
import sys

COMMANDS = {
    "sweep": "train, ablate, judge and tabulate codecs",
    "status": "show how far a sweep is, while it runs or after",
    "report": "rebuild a sweep's tables, pictures and page from its rows",
    "gate": "judge rows, or counts of successes, by a gate",
    "compare": "compare two results: the difference, with its interval",
    "evaluate": "run one checkpoint under the ablation conditions",
    "diagnose": "find where a codec loses its message",
    "distortion": "compare success per bit of codecs and text",
    "export": "write a configuration of a sweep as YAML, to train it or search around it",
    "publish": "copy a trained codec into a folder of its own",
    "train": "train one configuration",
    "fetch": "fetch a small pretrained receiver",
    "check_receiver": "check that a receiver's numbers are its model's own",
    "train_receiver": "train or adapt a receiver",
    "false_pass": "simulate how often codecs that carry nothing pass",
}


def main() -> None:
    """List the commands, print the version, or run the command that the first word names."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"m2ray.{word}", run_name="__main__", alter_sys=True)
    elif word == "--version":
        print(f"m2ray {importlib.metadata.version('m2ray')}")
    elif word in ("", "-h", "--help"):
        print("Commands, each with --help; `m2ray NAME` and `python -m m2ray.NAME` are the same:\n")
        for name, summary in COMMANDS.items():
            print(f"  {f'python -m m2ray.{name}':<32} {summary}")
    else:
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        advice = f"did you mean {close[0]}?" if close else "use one that `python -m m2ray` lists"
        print(f"error: {word!r:.60}: no such command; {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
