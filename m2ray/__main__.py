"""Command `python -m m2ray`: list all commands."""

COMMANDS = {
    "sweep": "train, ablate, judge and tabulate codecs",
    "status": "show how far a sweep is, while it runs or after",
    "report": "rebuild a sweep's tables, pictures and page from its rows",
    "gate": "judge rows, or counts of successes, by a gate",
    "evaluate": "run one checkpoint under the ablation conditions",
    "diagnose": "find where a codec loses its message",
    "distortion": "compare success per bit of codecs and text",
    "publish": "copy a trained codec into a folder of its own",
    "train": "train one configuration",
    "fetch": "fetch a small pretrained receiver",
    "check_receiver": "check that a receiver's numbers are its model's own",
    "train_receiver": "train or adapt a receiver",
    "false_pass": "simulate how often codecs that carry nothing pass",
}


def main() -> None:
    """Print each command and what it does."""
    print("Commands, each with --help:\n")
    for name, summary in COMMANDS.items():
        print(f"  {f'python -m m2ray.{name}':<32} {summary}")


if __name__ == "__main__":
    main()
