"""The Grafana dashboard of a sweep's metrics: `docs/grafana/raysft.json` is made by `python -m raysft.cluster.grafana`.

Its variables are named as in the dashboards that Ray generates, beside which it is to be put. Two drivers of a sweep
are both seen for some seconds after one was cancelled: of gauges the larger value counts, counters add up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

_GRID_WIDTH = 24
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One panel: what it shows, and by legend the PromQL of its series. `width` and `height` are in units of the grid,
    `unit` is Grafana's name of one."""

    title: str
    kind: Literal["stat", "timeseries", "bargauge", "heatmap"]
    meaning: str
    queries: dict[str, str] = field(hash=False)
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False


def _of(metric: str, *labels: str) -> str:
    """PromQL that selects a metric of the sweeps and sessions that are chosen on the page."""
    chosen = ", ".join(['sweep=~"$sweep"', 'SessionName=~"$SessionName"', *labels])
    return f"{metric}{{{chosen}}}"


def _largest(by: str, metric: str, *labels: str) -> str:
    return f"max by ({by}) ({_of(metric, *labels)})"


def _added(by: str, metric: str, window: str = "") -> str:
    """Counters over all drivers; with a window, per second or as increase in it."""
    return f"sum by ({by}) ({_of(metric)})" if not window else f"sum by ({by}) (rate({_of(metric)}[{window}]))"


def _share(metric: str, done: str, total: str = "") -> str:
    labels = (f'state="{total}"',) if total else ()
    part = _largest("sweep, state", metric, f'state=~"{done}"')
    return f"sum({part}) / sum({_largest('sweep, state', metric, *labels)})"


def _quantile(share: float, by: str, metric: str) -> str:
    return f"histogram_quantile({share}, {_added(f'le{by}', metric, '30m')})"


PANELS = (
    Panel(
        "Trials done",
        "stat",
        "Fine-tunings of which all is done that can be had, of all",
        {"": _share("ray_raysft_trials", "done|diverged")},
        "percentunit",
        4,
        4,
    ),
    Panel(
        "Checkpoints measured",
        "stat",
        "Fine-tuned checkpoints that are measured, of those planned",
        {"": _share("ray_raysft_checkpoints", "measured", "planned")},
        "percentunit",
        4,
        4,
    ),
    Panel(
        "GPU-hours left",
        "stat",
        "Estimated from the plan, and from what the sweep's units took",
        {"{{sweep}}": _largest("sweep", "ray_raysft_gpu_hours", 'state="left"')},
        "h",
        4,
        4,
    ),
    Panel(
        "Estimated end",
        "stat",
        "When the run will end if it holds as many devices as until now",
        {"{{sweep}}": f"{_largest('sweep', 'ray_raysft_estimated_end')} * 1000"},
        "dateTimeAsIso",
        4,
        4,
    ),
    Panel(
        "Failures",
        "stat",
        "Recorded failures of all attempts at the sweep",
        {"{{sweep}}": _added("sweep", "ray_raysft_failures_total")},
        "short",
        4,
        4,
    ),
    Panel(
        "Retries",
        "stat",
        "Units that were tried again because their process died",
        {"{{sweep}}": _added("sweep", "ray_raysft_retries_total")},
        "short",
        4,
        4,
    ),
    Panel(
        "Trials by state",
        "timeseries",
        "Fine-tunings: waiting, running, done, failed, diverged",
        {"{{sweep}} {{state}}": _largest("sweep, state", "ray_raysft_trials")},
        stacked=True,
    ),
    Panel(
        "Checkpoints",
        "timeseries",
        "Fine-tuned checkpoints: measured, and planned",
        {"{{sweep}} {{state}}": _largest("sweep, state", "ray_raysft_checkpoints")},
    ),
    Panel(
        "Results by stage",
        "timeseries",
        "Committed results of each stage, of those planned",
        {
            "{{sweep}} {{stage}}": _largest("sweep, stage", "ray_raysft_results", 'state="committed"')
            + " / "
            + _largest("sweep, stage", "ray_raysft_results", 'state="planned"')
        },
        "percentunit",
    ),
    Panel(
        "Units that run",
        "timeseries",
        "Units of work that processes do now, by kind",
        {"{{sweep}} {{kind}}": _largest("sweep, kind", "ray_raysft_units", 'state="running"')},
        stacked=True,
    ),
    Panel(
        "Queue depth",
        "timeseries",
        "Units of work that wait to start",
        {"{{sweep}}": _largest("sweep", "ray_raysft_queue_depth")},
    ),
    Panel(
        "Units ended per minute",
        "timeseries",
        "By kind, mean of ten minutes",
        {"{{sweep}} {{kind}}": f"60 * {_added('sweep, kind', 'ray_raysft_unit_seconds_count', '10m')}"},
    ),
    Panel(
        "Training tokens/s of the sweep",
        "timeseries",
        "Tokens of the trainings that ended in the last ten minutes; tokens count when a training ends",
        {"{{sweep}} {{of}}": _added("sweep, of", "ray_raysft_training_tokens_total", "10m")},
    ),
    Panel(
        "Training tokens/s by model and method",
        "bargauge",
        "Tokens over seconds of training, of all trainings of this run that ended",
        {"{{model}} {{method}}": _largest("model, method", "ray_raysft_training_tokens_per_second")},
    ),
    Panel(
        "Tokens/s of a training",
        "heatmap",
        "Trainings that ended, by their speed",
        {"{{le}}": f"sum by (le) (increase({_of('ray_raysft_trial_tokens_per_second_bucket')}[$__interval]))"},
    ),
    Panel(
        "GPU-hours",
        "timeseries",
        "Used until now, and estimated to be left",
        {"{{sweep}} {{state}}": _largest("sweep, state", "ray_raysft_gpu_hours")},
        "h",
        stacked=True,
    ),
    Panel(
        "Failures by kind",
        "timeseries",
        "Recorded failures by the exception's class",
        {"{{sweep}} {{error}}": _added("sweep, error", "ray_raysft_failures_total")},
        width=4,
    ),
    Panel(
        "Retries by cause",
        "timeseries",
        "Units tried again: their process, their node or the storage was lost",
        {"{{sweep}} {{cause}}": _added("sweep, cause", "ray_raysft_retries_total")},
        width=4,
    ),
    Panel(
        "Seconds of a unit",
        "timeseries",
        "Wall seconds of a unit in its process, those that ended in half an hour",
        {
            "{{kind}} median": _quantile(0.5, ", kind", "ray_raysft_unit_seconds_bucket"),
            "{{kind}} 95%": _quantile(0.95, ", kind", "ray_raysft_unit_seconds_bucket"),
        },
        "s",
    ),
)


def dashboard() -> dict[str, Any]:
    """Grafana's JSON model of the dashboard."""
    return {
        "title": "raysft",
        "uid": "raysft",
        "tags": ["ray", "raysft"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_datasource(), _variable("SessionName", "Ray session"), _variable("sweep", "Sweep")]},
        "panels": [_panel(number, panel, place) for number, (panel, place) in enumerate(_placed(PANELS), 1)],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1, "hide": 2}


def _variable(name: str, label: str) -> dict[str, Any]:
    query = f"label_values(ray_raysft_trials, {name})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery"},
        "refresh": 2,
        "sort": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"fillOpacity": 30, "stacking": {"mode": "normal"}} if panel.stacked else {}
    heat = panel.kind == "heatmap"
    return {
        "id": number,
        "title": panel.title,
        "description": panel.meaning,
        "type": panel.kind,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {"calculate": False} if heat else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "format": "heatmap" if heat else "time_series",
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }


def _placed(panels: Iterable[Panel]) -> Iterator[tuple[Panel, dict[str, int]]]:
    """Panels from left to right, in rows as high as their highest."""
    x = y = row = 0
    for panel in panels:
        if x + panel.width > _GRID_WIDTH:
            x, y, row = 0, y + row, 0
        yield panel, {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x, row = x + panel.width, max(row, panel.height)


def as_json() -> str:
    """The text of `docs/grafana/raysft.json`."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(as_json())
