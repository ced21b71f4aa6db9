"""A codec's card: what it is, for which receiver, how it was judged, and how to play it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

LIBRARY = "m2ray"


def model_card(record: Mapping[str, Any], where: str, remake: str = "") -> ModelCard:
    """A model card for a codec's folder.

    Args:
        record: Its config.json.
        where: The folder or hub name to load it from.
        remake: The command that trains it again, where there is one.
    """
    codec, published = record["codec"], record.get("published", {})
    trial = record.get("trial", {})
    judged = published.get("verdict", "not judged: no gate has been put to it")
    data = ModelCardData(library_name=LIBRARY, license="apache-2.0", tags=["latent-communication", "soft-prefix"])
    text = [
        f"---\n{data.to_yaml()}\n---",
        f"# {where.rstrip('/').rpartition('/')[2]}",
        f"A codec: it turns agent A's message into {codec['k']} soft-prefix vectors (encoder {codec['encoder']}, "
        f"place {codec['place']}) for the frozen receiver {record.get('receiver', 'unknown')} (digest "
        f"{record['receiver_digest']}). Its own digest is {record['digest']}.",
        f"Task level: {trial.get('task', {}).get('level', 'unknown')}. Verdict: {judged}.",
    ]
    if made := published.get("made"):
        text.append(f"Made by `{made}`, configuration {record['config']}, training seed {record['seed']}.")
    text.append(
        "Play it on messages that it never saw, any seeds:\n\n"
        f"    python -m m2ray.evaluate {where} --seeds {PLAYED}\n\nOr from Python:\n\n"
        "```python\nimport m2ray\n\n"
        f'receiver = m2ray.load_receiver("{record.get("receiver", "mini")}")\n'
        f'codec = m2ray.Codec.from_pretrained("{where}", receiver=receiver)\n```'
    )
    if remake:
        text.append(f"Train it again:\n\n    {remake}")
    text.append(
        "A PASS says that the receiver solves more episodes with the right message's prefix than with none and "
        "with a wrong one, by the gate's margins, on unseen messages. It says nothing of other receivers or tasks."
    )
    return ModelCard("\n\n".join(text) + "\n")


PLAYED = "5000000:5001000"  # in example commands; any other seeds do as well
