"""From an example to the text that a model reads: a template applied, and where in the text the assistant speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2

from raysft.corpus.example import Example
from raysft.spec.templates import Template

Message = Mapping[str, str]  # role (system, user or assistant) and content

# What Llama's templates write where no date is given to them; any day will do, as long as it is not today's.
_DAY = "26 Jul 2024"
_REPLY = "reply"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the character ranges in it, ascending and disjoint, that the assistant says.

    A range starts where a model takes over from the prompt, so that what a template writes between the two, such as the
    space of `paper`, is the assistant's. It ends with the template's mark for the end of a turn, or with the reply.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def render_examples(examples: Sequence[Example], tokenizer: Any, template: Template) -> list[Rendered]:
    """Each example under the template; only `chat` asks the tokenizer. ValueError, by row from 1, for what it cannot
    hold, and for a chat template that is not there or not fit for training (see `ChatRenderer`)."""
    chosen = renderer(template, tokenizer)
    rendered = []
    for number, example in enumerate(examples, start=1):
        try:
            rendered.append(chosen.render(example))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return rendered


def renderer(template: Template, tokenizer: Any) -> TextRenderer | ChatRenderer:
    """What renders texts and prompts of a template. ValueError if it is `chat` and there is no chat template."""
    if not template.is_chat:
        return TextRenderer(template.name, *template.parts)
    if template.file is not None:
        return ChatRenderer(tokenizer, template.file.read_text(encoding="utf-8"))
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{template.where}: the tokenizer of {tokenizer.name_or_path!r} has no chat template; name a .jinja file "
            "under training.chat_template, or another template"
        )
    return ChatRenderer(tokenizer, tokenizer.get_chat_template())


@dataclass(frozen=True)
class TextRenderer:
    """A text template: one exchange, `asking` with {instruction} and then `answering` with {response}."""

    name: str
    asking: str
    answering: str

    @property
    def lead(self) -> str:
        """What is the assistant's before the reply itself."""
        return self.answering.partition("{response}")[0]

    def render(self, example: Example) -> Rendered:
        """ValueError for a conversation, which needs a template that tells its turns apart."""
        if example.history or example.system:
            found = f"{len(example.turns)} turns" if example.history else "a system text"
            raise ValueError(f"template {self.name} holds one turn, found {found}; use template: chat or turns: first")
        prompt = self._asked(example.instruction)
        text = prompt + self._answered(example.response)
        return Rendered(text, ((len(prompt), len(text)),))

    def prompt(self, messages: Sequence[Message], begun: bool = False) -> str:
        """The text up to the last reply's own first character, or with `begun` up to the end of what is there of it.

        Earlier exchanges, such as few-shot examples, stand before in the same template; a system text begins the first
        question.
        """
        said = _texts(messages) if begun else [*_texts(messages), ""]
        *earlier, (asked, beginning) = zip(said[::2], said[1::2], strict=True)
        before = "".join(f"{self._asked(question)}{self._answered(reply)}\n\n" for question, reply in earlier)
        return before + self._asked(asked) + self.lead + beginning

    def _asked(self, instruction: str) -> str:
        return self.asking.replace("{instruction}", instruction)

    def _answered(self, response: str) -> str:
        return self.answering.replace("{response}", response)


class ChatRenderer:
    """A chat template in Jinja, applied by the tokenizer.

    What the assistant says is found by rendering a conversation up to each of its turns, as a chat does that goes on,
    and not by the template's own marks, which most templates lack. That is right only if every such rendering is the
    beginning of the next, which is checked for each row: templates that drop earlier thinking, or write otherwise of
    the last turn than of others, would train the model on prompts that it will never see.
    """

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self._settings = {"date_string": _DAY} if "date_string" in source else {}
        if "strftime_now" in source and not self._settings:
            raise ValueError(
                "the chat template writes the day on which it is used (strftime_now), so that the same trial would "
                "train on other texts tomorrow; name a copy without it under training.chat_template"
            )

    @cached_property
    def lead(self) -> str:
        """What is the assistant's before the reply itself."""
        one = self.render(Example("question", _REPLY))
        said = one.text[one.spans[0][0] :]
        return said[: max(0, said.rfind(_REPLY))]

    def render(self, example: Example) -> Rendered:
        """ValueError for a conversation that the template refuses, or renders so that no prompt is its beginning."""
        messages: list[Message] = [{"role": "system", "content": example.system}] if example.system else []
        text, spans = "", []
        for number, (asked, reply) in enumerate(example.turns, start=1):
            messages.append({"role": "user", "content": asked})
            prompt = self._text(messages, add_generation_prompt=True)
            _check_begins(prompt, text, f"the prompt of reply {number}", "the conversation before it")
            messages.append({"role": "assistant", "content": reply})
            text = self._text(messages)
            _check_begins(text, prompt, f"the conversation with reply {number}", "the prompt of that reply")
            start = len(prompt.rstrip(" "))  # as in text templates: a space before the reply is the reply's
            spans.append((start, start + self._said(text[start:], reply)))
        return Rendered(text[: spans[-1][1]], tuple(spans))

    def prompt(self, messages: Sequence[Message], begun: bool = False) -> str:
        """The text up to the last reply's own first character, or with `begun` up to the end of what is there of it.

        A system text that the template refuses begins the first question.
        """
        try:
            return self._prompt(messages, begun)
        except ValueError:
            if messages[0]["role"] != "system":
                raise
            return self._prompt([{"role": "user", "content": _texts(messages)[0]}, *messages[2:]], begun)

    def _prompt(self, messages: Sequence[Message], begun: bool) -> str:
        if begun:
            return self._text(messages, continue_final_message=True)
        return self._text(messages, add_generation_prompt=True).rstrip(" ") + self.lead

    def _said(self, text: str, reply: str) -> int:
        """Length of what a model says of `text`, a reply with all that the template writes after it: it ends with the
        EOS, or before the white space that only parts it from the next turn."""
        found = text.rfind(reply.strip())
        after = found + len(reply.strip()) if found >= 0 else 0
        eos = self._tokenizer.eos_token
        ended = text.find(eos, after) if eos else -1
        return ended + len(eos) if ended >= 0 else max(after, len(text.rstrip()))

    def _text(self, messages: Sequence[Message], **how: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self._source,
                tokenize=False,
                **how,
                **self._settings,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses it ({' '.join(str(error).split())})") from error
        return text


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Number of leading items that two sequences share."""
    differing = (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(first), len(second)))


def _texts(messages: Sequence[Message]) -> list[str]:
    """Texts of user and assistant in turn; a system text begins the first one."""
    texts = [message["content"] for message in messages]
    return [texts[0] + texts[1], *texts[2:]] if messages[0]["role"] == "system" else texts


def _check_begins(text: str, beginning: str, what: str, of: str) -> None:
    """ValueError with the first difference if `text` does not begin with `beginning`."""
    if not text.startswith(beginning):
        at = common_length(text, beginning)
        raise ValueError(
            f"the chat template is not prefix-safe: {what} does not begin with {of}; at character {at} it has "
            f"{text[at : at + 24]!r} for {beginning[at : at + 24]!r}"
        )
