"""What the documentation repeats from the code is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysft.store.schema import TABLES, as_markdown
from raysft.study.claims.table import CLAIMS_OF_THE_PAPER

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_tables_is_that_of_the_schemas() -> None:
    assert (DOCS / "tables.md").read_text(encoding="utf-8") == as_markdown()


def test_every_column_says_what_it_means() -> None:
    for name, schema in TABLES.items():
        for field in schema:
            assert (field.metadata or {}).get(b"meaning"), f"{name}.{field.name}"


def test_the_page_of_the_study_has_every_claim_with_its_criterion() -> None:
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    for claim in CLAIMS_OF_THE_PAPER:
        assert f"| {claim.name} | {claim.claim} | {claim.criterion} |" in page
