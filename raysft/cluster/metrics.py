"""A sweep's Prometheus metrics, from its driver: Ray's dashboard has no page for Tune, so these are its progress.

Protocol. Ray's agent on the driver's node takes what this process recorded every `metrics_report_interval_ms` (10 s),
and serves it, with `ray_` before its name, on the node's metrics port. It drops a gauge that was not set again within
two of these intervals, so a thread sets all of them every second; after the driver's end, which hands over the last
values, they vanish. Counters and histograms stay with the agent: summed by sweep they count every attempt at it. A
histogram's buckets and count are exact, its sum is not: the agent puts each observation in the middle of its bucket.
Values of tags must be ASCII, which names in a sweep are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from raysft.cluster.forecast import Forecast
from raysft.cluster.retries import UnitDeath
from raysft.cluster.sweep import UnitOutcome
from raysft.cluster.tally import Tally
from raysft.spec.plan import Plan, Unit, with_storage
from raysft.store.layout import Storage

_SET_EVERY_S = 1.0

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 3 * 3600, 10 * 3600, 30 * 3600]
_SPEEDS = [float(digit * 10**power) for power in range(2, 7) for digit in (1, 2, 5)]


@dataclass(frozen=True)
class Metric:
    """Name (without Ray's `ray_`), kind, meaning, tags beside `sweep`, and for a histogram the buckets' upper ends."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    meaning: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> tuple[str, ...]:
        """Under which names Prometheus finds it."""
        endings = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


METRICS = (
    Metric("raysft_trials", "gauge", "fine-tunings: waiting, running, done, failed, diverged", ("state",)),
    Metric("raysft_checkpoints", "gauge", "fine-tuned checkpoints: measured, planned", ("state",)),
    Metric("raysft_results", "gauge", "results: committed, planned", ("stage", "state")),
    Metric("raysft_units", "gauge", "units of work: waiting, running, done, failed", ("kind", "state")),
    Metric("raysft_queue_depth", "gauge", "units of work that wait to start"),
    Metric("raysft_gpu_hours", "gauge", "GPU-hours used until now, and estimated to be left", ("state",)),
    Metric("raysft_estimated_end", "gauge", "estimated end of the run, seconds since 1970"),
    Metric(
        "raysft_training_tokens_per_second",
        "gauge",
        "tokens of rows over seconds of training, of all trainings of this run that ended",
        ("model", "method"),
    ),
    Metric("raysft_training_tokens", "counter", "tokens trained on: all of a row, or the supervised ones", ("of",)),
    Metric("raysft_failures", "counter", "recorded failures, by class of the exception", ("error",)),
    Metric("raysft_retries", "counter", "units tried again after their process died, by cause", ("cause",)),
    Metric("raysft_unit_seconds", "histogram", "wall seconds of a unit of work", ("kind",), tuple(_SECONDS)),
    Metric("raysft_trial_tokens_per_second", "histogram", "tokens/s of one training", (), tuple(_SPEEDS)),
)


@contextmanager
def exported_metrics(plan: Plan, storage: Storage) -> Iterator[SweepMetrics]:
    """Inside, the metrics of a run of `plan` are exported. To be entered once Ray is connected.

    At the end they say what the storage holds, also of what was committed by processes that died.
    """
    metrics = SweepMetrics(plan, storage)
    try:
        yield metrics
        metrics.recount(with_storage(plan, storage, weights=False))
    finally:
        metrics.close()


class SweepMetrics:
    """Follows one run of a plan by its events, and sets the metrics until `close`."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._tally = Tally(plan)
        self._forecast = Forecast(plan, storage)
        self._gauges = {metric.name: _gauge(metric, plan.sweep.name) for metric in METRICS if metric.kind == "gauge"}
        self._counters = {m.name: _counter(m, plan.sweep.name) for m in METRICS if m.kind == "counter"}
        self._histograms = {m.name: _histogram(m, plan.sweep.name) for m in METRICS if m.kind == "histogram"}
        self._trained: dict[tuple[str, str], tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._set()
        self._thread = threading.Thread(target=self._keep_setting, name="sweep-metrics", daemon=True)
        self._thread.start()

    def started(self, unit: Unit) -> None:
        """A process began a unit."""
        with self._lock:
            self._tally.started(unit)
            self._forecast.started(unit)
        self._set()

    def ended(self, event: UnitOutcome | UnitDeath) -> None:
        """A unit ended, or its process died."""
        with self._lock:
            if isinstance(event, UnitDeath):
                self._died(event)
            else:
                self._ended(event)
        self._set()

    def recount(self, plan: Plan) -> None:
        """Take over a plan that was made from the storage at the end of the run."""
        with self._lock:
            self._tally.recount(plan)
            self._forecast.finished()
        self._set()

    def units_over(self, blocked: Iterable[Unit]) -> None:
        """No unit runs or waits any more. Those that were blocked have a record of a RuntimeError each."""
        with self._lock:
            self._forecast.units_over()
            for unit in blocked:
                self._tally.died(unit, again=False)
                self.failed([{"error": RuntimeError.__name__}])

    def failed(self, failures: Iterable[Mapping[str, Any]]) -> None:
        """Count failures that belong to no unit."""
        for failure in failures:
            self._counters["raysft_failures"].inc(1, {"error": failure["error"]})

    def close(self) -> None:
        """Set the last values, which Ray hands over as the driver disconnects."""
        self._closed.set()
        self._thread.join()
        self._set()

    def _ended(self, outcome: UnitOutcome) -> None:
        unit = outcome.unit
        self._tally.ended(unit, outcome.failures, outcome.left)
        self._forecast.ended(unit)
        self.failed(outcome.failures)
        self._histograms["raysft_unit_seconds"].observe(outcome.wall_s, {"kind": unit.kind})
        if outcome.tokens and unit.trial is not None:
            self._counters["raysft_training_tokens"].inc(outcome.tokens, {"of": "rows"})
            self._counters["raysft_training_tokens"].inc(outcome.supervised_tokens, {"of": "supervised"})
            self._histograms["raysft_trial_tokens_per_second"].observe(outcome.tokens / outcome.trained_s)
            of = unit.model, unit.trial.method
            tokens, seconds = self._trained.get(of, (0, 0.0))
            self._trained[of] = tokens + outcome.tokens, seconds + outcome.trained_s

    def _died(self, event: UnitDeath) -> None:
        self._tally.died(event.unit, event.again)
        self._forecast.died(event.unit, event.again)
        error = type(event.death).__name__
        self._counters["raysft_failures"].inc(1, {"error": error})
        if event.again:
            self._counters["raysft_retries"].inc(1, {"cause": error})

    def _keep_setting(self) -> None:
        while not self._closed.wait(_SET_EVERY_S):
            self._set()

    def _set(self) -> None:
        with self._lock:
            for name, tags, value in self._values():
                self._gauges[name].set(value, tags)

    def _values(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """(gauge, tags, value) of everything that is known."""
        tally, forecast = self._tally, self._forecast
        for trials, count in tally.trials.items():
            yield "raysft_trials", {"state": trials}, count
        for checkpoints, count in tally.checkpoints.items():
            yield "raysft_checkpoints", {"state": checkpoints}, count
        for stage, counts in tally.results.items():
            for results, count in counts.items():
                yield "raysft_results", {"stage": stage, "state": results}, count
        for (kind, units), count in tally.units.items():
            yield "raysft_units", {"kind": kind, "state": units}, count
        yield "raysft_queue_depth", {}, sum(tally.units[unit] for unit in tally.units if unit[1] == "waiting")
        yield "raysft_gpu_hours", {"state": "used"}, forecast.used_s("GPU") / 3600
        yield "raysft_gpu_hours", {"state": "left"}, forecast.left_s("GPU") / 3600
        seconds = forecast.seconds_left()
        if seconds is not None:
            yield "raysft_estimated_end", {}, time.time() + seconds
        for (model, method), (tokens, seconds) in self._trained.items():
            yield "raysft_training_tokens_per_second", {"model": model, "method": method}, tokens / seconds


def _gauge(metric: Metric, sweep: str) -> Gauge:
    return Gauge(metric.name, metric.meaning, _keys(metric)).set_default_tags({"sweep": sweep})


def _counter(metric: Metric, sweep: str) -> Counter:
    return Counter(metric.name, metric.meaning, _keys(metric)).set_default_tags({"sweep": sweep})


def _histogram(metric: Metric, sweep: str) -> Histogram:
    made = Histogram(metric.name, metric.meaning, list(metric.buckets), _keys(metric))
    return made.set_default_tags({"sweep": sweep})


def _keys(metric: Metric) -> tuple[str, ...]:
    return ("sweep", *metric.tags)
