"""Text to token ids and back: opening tokens, end tokens, chat templates, and text that has no tokens."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import jinja2

from m2ray.receiver.prompts import CARD
from m2ray.receiver.thinking import NO_THINKING, answer_opening
from m2ray.util.errors import UserError, describe_error

CACHED_TEXTS = 20_000  # texts whose tokens are kept
_PROBE = "x1 = 0"
_SPACES = ("\u2581", "\u0120")  # how tokens write a space: Metaspace, and byte-level BPE
_SEAMS = ("\n", "0")  # texts that another can follow
_USER, _ANSWER = "Q\x00", "A\x00"


class TextTokenizer:
    """A receiver's tokenizer, with the ids that begin and end what the receiver reads and writes.

    Args:
        tokenizer: A Hugging Face tokenizer.
        name: The receiver's name, for error messages.
        config: The model's configuration.
        generation_config: The model's generation configuration, if it has one.
    """

    def __init__(self, tokenizer: Any, name: str, config: Any, generation_config: Any) -> None:
        self.tokenizer = tokenizer
        self.name = name
        own = _token_ids(tokenizer.eos_token_id)
        listed = _token_ids(generation_config.eos_token_id if generation_config else None)
        configured = getattr(config.get_text_config(), "eos_token_id", None)
        # Tokens that end an answer. The model's own end token may be in the generation configuration only.
        ends = {*own, *(listed or ([] if own else _token_ids(configured)))}
        # Defaults of a configuration may lie beyond a small vocabulary; the model can never write them.
        size = getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer)
        self.end_ids = {token for token in ends if 0 <= token < size}
        own, listed = ([token for token in tokens if token in self.end_ids] for tokens in (own, listed))
        if not self.end_ids:
            raise UserError(
                f"receiver {name}: neither its tokenizer nor its generation_config.json names an end token; "
                "set eos_token"
            )
        self.pad_id = (own or sorted(self.end_ids))[0]  # fills padding; never attended to
        # Fills open slots. Models of RoBERTa's kind give their own padding token no position, which a slot needs.
        self.model_pad_id: int | None = getattr(config.get_text_config(), "pad_token_id", None)
        fillers = (self.pad_id, *own, *sorted(self.end_ids), *range(size))
        self.slot_id = next(token for token in fillers if token != self.model_pad_id)
        self._plain_end = ([end for end in own if end in listed] or listed or own or [self.pad_id])[0]
        self._ids = lru_cache(CACHED_TEXTS)(self._tokenize)
        self._checked = lru_cache(CACHED_TEXTS)(self._check)

    # --- text to tokens ---

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text that follows another, without special tokens.

        Raises:
            UserError: the tokenizer has no token for a part of the text, or would leave it out.
        """
        self._checked(text)
        return list(self._ids(text))

    def first_tokens(self, text: str) -> list[int]:
        """Return `tokens` of a text that is the first of a prompt; some tokenizers put a space before it."""
        self._checked(text)
        return self._plain_ids(text)

    def tokens_of_part(self, text: str) -> list[int]:
        """Return `tokens` of a text that may end in the middle of a word; unknown parts are allowed."""
        return list(self._ids(text))

    def _tokenize(self, text: str) -> tuple[int, ...]:
        for seam in _SEAMS if self._adds_space else ():
            before, both = self._plain_ids(seam), self._plain_ids(seam + text)
            if both[: len(before)] == before:
                return tuple(both[len(before) :])
        return tuple(self._plain_ids(text))

    def _plain_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _adds_space(self) -> bool:
        """Whether the tokenizer puts a space before a text (Llama 2), which it must not do within a prompt."""
        first = self._plain_ids(_PROBE)[:1]
        return any(str(token).startswith(_SPACES) for token in self.tokenizer.convert_ids_to_tokens(first))

    def _check(self, text: str) -> None:
        unknown = self._unknown_id
        # A tokenizer may use one token for unknown text and for the end.
        if unknown in self._ids(text) and str(self.tokenizer.convert_ids_to_tokens(unknown)) not in text:
            raise self._unreadable(text, self._first_unknown(text))
        lost = self._lost(text)
        if lost:
            raise self._unreadable(text, lost)

    @cached_property
    def _unknown_id(self) -> int:
        """The token of unknown text, also one that only the tokenizer's own file names; -1 where there is none."""
        if self.tokenizer.unk_token_id is not None:
            return int(self.tokenizer.unk_token_id)
        if not self.tokenizer.is_fast:
            return -1
        model = json.loads(self.tokenizer.backend_tokenizer.to_str())["model"]
        found = model.get("unk_id")  # of Unigram; the other kinds name the token
        if found is None:
            found = self.tokenizer.get_vocab().get(model.get("unk_token"))
        return -1 if found is None else int(found)

    def _first_unknown(self, text: str) -> str:
        unknown = self._unknown_id
        return next((word for word in text.split() if unknown in self._ids(word)), text)

    def _lost(self, text: str) -> str:
        """Return the first character that no token stands for; empty if there is none."""
        if self.tokenizer.is_fast:
            # A character that is left out moves the spans behind it, so that the last ones are missing.
            text = text.rstrip()
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            covered = {place for first, last in spans for place in range(first, last)}
            missing = next((c for i, c in enumerate(text) if not c.isspace() and i not in covered), "")
            if missing:
                return next((c for c in text if not c.isspace() and not self._ids(c)), missing)
        # A normalizer may take characters away, and its spans still cover them.
        left = Counter(_plain_characters(self.tokenizer.decode(self._ids(text))))
        lost = Counter(_plain_characters(text)) - left
        return next((c for c in text if lost.keys() & set(_plain_characters(c))), "")

    def _unreadable(self, text: str, part: str) -> UserError:
        shown = " ".join(text.split())[:80]
        return UserError(
            f"receiver {self.name}: its tokenizer has no token for `{part}` in `{shown}`; use another "
            "receiver, or a task in words that it knows"
        )

    @cached_property
    def opening_ids(self) -> list[int]:
        """Special tokens that the tokenizer puts before a text, such as the beginning-of-sequence token."""
        plain = self._plain_ids(_PROBE)
        full = list(self.tokenizer(_PROBE)["input_ids"])
        for first in range(len(full) - len(plain) + 1):
            if full[first : first + len(plain)] == plain:
                return full[:first]
        return []

    def check_vocabulary(self, rows: int) -> None:
        """Refuse a tokenizer that does not belong to a model with `rows` token embeddings.

        Raises:
            UserError: it has no tokens for plain text, or ids beyond the model's embeddings.
        """
        if not self.tokens_of_part(_PROBE) or max(self.tokenizer.get_vocab().values()) >= rows:
            raise UserError(
                f"receiver {self.name}: its tokenizer knows {len(self.tokenizer)} tokens, its model {rows}; "
                "give it the tokenizer that the model was trained with"
            )

    # --- chats ---

    def render_chat(self, system: str, user: str, answer: str | None = None) -> str:
        """Return a chat up to the place of the answer or, with `answer`, to its end.

        It is as the template writes it, but that a thought that the template opens before the answer is closed.
        A template without a system turn gets the system text before the user's. One that takes a turn's content in
        parts gets one part.

        Raises:
            UserError: the template fails, changes the user's text, or opens a thought that cannot be closed.
        """
        text = self._apply_template(system, user, answer)
        return text if answer is not None else text + self._answer_opening

    @cached_property
    def _answer_opening(self) -> str:
        """The text between a chat's prompt and its answer; see `m2ray.receiver.thinking`."""
        prompt = self._apply_template(_PROBE, _USER).rpartition(_USER)[2]
        try:
            full = self._apply_template(_PROBE, _USER, _ANSWER).rpartition(_USER)[2].rpartition(_ANSWER)[0]
        except UserError:
            full = None
        opening = answer_opening(prompt, full)
        if opening is None:
            raise UserError(
                f"receiver {self.name}: its chat template ends in a thought, {prompt[-40:]!r}, with no known end; "
                f'put {CARD} with {{"style": "plain"}} into its folder'
            )
        return opening

    def _apply_template(self, system: str, user: str, answer: str | None = None) -> str:
        """Return a chat as the template writes it."""
        causes = []
        for turns in _turns(system, user, answer):
            try:
                text = self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=answer is None, **NO_THINKING
                )
            except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
                causes.append(describe_error(error))
                continue
            if text.count(user) == 1 and system in text:
                return str(text)
            causes.append("it does not write the user's text once, and as it is")
        raise UserError(
            f"receiver {self.name}: its chat template fails ({causes[0]}); put {CARD} with "
            '{"style": "plain"} into its folder'
        )

    def end_id(self, chat: bool) -> int:
        """Return the token that ends a reference answer: in a chat, the first end token after the answer."""
        if chat:
            try:
                after = self.render_chat("", _USER, _ANSWER).rpartition(_ANSWER)[2]
            except UserError:
                return self._plain_end
            return next((token for token in self.tokens_of_part(after) if token in self.end_ids), self._plain_end)
        return self._plain_end


def _turns(system: str, user: str, answer: str | None) -> Sequence[list[dict[str, Any]]]:
    """Return the forms of a chat that templates take: with and without a system turn, whole and in parts."""
    answers = [] if answer is None else [{"role": "assistant", "content": answer}]
    merged = [{"role": "user", "content": f"{system}\n\n{user}" if system else user}, *answers]
    apart = [{"role": "system", "content": system}, merged[0] | {"content": user}, *answers] if system else merged
    return [form for turns in (apart, merged) for form in (turns, [_in_parts(turn) for turn in turns])]


def _in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    return turn | {"content": [{"type": "text", "text": turn["content"]}]}


def _token_ids(ids: int | Sequence[int] | None) -> list[int]:
    if ids is None:
        return []
    return [token for token in (ids if isinstance(ids, Sequence) else [ids]) if isinstance(token, int)]


def _plain_characters(text: str) -> str:
    """Return a text's characters without what tokenizers may change: case, accents, spaces, control codes."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "CMZ")
