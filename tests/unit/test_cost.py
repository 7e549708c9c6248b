"""Costs: the FLOP model, what planted results make of it, and prices."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from raysft.spec import cost
from raysft.spec.cost import CostBook, Estimate, GroupCost, estimate
from raysft.spec.flops import flops_per_token, training_flops
from raysft.spec.plan import make_plan
from raysft.spec.prices import Pricing
from raysft.spec.rates import NodePrice
from raysft.spec.resources import Shape
from raysft.spec.shape import ModelShape
from raysft.spec.sweep import MethodSpec, SpecError, Sweep, parse_sweep
from raysft.spec.units import Work
from raysft.store.layout import open_storage
from raysft.store.results import Cost
from tests.unit.planted import plant

pytestmark = pytest.mark.unit

Content = dict[str, Any]
SMALL = ModelShape(family="llama", layers=4, hidden=64, intermediate=128, heads=4, vocabulary=1000)
LARGE = ModelShape(family="llama", layers=8, hidden=128, intermediate=256, heads=4, vocabulary=1000)
FULL = MethodSpec(name="full", kind="full")
LORA = MethodSpec(name="lora", kind="lora", rank=4)

TWO_MODELS: Content = {
    "name": "costs",
    "storage": "unused",
    "models": [
        {"name": "small", "hub": "x/small", "shape": SMALL.model_dump()},
        {"name": "large", "hub": "x/large", "shape": LARGE.model_dump()},
    ],
    "datasets": [{"name": "data", "hub": "x/data", "rows": 500}],
    "methods": [{"name": "full", "kind": "full"}, {"name": "lora", "kind": "lora", "rank": 4}],
    "grid": [{"sizes": [100, 300, "all"], "epochs": [2]}],
    "evaluation": {"tasks": ["gsm8k"]},
    "probes": {"intrinsic_dimension": None, "perplexity": None, "log_likelihood": None, "weight_change": None},
    "resources": {"gpus_per_worker": 1, "assumed": {"gpu_flops": 1e12, "training_utilisation": 0.5, "row_tokens": 100}},
}


def _sweep(change: Callable[[Content], Any] = lambda _: None, storage: Path | None = None) -> Sweep:
    content = copy.deepcopy(TWO_MODELS)
    change(content)
    return parse_sweep({**content, "storage": str(storage)}, "test")


def _groups(found: Estimate) -> dict[str, GroupCost]:
    return {group.group: group for group in found.groups}


def _works(sweep: Sweep, stage: str) -> list[Work]:
    return [work for work in make_plan(sweep).works() if work.stage == stage]


def _tokens(work: Work) -> int:
    """Of a training of `TWO_MODELS`: rows x 100 tokens x epochs."""
    return (work.subject.size or 500) * 100 * (work.subject.epochs or 0)


def test_training_all_weights_takes_six_flop_for_each_parameter_and_token() -> None:
    assert training_flops(SMALL, FULL) == 6 * SMALL.parameter_count()
    assert training_flops(SMALL, FULL, recomputes=True) == 8 * SMALL.parameter_count()
    assert flops_per_token("evaluate", SMALL, FULL) == 2 * SMALL.parameter_count()
    assert flops_per_token("pretrain", SMALL, None) == 6 * SMALL.parameter_count()


def test_what_does_not_train_has_no_gradient_of_its_own() -> None:
    parameters = SMALL.parameter_count()
    assert 4 * parameters < training_flops(SMALL, LORA) < 1.1 * 4 * parameters
    upper = MethodSpec(name="upper", kind="full", depth=(0.6, 1.0))  # two of four layers
    layers = 2 * SMALL.layer_parameters()
    assert training_flops(SMALL, upper) == 2 * parameters + 2 * parameters / 2 + 2 * layers


def test_before_anything_is_measured_flop_and_assumed_speeds_say_all() -> None:
    sweep = _sweep()
    expected = 0.0
    for work in _works(sweep, "train"):
        shape = SMALL if work.subject.model == "small" else LARGE
        expected += _tokens(work) * training_flops(shape, sweep.method(work.subject.method or "")) / 5e11
    train = _groups(estimate(make_plan(sweep)))["train"]
    assert train.left_s == train.modelled_left_s == pytest.approx(expected)
    assert (train.done, train.left, train.basis) == (0, 12, "modelled")


def test_measured_rates_give_the_rest_exactly(tmp_path: Path) -> None:
    sweep, storage = _sweep(storage=tmp_path), open_storage(str(tmp_path))
    rates = {("small", "full"): 3e-3, ("small", "lora"): 2e-3, ("large", "full"): 8e-3, ("large", "lora"): 5e-3}

    def seconds(work: Work) -> float:
        return rates[work.subject.model, work.subject.method or ""] * _tokens(work)

    works = _works(sweep, "train")
    done = [work for work in works if work.subject.size == 100]
    plant(storage, done, lambda work: Cost(seconds(work), seconds(work)))
    train = _groups(estimate(make_plan(sweep, storage), storage))["train"]
    assert train.done_s == pytest.approx(sum(map(seconds, done)))
    assert train.left_s == pytest.approx(sum(seconds(work) for work in works if work not in done))
    assert (train.done, train.read, train.left, train.basis) == (4, 4, 8, "measured")


def test_one_measured_model_scales_the_flop_model_of_the_others(tmp_path: Path) -> None:
    sweep, storage = _sweep(storage=tmp_path), open_storage(str(tmp_path))
    before = _groups(estimate(make_plan(sweep)))
    works = _works(sweep, "train")
    first = next(work for work in works if work.subject.model == "small" and work.subject.method == "full")
    modelled = _tokens(first) * training_flops(SMALL, FULL) / 5e11
    plant(storage, [first], lambda _: Cost(7 * modelled, 7 * modelled))
    after = _groups(estimate(make_plan(sweep, storage), storage))
    assert after["train"].total_s == pytest.approx(7 * before["train"].left_s)
    assert after["train"].modelled_done_s == pytest.approx(modelled)
    assert after["train"].basis == "2 measured, 9 scaled"
    assert after["evaluate"].left_s == before["evaluate"].left_s  # another stage, of which nothing is known


@settings(deadline=None, max_examples=25)
@given(some.integers(1, 50), some.integers(1, 50), some.integers(1, 500), some.integers(1, 500))
def test_more_epochs_or_rows_never_cost_less(epochs: int, more_epochs: int, rows: int, more_rows: int) -> None:
    def left(epochs: int, rows: int) -> float:
        grid = [{"sizes": [rows], "epochs": [epochs]}]
        return _groups(estimate(make_plan(_sweep(lambda content: content.update(grid=grid)))))["train"].left_s

    assert left(epochs, rows) < left(epochs + more_epochs, rows)
    assert left(epochs, min(rows, more_rows)) <= left(epochs, max(rows, more_rows))


@settings(deadline=None)
@given(some.sampled_from(["llama", "qwen3", "gemma2", "olmo2"]), some.integers(1, 40), some.integers(4, 64))
def test_lora_costs_less_than_full_for_the_same_tokens(family: Any, layers: int, heads: int) -> None:
    shape = ModelShape(
        family=family, layers=layers, hidden=32 * heads, intermediate=64 * heads, heads=heads, vocabulary=5000
    )
    assert 2 * shape.parameter_count() < training_flops(shape, LORA) < training_flops(shape, FULL)


def test_rows_are_never_longer_than_what_they_are_cut_to() -> None:
    short = _sweep(lambda content: content.update(training={"max_length": 50}))
    assert _groups(estimate(make_plan(short)))["train"].left_s == pytest.approx(
        _groups(estimate(make_plan(_sweep())))["train"].left_s / 2
    )


def test_a_model_without_sizes_is_named_until_its_own_results_tell(tmp_path: Path) -> None:
    sweep, storage = _sweep(lambda content: content["models"][1].pop("shape"), tmp_path), open_storage(str(tmp_path))
    found = estimate(make_plan(sweep))
    train = _groups(found)["train"]
    assert found.unknown == ("models.large.shape",)
    assert (train.left, train.unknown, train.basis) == (12, 6, "6 modelled, 6 unknown")
    large = [work for work in _works(sweep, "train") if work.subject.model == "large"]
    done = [work for work in large if work.subject.size == 100]
    plant(storage, done, lambda work: Cost(0.01 * _tokens(work), 0.01 * _tokens(work)))
    train = _groups(estimate(make_plan(sweep, storage), storage))["train"]
    expected = sum(0.01 * _tokens(work) for work in large if work not in done)
    assert train.unknown == 0
    assert train.left_s - train.modelled_left_s == pytest.approx(expected)


def test_data_without_a_number_of_rows_are_named() -> None:
    found = estimate(make_plan(_sweep(lambda content: content["datasets"][0].pop("rows"))))
    assert found.unknown == ("datasets.data.rows",)
    assert _groups(found)["train"].unknown == 4  # the sizes 100 and 300 are known anyway


def test_a_file_of_uncounted_rows_counts_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("x" * 8000)
    data = [{"name": "data", "path": str(path)}]
    sweep = _sweep(lambda content: content.update(datasets=data, grid=[{"epochs": [3], "models": ["small"]}]))
    flops = training_flops(SMALL, FULL) + training_flops(SMALL, sweep.method("lora"))
    assert _groups(estimate(make_plan(sweep)))["train"].left_s == pytest.approx(2000 * 3 * flops / 5e11)


def test_gpus_held_are_what_the_result_says_or_else_the_sweep(tmp_path: Path) -> None:
    sweep = _sweep(lambda content: content["resources"].update(gpus_per_worker=4), tmp_path)
    storage = open_storage(str(tmp_path))
    first, second, *_ = _works(sweep, "train")
    plant(storage, [first], lambda _: Cost(10.0, 20.0))  # two GPUs were held then
    plant(storage, [second], lambda _: Cost(10.0, 0.0))
    assert _groups(estimate(make_plan(sweep, storage), storage))["train"].done_s == 20.0 + 4 * 10.0


def test_a_sweep_without_gpus_is_counted_in_core_seconds(tmp_path: Path) -> None:
    resources = {"cpus_per_worker": 2, "assumed": {"core_flops": 1e9, "scoring_utilisation": 0.1, "item_tokens": 10}}
    sweep = _sweep(lambda content: content.update(resources=resources), tmp_path)
    storage = open_storage(str(tmp_path))
    plant(storage, _works(sweep, "train"), lambda _: Cost(3.0))
    groups = _groups(estimate(make_plan(sweep, storage), storage))
    assert {group.device for group in groups.values()} == {"core"}
    assert groups["train"].done_s == 12 * 2 * 3.0
    flops = 7 * 2 * (SMALL.parameter_count() + LARGE.parameter_count())  # six trials and the base of each
    assert groups["evaluate"].left_s == pytest.approx(flops * 1000 * 10 / 1e8)


def test_a_large_storage_is_sampled_and_the_sample_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, storage = _sweep(storage=tmp_path), open_storage(str(tmp_path))
    plant(storage, _works(sweep, "train"), lambda work: Cost(_tokens(work), _tokens(work)))
    monkeypatch.setattr(cost, "MOST_READ", 5)
    plan = make_plan(sweep, storage)
    book = CostBook(plan)
    looks = [book.estimate(plan, storage) for _ in range(3)]
    assert [look.measured for look in looks] == [5, 10, 12]
    exact = sum(map(_tokens, _works(sweep, "train")))
    assert all(_groups(look)["train"].done_s == pytest.approx(exact) for look in looks)


def test_what_was_reduced_is_not_read_again(tmp_path: Path) -> None:
    sweep, storage = _sweep(storage=tmp_path), open_storage(str(tmp_path))
    works = _works(sweep, "train")
    plant(storage, works, lambda _: Cost(1.0, 1.0))
    rows = [{"stage": "train", "key": work.key, "wall_s": 5.0, "gpu_s": 5.0} for work in works[:-1]]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    storage.write_bytes(buffer.getvalue(), "tables", "costs.parquet")
    assert _groups(estimate(make_plan(sweep, storage), storage))["train"].done_s == 11 * 5.0 + 1.0


def test_seconds_of_works_add_up_to_what_is_left(content: Content) -> None:
    plan = make_plan(parse_sweep(content, "test"))
    found = estimate(plan)
    works = [work for unit in plan.missing_units() for work in unit.works] + list(plan.geometry)
    assert found.seconds_of(works) == pytest.approx(found.left_s)
    assert set(found.left_s) == {"core"}
    assert {group.group for group in found.groups} == {"train", "evaluate", "probes"}


def test_the_cheapest_node_that_takes_a_worker_prices_the_larger_share_that_it_blocks() -> None:
    spot = {"ray.io/market-type": "spot"}
    nodes = [
        NodePrice(node="one", per_hour=4, gpus=1, cpus=16),
        NodePrice(node="eight", per_hour=40, gpus=8, cpus=192),
        NodePrice(node="eight-spot", per_hour=16, gpus=8, cpus=192, labels=spot),
        NodePrice(node="cpu", per_hour=1, cpus=10),
    ]
    pricing = Pricing(nodes)
    assert pricing.device_second(Shape(1, 4, 1)) == pytest.approx(2 / 3600)  # an eighth of the spot node
    assert pricing.device_second(Shape(1, 96, 1)) == pytest.approx(8 / 3600)  # half of its CPUs
    assert pricing.device_second(Shape(1, 1, 0.25)) == pytest.approx(2 / 3600)  # a share of a GPU, for a whole GPU
    assert pricing.device_second(Shape(1, 2, 0)) == pytest.approx(16 / 192 / 3600)
    assert pricing.device_second(Shape(8, 4, 1)) == pytest.approx(2 / 3600)
    assert pricing.device_second(Shape(1, 4, 1, (("ray.io/market-type", "on-demand"),))) is None
    assert pricing.device_second(Shape(1, 4, 16)) is None
    assert len(pricing.unpriced) == 2
    assert Pricing([]).device_second(Shape(1, 1, 1)) is None


def test_money_follows_device_time(tmp_path: Path) -> None:
    prices = [{"node": "one", "per_hour": 3.6, "gpus": 1, "cpus": 8}]
    sweep = _sweep(lambda content: content["resources"].update(prices=prices), tmp_path)
    storage = open_storage(str(tmp_path))
    plant(storage, _works(sweep, "train"), lambda _: Cost(100.0, 100.0))
    train = _groups(estimate(make_plan(sweep, storage), storage))["train"]
    assert train.done_money == pytest.approx(12 * 100 * 0.001)
    assert train.left_money == 0
    small = _sweep(lambda content: content["resources"].update(prices=prices, gpus_per_worker=2))
    found = estimate(make_plan(small))
    assert _groups(found)["train"].total_money is None
    assert found.unpriced == ("1 CPU, 2 GPU",)


def test_prices_and_assumptions_are_in_no_key() -> None:
    def change(content: Content) -> None:
        content["resources"]["prices"] = [{"node": "one", "per_hour": 1, "gpus": 1, "cpus": 8}]
        content["resources"]["assumed"] = {"gpu_flops": 9e14, "items": {"gsm8k": 1319}}

    assert [work.key for work in make_plan(_sweep(change)).works()] == [
        work.key for work in make_plan(_sweep()).works()
    ]


def test_a_depth_without_a_layer_is_the_users_mistake() -> None:
    none = MethodSpec(name="none", kind="full", depth=(0.4, 0.5))
    with pytest.raises(SpecError, match=r"methods\.none\.depth"):
        training_flops(SMALL, none)


def test_an_unreadable_result_is_left_out_of_the_estimate(tmp_path: Path) -> None:
    sweep, storage = _sweep(storage=tmp_path), open_storage(str(tmp_path))
    first, second, *_ = _works(sweep, "train")
    plant(storage, [first, second], lambda _: Cost(10.0, 10.0))
    file = tmp_path / "results" / "train" / f"{second.key}.parquet"
    file.write_bytes(b"PAR1 no metadata PAR1")
    train = _groups(estimate(make_plan(sweep, storage), storage))["train"]
    assert (train.done, train.read) == (2, 1)
