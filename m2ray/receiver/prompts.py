"""How a task is put to a model: the wording of B's prompt, and the form of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from m2ray.tasks.answers import AnswerForm

CARD = "m2ray.json"  # in a receiver's folder: its style, and what it was trained on


@dataclass(frozen=True)
class Style:
    """How a task is put to a model. `{message}` marks the slots, `{context}` B's half; chat goes through the
    tokenizer's own chat template.
    """

    user: str
    answer: AnswerForm
    system: str = ""
    chat: bool = False


STYLES = {
    "compact": Style(user="A {message} B {context} ?", answer="values"),
    # An example answer with the puzzle's own keys is copied, value by value; "each from 0 to {top}" draws zeros.
    # The constraints come last, so that what every prompt starts with is read once (`WORTH_SHARING`).
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
