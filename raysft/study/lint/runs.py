"""What the records of a sweep say against its numbers: divergence, precision, contamination, seeds, versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raysft.study.lint.findings import Finding, listed, share

ZEROS = 0.5  # share of entries that did not change
OVERLAP = 0.01  # share of a benchmark's items

Row = dict[str, Any]


def diverged_findings(trials: pa.Table) -> Iterator[Finding]:
    """Fine-tunings whose loss was no longer finite, and those that failed or have not been run."""
    tuned = trials.filter(pc.is_valid(trials["trial"])).to_pylist()
    for row in tuned:
        if row["state"] == "diverged":
            when = f" in epoch {row['diverged_in_epoch']}" if row["diverged_in_epoch"] else ""
            yield Finding("diverged_trial", "error", _name(row), f"its loss was not finite{when}")
    for state in ("failed", "missing"):
        rows = [row for row in tuned if row["state"] == state]
        if rows:
            detail = f"{share(len(rows), len(tuned))} fine-tunings are {state}: {listed(map(_name, rows))}"
            yield Finding("missing_cells", "warning", f"{state} trials", detail)


def precision_findings(weight_change: pa.Table) -> Iterator[Finding]:
    """Weight changes measured between weights too coarse to hold them."""
    models = weight_change.filter(pc.equal(weight_change["level"], "model")).to_pylist()
    coarse = [row for row in models if row["low_precision"] or (row["zero_fraction"] or 0) > ZEROS]
    by_dtype: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in coarse:
        by_dtype[str(row["dtype"]), str(row["base_dtype"])].append(row)
    for (dtype, base), rows in sorted(by_dtype.items()):
        zeros = [row["zero_fraction"] for row in rows if row["zero_fraction"] is not None]
        still = f", up to {max(zeros):.0%} of entries exactly as before" if zeros else ""
        detail = f"{share(len(rows), len(models))} checkpoints were compared in {dtype} with a base in {base}{still}"
        yield Finding("low_precision_delta", "warning", "weight_change", f"{detail}: {listed(map(_name, rows))}")


def contamination_findings(contamination: pa.Table) -> Iterator[Finding]:
    """Training sets that hold items of a benchmark, as far as their n-grams tell."""
    for row in contamination.to_pylist():
        if (row["overlap"] or 0) > OVERLAP:
            detail = f"{row['overlap']:.1%} of {row['items']} items share a {row['ngram']}-gram with the training set"
            severity = "error" if row["overlap"] > 0.1 else "warning"
            yield Finding("contaminated_pair", severity, f"{row['dataset']} / {row['task']}", detail)


def seed_findings(trials: pa.Table) -> Iterator[Finding]:
    """Fine-tunings of one seed: what differs between them cannot be told from what a seed alone does."""
    keys = ("model", "dataset", "method", "size", "learning_rate", "schedule", "epochs", "template")
    seeds: dict[tuple[object, ...], set[object]] = defaultdict(set)
    for row in trials.filter(pc.is_valid(trials["trial"])).to_pylist():
        seeds[tuple(row[key] for key in keys)].add(row["seed"])
    single = [key for key, found in seeds.items() if len(found) == 1]
    if single:
        unknown = all(None in found for found in seeds.values())
        detail = f"{share(len(single), len(seeds))} settings were trained with one seed"
        detail += "; no seed is recorded" if unknown else ""
        yield Finding("single_seed", "warning", "trials", f"{detail}: no noise between seeds can be estimated for them")


def version_findings(costs: pa.Table) -> Iterator[Finding]:
    """Results of one stage that were made with different versions of a package.

    `costs` has a column `versions`, such as `raysft 0.1.0; torch 2.13.0`.
    """
    seen: dict[tuple[str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for stage, text in zip(costs["stage"].to_pylist(), costs["versions"].to_pylist(), strict=True):
        for words in text.split("; ") if text else ():
            package, _, version = words.partition(" ")
            seen[stage, package][version] += 1
    changed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (stage, package), versions in sorted(seen.items()):
        if len(versions) > 1:
            words = ", ".join(f"{version} ({count} results)" for version, count in sorted(versions.items()))
            changed[package, words].append(stage)
    for (package, words), stages in changed.items():
        yield Finding("changed_version", "warning", package, f"{words} in {', '.join(stages)}")


def _name(row: Mapping[str, Any]) -> str:
    seed = None if row["seed"] is None else f"seed {row['seed']}"
    words = [row["model"], row["dataset"], row["method"], row["size"] and f"{row['size']} rows", row["schedule"], seed]
    return " / ".join(str(word) for word in words if word)
