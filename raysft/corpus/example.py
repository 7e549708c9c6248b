"""One row of an instruction dataset, and rows as an Arrow table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

# Given and not found out: Arrow would take the history of a block without conversations for a column of nulls.
EXAMPLES = pa.schema(
    [
        ("instruction", pa.string()),
        ("response", pa.string()),
        ("history", pa.list_(pa.list_(pa.string()))),
        ("system", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Example:
    """What the model is asked and what it should answer, before any template.

    `history` are the exchanges before, as (user, assistant); `system` is what the model is told before all of them.
    """

    instruction: str
    response: str
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """Every exchange, as (user, assistant), the last one included."""
        return (*self.history, (self.instruction, self.response))


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """A table of `EXAMPLES`, the same for every block whatever it holds."""
    return pa.Table.from_pylist([asdict(example) for example in examples], schema=EXAMPLES)


def examples_from_table(table: pa.Table) -> list[Example]:
    """The examples of a table of `EXAMPLES`, which may have other columns as well."""
    return [
        Example(**{**row, "history": tuple((asked, reply) for asked, reply in row["history"])})
        for row in table.select(EXAMPLES.names).to_pylist()
    ]
