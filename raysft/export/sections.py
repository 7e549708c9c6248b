"""The sections of a model card, each as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raysft.export.bases import Named
from raysft.export.markdown import Markdown, code, fenced, number, share, table, text, with_error
from raysft.export.records import Records, Score
from raysft.export.selection import Checkpoint
from raysft.spec.sweep import FULL_FIELDS, LORA_FIELDS, MethodSpec, Sweep


@dataclass(frozen=True)
class CardOf:
    """What a card is made from. `versions`: those of the packages that the checkpoint was trained with."""

    sweep: Sweep
    checkpoint: Checkpoint
    records: Records
    base: Named
    versions: Mapping[str, str]
    license: str | None = None

    @property
    def method(self) -> MethodSpec:
        return self.sweep.method(self.checkpoint.trial.method)

    @property
    def is_adapter(self) -> bool:
        return self.method.kind == "lora"


def holds(of: CardOf) -> str:
    """What of the model is in the folder."""
    method = of.method
    where = "" if method.depth is None else f" of the layers at depths {method.depth[0]:g} to {method.depth[1]:g}"
    if of.is_adapter:
        return f"a {'DoRA' if method.dora else 'LoRA'} adapter{where}, and the base's tokenizer"
    trained = "all of its weights" if method.depth is None else f"the weights{where}"
    return f"the whole model, of which {trained} were trained, and its tokenizer"


def use(of: CardOf) -> Markdown:
    """Python that loads the export and asks it a question in the words that it was trained on."""
    loader = "AutoPeftModelForCausalLM" if of.is_adapter else "AutoModelForCausalLM"
    imports = [f"from transformers import {loader}, AutoTokenizer"]
    if of.is_adapter:
        imports = [f"from peft import {loader}", "from transformers import AutoTokenizer"]
    prompt = of.checkpoint.trial.optimisation.prompt
    if prompt.is_chat:
        asked = [
            'messages = [{"role": "user", "content": question}]',
            "text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)",
            "begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)",
            'inputs = tokenizer(text, add_special_tokens=not begun, return_tensors="pt", return_token_type_ids=False)',
        ]
    else:
        asked = [
            f'text = {prompt.parts[0]!r}.replace("{{instruction}}", question)',
            'inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)',
        ]
    lines = [
        *imports,
        "",
        f'name = "{of.checkpoint.name}"',
        f"model = {loader}.from_pretrained(name)",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        'question = "..."',
        *asked,
        "answer = model.generate(**inputs, max_new_tokens=200)[0, inputs.input_ids.shape[1] :]",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    ]
    return fenced("\n".join(lines), "python")


def beside_note(reference: str) -> Markdown:
    """That an adapter's base is an export beside it, which only holds on a disk."""
    return Markdown(
        f"The base model {code(reference)} is beside this folder: the code above runs in the folder that holds both. "
        "From elsewhere, load the base and put the adapter on it: "
        "`PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), ADAPTER)`."
    )


def template_words(of: CardOf) -> Markdown:
    """The prompt template of the training texts."""
    prompt = of.checkpoint.trial.optimisation.prompt
    digest = code(of.checkpoint.trial.identity["optimisation"]["template"])
    if prompt.is_chat:
        whose = "the base model's own" if prompt.file is None else "the one in `chat_template.jinja`"
        return Markdown(f"The chat template, {whose} (digest {digest}).")
    asking, answering = prompt.parts
    return Markdown(f"Of what follows the response is supervised (digest {digest}).\n\n{fenced(asking + answering)}")


def settings(of: CardOf) -> Markdown:
    """Every setting that changes the numbers, by its name in the sweep."""
    trial, method = of.checkpoint.trial, of.method
    own = LORA_FIELDS if of.is_adapter else FULL_FIELDS
    values: dict[str, Any] = {name: getattr(method, name) for name in ("kind", *own, "depth", "neftune_alpha")}
    values |= {name: value for name, value in trial.identity["optimisation"].items() if name != "template"}
    values |= {"epochs": trial.epochs, "seed": trial.seed}
    return table(("setting", "value"), [(code(name), code(_value(value))) for name, value in values.items()])


def training(of: CardOf) -> Markdown:
    """A row for each epoch up to the checkpoint's."""
    epochs = [row for row in of.records.training(of.checkpoint.trial.key) if row["at_epoch"] <= of.checkpoint.epoch]
    if not epochs:
        return Markdown("The sweep's tables hold no record of its training.")
    counts = ("step", "rows", "supervised_tokens")
    rows = [(_count(row["at_epoch"]), number(row["loss"]), *(_count(row[name]) for name in counts)) for row in epochs]
    return table(("epoch", "mean loss (nats per token)", "steps by its end", "rows", "supervised tokens"), rows)


def score_table(scores: list[Score]) -> Markdown:
    """A row for each task and metric."""
    if not scores:
        return Markdown("No benchmark result of this checkpoint is in the sweep's tables.")
    header = ("task", "metric", "score", "base model", "gain", "n", "no answer found", "degenerate", "bits per byte")
    return table(header, [_score_row(one) for one in scores])


def lint(of: CardOf) -> Markdown:
    """What the study's checks found that concerns the checkpoint."""
    found = of.records.lint(of.checkpoint.trial.key, of.checkpoint.epoch)
    if not found:
        return Markdown("None of the study's checks that could be made found anything that concerns this checkpoint.")
    rows = [(text(one.severity), code(one.check), text(one.subject), text(one.detail)) for one in found]
    said = "What the study's checks found that concerns this checkpoint:"
    return Markdown(f"{said}\n\n{table(('severity', 'check', 'found in', 'what'), rows)}")


def contamination(of: CardOf) -> Markdown:
    """What the training set shares with benchmarks."""
    trial = of.checkpoint.trial
    rows = of.records.contamination(trial.dataset, trial.size)
    if not rows:
        return Markdown("What its training set shares with the benchmarks was not measured.")
    shared = sorted((row for row in rows if (row["overlap"] or 0) > 0), key=lambda row: -row["overlap"])
    if not shared:
        return Markdown(f"Its training set shares no n-gram with an item of the {len(rows)} benchmarks compared with.")
    cells = [(code(row["task"]), share(row["overlap"]), _count(row["items"]), _count(row["ngram"])) for row in shared]
    said = f"Of {len(rows)} benchmarks compared with its training set, {len(shared)} share n-grams with it:"
    header = ("benchmark", "items that share an n-gram", "items", "words of an n-gram")
    return Markdown(f"{said}\n\n{table(header, cells)}")


def versions(of: CardOf) -> Markdown:
    """Of the packages that it was trained with."""
    if not of.versions:
        return Markdown("The storage holds no record of the packages that it was trained with.")
    return table(("package", "version"), [(code(name), code(found)) for name, found in of.versions.items()])


def _score_row(one: Score) -> tuple[Markdown, ...]:
    return (
        code(one.task),
        Markdown(code(one.metric) + ("" if one.higher_is_better else ", lower is better")),
        with_error(one.value, one.stderr),
        with_error(one.base, one.base_stderr),
        with_error(one.gain, one.gain_stderr, sign=True),
        _count(one.n),
        share(one.unextracted),
        share(one.degenerate),
        number(one.bits_per_byte),
    )


def _count(value: int | None) -> Markdown:
    return Markdown("–" if value is None else f"{value:,}")


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(_value, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
