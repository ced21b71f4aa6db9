"""Prompt styles: the wording of B's prompt, and the form of its answer.

A receiver's digest is computed from `repr` of its style. Change neither a text nor a field of `Style`: it would
change the digests of published receivers.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2ray.tasks.answers import AnswerForm

CARD = "m2ray.json"  # in a receiver's folder: its prompt style, and how it was trained


@dataclass(frozen=True)
class Style:
    """One wording of B's prompt.

    Attributes:
        user: The prompt, or the user's turn of a chat: `{message}` is the message's place, `{context}` B's half.
        answer: The form of B's answer.
        system: The system turn of a chat.
        chat: Put both turns through the tokenizer's chat template.
    """

    user: str
    answer: AnswerForm
    system: str = ""
    chat: bool = False


STYLES = {
    "compact": Style(user="A {message} B {context} ?", answer="values"),
    # Models copy an example answer with the puzzle's own keys value by value, and answer "each from 0 to {top}"
    # with zeros. The constraints come last, so that all prompts share their opening, whose KV cache is kept
    # (`m2ray.receiver.model.kv_cache`).
    "chat": Style(
        chat=True,
        answer="json",
        system="You solve small constraint puzzles and answer with one line of JSON such as "
        '{"a": 1, "b": 2} and nothing else.',
        user="Find whole numbers for {names}, none above {top}, that satisfy every constraint. "
        "Answer with one JSON object on one line and nothing else, with the keys {names}.\n"
        "Constraints: {message}; {context}",
    ),
    "plain": Style(
        answer="json",
        user='Puzzles, each answered with one line of JSON such as {{"a": 1, "b": 2}}.\n\n'
        "Find whole numbers for {names}, none above {top}, that satisfy every constraint:\n"
        "{message}; {context}\n"
        "Answer, a JSON object with the keys {names}:\n",
    ),
}
