"""What a report is drawn from: the sweep's tables and the study's, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raysft.report.plot import slugs
from raysft.report.transfer import Row, transfer_points, transfer_tests
from raysft.study.run import SWEEP_TABLES
from raysft.study.schema import STUDY_TABLES
from raysft.study.tables import read_tables, texts
from raysft.study.variants import trial_variants, with_variants

# Large, and no figure looks at them.
_NOT_DRAWN = ("weight_change", "intrinsic_dimension", "log_likelihood", "weight_sketches", "examples")
_NOT_DRAWN_OF_STUDY = ("update_similarity", "map_distances")

STUDIED = {name: schema for name, schema in STUDY_TABLES.items() if name not in _NOT_DRAWN_OF_STUDY}
"""The tables of a study that a report is drawn from."""


@dataclass(frozen=True)
class Findings:
    """The sweep's tables and the study's, by name."""

    sweep: Mapping[str, pa.Table]
    study: Mapping[str, pa.Table]

    @cached_property
    def trials(self) -> pa.Table:
        """The planned fine-tunings, with their variant; of released scores those that are studied."""
        tuned = self.sweep["trials"].filter(pc.is_valid(self.sweep["trials"]["trial"]))
        if not self.stated:
            tuned = tuned.filter(pc.is_in(tuned["trial"], value_set=pc.unique(self.study["gains"]["trial"])))
        return with_variants(tuned, trial_variants(tuned))

    @cached_property
    def stated(self) -> bool:
        """Whether it is known which fine-tunings are done; of released scores it is not."""
        trials = self.sweep["trials"]
        return bool(pc.count(trials["state"]).as_py()) or not trials.num_rows

    @cached_property
    def training(self) -> pa.Table:
        """The training curves, with the variant of their trial."""
        return with_variants(self.sweep["training"], trial_variants(self.sweep["trials"], self.sweep["training"]))

    @cached_property
    def variants(self) -> list[str]:
        """Every variant that was planned or measured, sorted."""
        return self.names("variant")

    @cached_property
    def slugs(self) -> dict[str, str]:
        """A file name for each variant; two variants never share one."""
        return slugs(self.variants)

    @cached_property
    def transfer_points(self) -> list[Row]:
        """Gains on benchmarks in English beside those in other languages."""
        return transfer_points(self.study["gains"])

    @cached_property
    def transfer_tests(self) -> pa.Table:
        """Their correlations, of schema `CORRELATIONS`."""
        return transfer_tests(self.transfer_points)

    def names(self, axis: str) -> list[str]:
        """Every model, dataset or variant of the sweep, sorted, so that one name has one colour in all figures."""
        tables = [
            self.trials,
            self.training,
            self.study["gains"],
            self.study["weight_change_by_depth"],
            self.study["map"],
        ]
        found = {name for table in tables for name in texts(table, axis)}
        return sorted(found - {""})


def read_findings(tables: Path, study: Path) -> Findings:
    """The findings in the sweep's `tables` and in the `study` folder that `run_study` wrote.

    Raises:
        ValueError: one of them is not a folder.
    """
    sweep = {name: schema for name, schema in SWEEP_TABLES.items() if name not in _NOT_DRAWN}
    return Findings(read_tables(tables, sweep), read_tables(study / "tables", STUDIED))
