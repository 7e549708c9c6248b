"""Datasets measured in a real sweep: what is read once, what it costs, what stands in which table, what fails alone."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from raysft import measure_data
from raysft.measure_data import SharedReadings
from raysft.probes.data.contamination import example_text
from raysft.probes.data.sentences import load_encoder
from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.keys import text_digest
from raysft.spec.plan import SHIPPED_TEXTS, Plan, Work, make_plan
from raysft.spec.probes import SentenceModel
from raysft.spec.sweep import SpecError, Sweep, parse_sweep
from raysft.store.layout import open_storage
from raysft.store.schema import TABLES
from raysft.study.correlate import dataset_properties, task_similarities
from raysft.trial import run_unit

pytestmark = pytest.mark.invariants

OF_DATA_ALONE = {"text_statistics", "sentence_similarity"}


def _sweep(content: dict[str, Any], **perplexity: Any) -> Sweep:
    """Two tiny bases, two datasets and one benchmark, of which only the probes of data are run."""
    other = {"name": "other", "micro": {**content["models"][0]["micro"], "family": "qwen3", "seed": 3}}
    content["models"] = [*content["models"], other]
    content["evaluation"] = {"tasks": ["micro_capitals_choice", "micro_addition_exact"], "limit": 4}
    content["probes"] = {
        "perplexity": {"rows": 8, **perplexity},
        "intrinsic_dimension": None,
        "log_likelihood": None,
        "contamination": None,
    }
    return parse_sweep(content, "sweep")


def _run(sweep: Sweep, session: Session | None = None) -> Plan:
    """Make the bases and measure the data under each; the plan afterwards."""
    session = session or Session(sweep, torch.device("cpu"))
    for unit in make_plan(sweep, session.storage).missing_units():
        if unit.kind in ("pretrain", "base"):
            run_unit(session, unit, [work for work in unit.works if work.stage != "evaluate"])
    return make_plan(sweep, session.storage)


def _works(plan: Plan, *stages: str) -> list[Work]:
    return [work for unit in plan.units for work in unit.works if work.stage in stages]


def _rows(sweep: Sweep, name: str) -> list[dict[str, Any]]:
    path = Path(sweep.storage) / "tables" / f"{name}.parquet"
    rows: list[dict[str, Any]] = pq.read_table(path, schema=TABLES[name]).to_pylist()
    return rows


def test_texts_are_read_once_and_each_number_stands_where_it_belongs(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, passes = _sweep(content), Counter[str]()
    for name in ("read_rows", "centroid_of"):
        monkeypatch.setattr(measure_data, name, _counted(passes, name))
    plan = _run(sweep)
    assert passes == {"read_rows": 2 * 2, "centroid_of": 2 * (2 + 1)}, "for each base: datasets; benchmarks, reference"
    works = _works(plan, "perplexity", "similarity", "text_statistics")
    assert Counter(work.stage for work in works) == {"perplexity": 4, "similarity": 8, "text_statistics": 2}
    assert all(map(plan.is_done, works))
    storage = open_storage(sweep.storage)
    reduce_sweep(sweep, storage)
    examples = _rows(sweep, "examples")
    session = Session(sweep, torch.device("cpu"))
    for row in examples:  # a row's number is its place in the order in which trials take rows
        example = session.examples(row["dataset"], None)[row["row"]]
        text = f"###Question: {example.instruction}\n###Answer: {example.response}"
        assert row["text_hash"] == text_digest(text)
    assert Counter((row["model"], row["dataset"]) for row in examples) == {
        (model, dataset): 8 for model in ("tiny", "other") for dataset in ("capitals", "addition")
    }
    tables = pq.read_table(Path(sweep.storage) / "tables/data_properties.parquet", schema=TABLES["data_properties"])
    properties = dataset_properties(tables)
    ours = [row for row in examples if (row["model"], row["dataset"]) == ("other", "addition")]
    per_token = sum(row["response_nll"] for row in ours) / sum(row["response_tokens"] for row in ours)
    assert properties["response_nll_per_token"]["other", "addition"] == pytest.approx(per_token)
    assert set(properties["response_words"]) == set(properties["response_perplexity"])
    alone = [row for row in tables.to_pylist() if row["property"] == "response_words"]
    assert {(row["model"], row["dataset"]) for row in alone} == {(None, "capitals"), (None, "addition")}
    assert len(task_similarities(tables)) == 8
    layers = [row for row in tables.to_pylist() if row["property"] == "similarity_by_layer"]
    about = ("tiny", "capitals", sweep.evaluation.tasks[1])
    found = [row for row in layers if (row["model"], row["dataset"], row["about"]) == about]
    assert [row["depth"] for row in found] == pytest.approx(np.linspace(0, 1, len(found)))
    middle = found[len(found) // 2]
    assert (middle["depth"], middle["value"]) == (0.5, task_similarities(tables)[about])
    costs = [row for row in _rows(sweep, "costs") if row["stage"] == "text_statistics"]
    assert {row["model"] for row in costs} == {None}, "no model enters"


def _counted(passes: Counter[str], name: str) -> Callable[..., Any]:
    real = getattr(measure_data, name)

    def count(*arguments: Any) -> Any:
        passes[name] += 1
        return real(*arguments)

    return count


def test_a_new_benchmark_needs_no_logits_and_gives_the_similarity_of_the_shared_pass(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number whether perplexities were taken on the way or not."""
    sweep = _sweep(content)
    whole = _run(sweep)
    storage = open_storage(sweep.storage)
    removed = _works(whole, "similarity")[0]
    path = Path(sweep.storage) / "results/similarity" / f"{removed.key}.parquet"
    before = pq.read_table(path).to_pylist()
    path.unlink()
    passes = Counter[str]()
    for name in ("read_rows", "centroid_of"):
        monkeypatch.setattr(measure_data, name, _counted(passes, name))
    plan = make_plan(sweep, storage)
    [unit] = [unit for unit in plan.missing_units() if removed in plan.missing_works(unit)]
    run_unit(Session(sweep, torch.device("cpu")), unit, [removed])
    assert passes == {"centroid_of": 3}
    assert pq.read_table(path).to_pylist() == before


def test_weights_that_are_not_numbers_fail_what_reads_them_and_nothing_else(
    content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each dataset is read once for that, and the works that come to it later fail by the same error."""
    sweep, passes = _sweep(content), Counter[str]()
    for name in ("read_rows", "centroid_of"):
        monkeypatch.setattr(measure_data, name, _counted(passes, name))
    session = Session(sweep, torch.device("cpu"))
    units = make_plan(sweep, session.storage).units
    for unit in units:
        if unit.kind == "pretrain":
            run_unit(session, unit, list(unit.works))
    base = next(unit for unit in units if unit.kind == "base")
    with torch.no_grad():
        session.base(base.model).model.get_input_embeddings().weight.fill_(math.nan)
    works = [work for work in base.works if work.stage != "evaluate"]
    report = run_unit(session, base, works)
    assert Counter(failure["stage"] for failure in report.failures) == {"perplexity": 2, "similarity": 4}
    assert passes == {"read_rows": 2}
    messages = {failure["message"] for failure in report.failures}
    assert any(message.startswith("text ") and "log-probability is not finite" in message for message in messages)
    assert report.committed == sum(work.stage == "text_statistics" for work in works) == 2


def test_seconds_of_what_is_shared_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of 6 s for three works, the first of which takes 1 s more and the others 2 s: 3, 4 and 4 s."""
    clock = iter([0.0, 6.0])
    monkeypatch.setattr(measure_data.time, "perf_counter", lambda: next(clock))
    source = ("dataset", "d")
    shared = SharedReadings({("layers", source): 3})
    charged = []
    for elapsed in (7.0, 2.0, 2.0):
        shared.begin()
        assert shared.get("layers", source, lambda: "read") == "read"
        charged.append(shared.settled(elapsed))
    assert charged == [3.0, 4.0, 4.0]
    assert sum(charged) == 7 + 2 + 2


def test_what_cannot_be_read_is_tried_once_and_what_no_memory_was_there_for_again() -> None:
    name = ("layers", ("dataset", "d"))
    shared, tries = SharedReadings({name: 4}), list[BaseException]()

    def make() -> None:
        tries.append([SpecError("row 3: no"), MemoryError()][errors])  # type: ignore[arg-type]
        raise tries[-1]

    for errors, times in ((1, 2), (0, 1)):
        for _ in range(2):
            with pytest.raises((SpecError, MemoryError)) as caught:
                shared.get(*name, make)
            assert type(caught.value) is (SpecError, MemoryError)[errors]
        assert len(tries) == times
        tries.clear()
    assert str(caught.value) == "row 3: no"


def test_what_is_shared_is_held_until_the_last_work_that_needs_it_is_over() -> None:
    """Whether that work asked for it or failed before."""

    class Found:
        pass

    name = ("layers", ("dataset", "d"))
    shared = SharedReadings({name: 3})
    held = weakref.ref(shared.get(*name, Found))
    for _ in range(2):
        shared.end([name])
        assert held() is not None
    shared.end([name])
    assert held() is None


# a sentence model


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A random BERT of two layers whose words are letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(33, 127))]
    letters = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(letters), max_position_embeddings=66, **sizes)).save_pretrained(
        tmp_path / "encoder"
    )
    return tmp_path / "encoder"


def test_a_sentence_model_is_asked_once_for_all_bases(content: dict[str, Any], encoder: Path) -> None:
    sweep = _sweep(content, sentence_model={"path": str(encoder)})
    session = Session(sweep, torch.device("cpu"))
    plan = _run(sweep, session)
    works = _works(plan, "sentence_similarity")
    assert len(works) == 4
    assert {work.subject.model for work in works} == {"tiny"}
    reduce_sweep(sweep, open_storage(sweep.storage))
    rows = [row for row in _rows(sweep, "data_properties") if row["property"] == "sentence_similarity"]
    assert {(row["model"], row["dataset"], row["about"]) for row in rows} == {
        (None, dataset, task) for dataset in ("capitals", "addition") for task in sweep.evaluation.tasks
    }
    data, task, origin = (
        np.mean([_vector(encoder, text) for text in texts], axis=0)
        for texts in (
            [example_text(example) for example in session.examples("capitals", None)[:8]],
            measure_data.benchmark_texts(session.benchmarks, "micro_capitals_choice", 8),
            SHIPPED_TEXTS.read_text(encoding="utf-8").splitlines(),
        )
    )
    first, second = data - origin, task - origin
    [value] = [row["value"] for row in rows if (row["dataset"], row["about"]) == ("capitals", "micro_capitals_choice")]
    assert value == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-4)


@torch.inference_mode()
def _vector(encoder: Path, text: str) -> np.ndarray:
    """A text's vector from a pass of its own, cut to the 64 tokens that are left of 66 positions."""
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    ids = tokenizer(text, truncation=True, max_length=64)["input_ids"]
    vector = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().mean(dim=0).numpy()
    found: np.ndarray = vector / np.linalg.norm(vector)
    return found


def test_what_is_no_sentence_model_is_one_line(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(SpecError, match=r"probes\.perplexity\.sentence_model: .*nowhere cannot be loaded"):
        load_encoder(SentenceModel(path=tmp_path / "nowhere"), torch.device("cpu"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(encoder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(encoder)
    with pytest.raises(SpecError, match="has no padding token, so it is no sentence model's"):
        load_encoder(SentenceModel(path=encoder), torch.device("cpu"))
