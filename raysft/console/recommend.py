"""`raysft recommend`: a study's folder and what is known of a model in, a ranked table out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from raysft.console.study_folder import SWEEP_TABLES, WANTED
from raysft.spec.mistakes import shown
from raysft.spec.sweep import SpecError, Sweep, load_sweep
from raysft.store.schema import TABLES
from raysft.study.recommend import FORMS, Recommendation, recommend
from raysft.study.recommend_known import ALL_TASKS, RecommendError
from raysft.study.schema import STUDY_TABLES
from raysft.study.tables import read_table, write_table

_PROPERTIES = ("model", "dataset", "property", "value")
_BEST = 3  # datasets shown of a task that was not asked for by name


@dataclass(frozen=True)
class Asked:
    """What a user asked for; names are by comma where there are several."""

    model: str
    study: Path
    sweep: Path | None = None
    datasets: str | None = None
    tasks: str | None = None
    variant: str | None = None
    level: float = 0.9
    properties: Path | None = None
    save: Path | None = None


def make_recommendation(asked: Asked, tell: Callable[[str], object]) -> Recommendation:
    """Read the study, measure the model where the study lacks it, and recommend; `tell` is told what takes time.

    Raises:
        RecommendError: a folder without a study, or what `recommend` refuses.
        SpecError: a sweep that cannot be read, or a model that is nowhere.
    """
    gains, tables = _read(asked.study)
    datasets, tasks = _names(asked.datasets), _names(asked.tasks)
    if asked.properties is not None:
        tables = _with_rows(tables, "data_properties", _read_properties(asked.properties, asked.model))
    elif _must_measure(asked, gains, tables):
        from raysft.console.forward_passes import measure

        sweep = _sweep(asked)
        known = sorted(set(gains["dataset"].to_pylist()))
        asked_tasks = tasks or sorted(set(gains["task"].to_pylist()))
        found = measure(sweep, asked.model, datasets or known, asked_tasks, tell)
        tables = _with_rows(tables, "data_properties", found.data_properties)
        tables = _with_rows(tables, "log_likelihood", found.log_likelihood)
        if asked.save is not None:
            write_table(found.data_properties, asked.save)
            tell(f"Wrote {asked.save}: give it as --properties to skip these passes")
    return recommend({"gains": gains}, tables, asked.model, datasets, tasks, asked.variant, asked.level)


def facts(found: Recommendation) -> dict[str, Any]:
    """The recommendation as JSON."""
    return {
        "model": found.model,
        "variant": found.variant,
        "recommended_by": found.form,
        "why": found.why,
        "predictors": list(found.predictors),
        "other_models": list(found.others),
        "own_trials_left_out": found.left_out,
        "interval_level": found.level,
        "gains": found.gains.to_pylist(),
        "accuracy": found.accuracy.to_pylist(),
    }


def print_recommendation(console: Console, found: Recommendation, asked: Asked) -> None:
    """What it rests on, the datasets ranked by task, and how good such predictions were on held-out models."""
    for line in _about(found, asked.level):
        console.print(line)
    rows = found.gains.to_pylist()
    whole = ALL_TASKS if rows[0]["task"] == ALL_TASKS and not asked.tasks else None
    shown = [row for row in rows if whole is None or row["task"] == whole or row["rank"] <= _BEST]
    moved = found.form == FORMS[1]
    levels = {row["level"] for row in shown}
    interval = [f"{_percent(*levels)} interval"] if len(levels) == 1 else ["interval", "level"]
    table = _table("task", "dataset", "gain", *interval, *(["others' mean"] if moved else []))
    for row, after in zip(shown, [*shown[1:], None], strict=True):
        cells = [row["dataset"], _number(row["predicted"]), f"{_number(row['low'])} to {_number(row['high'])}"]
        cells += [_percent(row["level"])] if len(levels) > 1 else []
        cells += [_number(row["mean_of_others"])] if moved else []
        ends_task = after is None or after["task"] != row["task"]
        table.add_row(row["task"] if row["rank"] == 1 else "", *cells, end_section=ends_task)
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"Of each task the first {_BEST}; with --tasks or --json all of them.")
    if rows[0]["task"] == ALL_TASKS:
        console.print(f"{ALL_TASKS}: mean of gains over their scales. Other rows are on the task's own scale.")
    _print_accuracy(console, found)


def _print_accuracy(console: Console, found: Recommendation) -> None:
    rows = found.accuracy.to_pylist()
    fitted = any(row["r2"] is not None for row in rows)
    console.print(f"Models held out in turn: {'by properties, by the mean of the others' if fitted else found.form}")
    quality = _table("task", "R2", "rank correlation", "regret of the first")
    for row in rows:
        cells = []
        for name in ("r2", "rank_correlation", "regret"):
            both = (row[name], row[f"baseline_{name}"]) if fitted else (row[f"baseline_{name}"],)
            cells.append(", ".join(map(_number, both)))
        quality.add_row(row["task"], *cells)
    console.print(quality)


def _table(*header: str) -> Table:
    """Names fold where they must; numbers stay whole."""
    names = ("task", "dataset")
    columns = (Column(name, no_wrap=name not in names, overflow="fold") for name in header)
    return Table(*columns, box=SIMPLE_HEAD)


def _about(found: Recommendation, level: float) -> Iterator[str]:
    yield f"Model: {found.model}; learnt from {len(found.others)} others: {', '.join(found.others)} ({found.variant})"
    if found.left_out:
        yield f"{found.model} is a model of this study: its own trials are left out"
    by = f"{found.form} ({', '.join(found.predictors)})" if found.form == FORMS[1] else found.form
    yield f"Recommended by the {by}: {found.why}"
    rows = found.gains.to_pylist()
    fewest, most = (of(rows, key=lambda row: row["level"]) for of in (min, max))
    if fewest["level"] < level:
        span = _percent(fewest["level"])
        if fewest["level"] != most["level"]:
            span += f" to {_percent(most['level'])}, by how many models a task has"
        models = f"{fewest['models']} models cannot promise {_percent(level)}"
        yield f"Intervals of {span}: {models}, which takes {_models_for(level)}"


def _percent(level: float) -> str:
    return f"{100 * level:.0f}%"


def _models_for(level: float) -> int:
    """The fewest models m with m / (m + 1) at `level` or above."""
    count = 1
    while count / (count + 1) < level - 1e-9:
        count += 1
    return count


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _read(folder: Path) -> tuple[pa.Table, dict[str, pa.Table]]:
    """The study's gains, and the tables of its sweep or of its released scores, as far as they are there."""
    places = [folder / "study" / "tables", folder / "tables"]
    study = next((place for place in places if (place / "gains.parquet").is_file()), None)
    if study is None:
        raise RecommendError(f"{shown(folder)}: no study; {WANTED}")
    schema = STUDY_TABLES["gains"]
    there = pq.read_schema(study / "gains.parquet").names
    if lacking := [name for name in schema.names if name not in there]:
        raise RecommendError(f"{shown(study)}/gains.parquet: no column {lacking[0]}; make the study anew")
    sweeps = (folder / "tables", folder / "sweep", folder.parent / "tables")
    sweep = next((place for place in sweeps if (place / "trials.parquet").is_file()), None)
    tables = {} if sweep is None else {name: read_table(sweep, name, TABLES[name]) for name in SWEEP_TABLES}
    return read_table(study, "gains", schema), tables


def _with_rows(tables: Mapping[str, pa.Table], name: str, rows: pa.Table) -> dict[str, pa.Table]:
    """The tables with these rows instead of what they have of the same models (the model of data alone is null)."""
    old = tables.get(name, TABLES[name].empty_table())
    models = set(rows["model"].to_pylist())
    mask = [model not in models for model in old["model"].to_pylist()]
    return {**tables, name: pa.concat_tables([old.filter(pa.array(mask, pa.bool_())), rows])}


def _read_properties(path: Path, model: str) -> pa.Table:
    """A user's Parquet file in the schema of `data_properties`, or a part of its columns."""
    try:
        columns = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise RecommendError(
            f"--properties {shown(path)}: not a Parquet file ({str(error).splitlines()[0]})"
        ) from error
    if lacking := [name for name in _PROPERTIES if name not in columns]:
        raise RecommendError(
            f"--properties {shown(path)}: no column {lacking[0]}; wanted: {', '.join(_PROPERTIES)}, about"
        )
    found = read_table(path.parent, path.stem, TABLES["data_properties"]) if path.suffix == ".parquet" else None
    if found is None:
        raise RecommendError(f"--properties {shown(path)}: a file whose name ends in .parquet is wanted")
    kept = found.filter(pa.array([name == model for name in found["model"].to_pylist()], pa.bool_()))
    if not kept.num_rows:
        there = sorted({str(name) for name in found["model"].to_pylist()})
        raise RecommendError(f"--properties {shown(path)}: no row of model {model}; there are {', '.join(there[:12])}")
    return kept


def _must_measure(asked: Asked, gains: pa.Table, tables: Mapping[str, pa.Table]) -> bool:
    """Whether others have properties that this model lacks, and there is a model to measure them of."""
    properties = tables.get("data_properties")
    if properties is None or not properties.num_rows:
        return False
    if asked.model in set(properties["model"].to_pylist()) or asked.model in set(gains["model"].to_pylist()):
        return False
    folder = (Path(asked.model).expanduser() / "config.json").is_file()
    yaml = _yaml(asked)
    return folder or (yaml is not None and asked.model in {entry.name for entry in load_sweep(yaml).models})


def _yaml(asked: Asked) -> Path | None:
    """The sweep's YAML: the one given, or the one that lies resolved in the storage."""
    stored = asked.study / "sweep.yaml"
    return asked.sweep or (stored if stored.is_file() else None)


def _sweep(asked: Asked) -> Sweep:
    yaml = _yaml(asked)
    if yaml is None:
        raise SpecError(
            f"model {asked.model}: the sweep's YAML is needed to measure it (raysft recommend SWEEP --model ...)"
        )
    return load_sweep(yaml, str(asked.study))
