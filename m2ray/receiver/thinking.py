"""Chat templates of models that reason before they answer: what must follow a prompt so that the answer can."""

from __future__ import annotations

import re

# Template variables by which such models are told not to (Qwen3, SmolLM3; Granite, DeepSeek-V3.1). Other templates
# ignore them.
NO_THINKING = {"enable_thinking": False, "thinking": False}
_NAME = r"\w*(?:think|thought|reason)\w*"
_OPENED = re.compile(rf"(?P<tag><(?:\w+:)?{_NAME}>|\[{_NAME}\])(?P<space>\s*)\Z", re.IGNORECASE)
# A last word such as that of <|begin_of_thought|> or <|channel|>analysis<|message|>.
_UNKNOWN = re.compile(
    r"(?<![/\w])(?!end|close)\w*(?:think|thought|reason|analysis)\w*(?:\W|message)*\Z", re.IGNORECASE
)


def answer_opening(prompt: str, full: str | None) -> str | None:
    """Return the text between a chat's prompt and the answer, for most templates none.

    Args:
        prompt: The end of a chat as the template writes it for the model to go on, behind the user's text.
        full: The same of a chat with an answer, up to the answer; None where the template cannot write it.

    Returns:
        What the template itself puts before an answer, such as an empty thought. Else the end of a thought that
        the prompt opens: behind an empty thought these models answer at once. None where the prompt opens a
        thought that ends in an unknown way.
    """
    missing = full.removeprefix(prompt) if full is not None and full.startswith(prompt) else ""
    if missing.strip():
        return missing
    opened = _OPENED.search(prompt)
    if opened:
        end = f"{opened['tag'][0]}/{opened['tag'][1:]}"
        # Templates that open a thought on a line of its own close it on another (Qwen3, DeepSeek-R1); the others
        # write both tags without a space (GLM-4.5, Nemotron).
        return f"\n{end}\n\n" if "\n" in opened["space"] else end
    return None if _UNKNOWN.search(prompt) else ""
