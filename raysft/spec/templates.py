"""Prompt templates: what a sweep calls them, and the digest by which keys and tables tell them apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raysft.spec.keys import file_digest, text_digest
from raysft.spec.sweep import SpecError, Sweep

CHAT = "chat"

# Placeholders are the columns of an example; the response is supervised, the prompt is not.
TEMPLATES = {
    "paper": ("###Question: {instruction}\n###Answer:", " {response}"),
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
        "{response}",
    ),
}


@dataclass(frozen=True)
class Template:
    """A name of `TEMPLATES`, `chat`, or a text with {instruction} and {response}; `where` it stands in the sweep.

    `chat` is the chat template that a base's tokenizer brings, or the one in `file` for every base.
    """

    name: str
    file: Path | None = None
    where: str = field(default="training.template", compare=False)

    @property
    def is_chat(self) -> bool:
        return self.name == CHAT

    @property
    def parts(self) -> tuple[str, str]:
        """(prompt, response) of a text template. SpecError for a name that is none."""
        return _parts(self.name, self.where)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits; a base's own chat template counts with the base, so here it is the word alone."""
        if not self.is_chat:
            return text_digest("\0".join(self.parts))
        return text_digest(CHAT if self.file is None else f"{CHAT} {file_digest(self.file, 'training.chat_template')}")


def training_template(sweep: Sweep) -> Template:
    """The template of the sweep's training texts."""
    return Template(sweep.training.template, sweep.training.chat_template)


def evaluation_template(sweep: Sweep) -> Template | None:
    """The template around benchmark prompts; None where a task's own prompt goes to the model as it is."""
    name = sweep.evaluation.template
    return None if name is None else Template(name, sweep.training.chat_template, "evaluation.template")


def _parts(name: str, where: str) -> tuple[str, str]:
    if name in TEMPLATES:
        return TEMPLATES[name]
    prompt, found, response = name.partition("{response}")
    if "{instruction}" not in prompt or not found:
        valid = f"{', '.join(TEMPLATES)}, {CHAT}, or a text with {{instruction}} and then {{response}}"
        raise SpecError(f"{where}: found {name!r}; valid: {valid}")
    # White space before the response belongs to it, as in lm-eval, so that the boundary falls where tokens begin.
    stripped = prompt.rstrip(" ")
    return stripped, prompt[len(stripped) :] + "{response}" + response
