"""Model card of a codec: what it is, which receiver it needs, how it was judged, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from m2ray.codec.local_paths import command_without_folders, without_folders

LIBRARY = "m2ray"
EXAMPLE_SEEDS = "5000000:5001000"  # episode seeds in example commands; any unused seeds will do


def model_card(record: Mapping[str, Any], where: str, train_command: str = "") -> ModelCard:
    """Return the model card for a codec's folder.

    Args:
        record: The codec's config.json.
        where: The folder or hub name to load the codec from.
        train_command: The command that trains it again; empty if there is none.
    """
    codec, published = record["codec"], record.get("published", {})
    where = without_folders(where)
    receiver = without_folders(str(record.get("receiver", "unknown")))
    trial = record.get("trial", {})
    channel = f", channel {codec['channel']}" if "channel" in codec else ""
    verdict = published.get("verdict", "none: the codec has not been judged by a gate")
    data = ModelCardData(library_name=LIBRARY, license="apache-2.0", tags=["latent-communication", "soft-prefix"])
    text = [
        f"---\n{data.to_yaml()}\n---",
        f"# {where.rstrip('/').rpartition('/')[2]}",
        f"A codec: it turns agent A's message into {codec['k']} soft-prefix vectors (encoder {codec['encoder']}, "
        f"place {codec['place']}{channel}) for the frozen receiver {receiver} (digest "
        f"{record['receiver_digest']}). The digest of the codec is {record['digest']}.",
        f"Task level: {trial.get('task', {}).get('level', 'unknown')}. Verdict: {verdict}.",
    ]
    if made := published.get("made"):
        made = command_without_folders(made)
        text.append(f"Made by `{made}`, configuration {record['config']}, training seed {record['seed']}.")
    text.append(
        "Evaluate it on messages that it was not trained on, with any seeds:\n\n"
        f"    python -m m2ray.evaluate {where} --episodes {EXAMPLE_SEEDS}\n\nOr load it in Python:\n\n"
        "```python\nimport m2ray\n\n"
        f'receiver = m2ray.load_receiver("{receiver if "receiver" in record else "mini"}")\n'
        f'codec = m2ray.Codec.from_pretrained("{where}", receiver=receiver)\n```'
    )
    if train_command:
        text.append(f"Train it again:\n\n    {train_command}")
    text.append(
        "PASS means that the receiver solves more episodes with the right message's prefix than without a prefix, "
        "by the gate's margin, and than with a wrong message's, on unseen messages; PART, that it keeps less "
        "than half of what the text gains, or may; WHOLE, that it is nearly as good as the text. None of them "
        "extends to other receivers or tasks."
    )
    return ModelCard("\n\n".join(text) + "\n")
