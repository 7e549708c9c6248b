"""The Arrow schema of the table of claims."""

from __future__ import annotations

import pyarrow as pa

from raysft.store.columns import TEXT, column

CLAIMS = pa.schema(
    [
        column("name", TEXT, "the claim in a word or two, for programs"),
        column("claim", TEXT, "what the paper found, in our words", source="arXiv 2506.14681"),
        column("section", TEXT, "what part of the paper it is from"),
        column("criterion", TEXT, "what decides it, the same for every study"),
        column("verdict", TEXT, "supported, not supported, or cannot be told from this study"),
        column("statement", TEXT, "what was found, with its numbers; null where nothing could be computed"),
        column("numbers", TEXT, "those numbers as JSON"),
        column("reason", TEXT, "why it cannot be told; null otherwise"),
    ]
)
