"""lm-eval's model behind the sweep's own templates: a benchmark asks in the words and tokens that training asked in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raysft.corpus.prompt import Message, renderer
from raysft.corpus.tokenize import split_at, text_ids
from raysft.evaluation.prefix_lm import PrefixLM
from raysft.evaluation.token_lm import TokenLM
from raysft.spec.templates import Template


class Templated(TokenLM):
    """What makes a `TokenLM` one for `lm_eval.evaluate(..., apply_chat_template=True)`, before it in a class's bases.

    A context that lm-eval gets from here ends where the reply's own text begins: behind the template's lead, such as
    the space of `paper`. For the model it ends before that lead, as in training: the lead is generated, and scored with
    the answer. White space that a task puts before its answers, for plain prompts, is taken away.
    """

    def __init__(self, model: Any, tokenizer: Any, template: Template, **how: Any) -> None:
        super().__init__(model, tokenizer, **how)
        self._renderer = renderer(template, tokenizer)
        self._digest = template.digest
        self._begun = self._layouts.begun

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells prompts apart by."""
        return f"{super().tokenizer_name}-{self._digest}"

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The context of `chat_history`; without a generation prompt its last message is a reply that has begun."""
        context = self._renderer.prompt(chat_history, begun=not add_generation_prompt)
        if not add_generation_prompt:
            self._begun.add(context)
        return context

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Contexts to generate from, padded, each cut at its beginning to `left_truncate_len` tokens."""
        rows = [self._context_ids(string)[-(left_truncate_len or 0) :] for string in strings]
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def _context_ids(self, context: str) -> list[int]:
        return text_ids(self._prompt(context), self.tokenizer)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._begun or context[-1].isspace():
            continuation = continuation.lstrip()
        return split_at(context + continuation, len(self._prompt(context)), self.tokenizer)

    def _prompt(self, context: str) -> str:
        return context.removesuffix(self._renderer.lead)


class TemplatedLM(Templated, PrefixLM):
    """A `PrefixLM` behind a template."""
