"""Keys: one text for one content, however it is put together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from raysft.spec.keys import Part, canonical_json, key_of

pytestmark = pytest.mark.unit

SCALARS = (
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text()
)
CONTENTS = some.recursive(
    SCALARS, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=4)
)


def _in_parts(content: Any) -> Any:
    """The same content with every mapping as a `Part`."""
    if isinstance(content, dict):
        return Part({name: _in_parts(value) for name, value in content.items()})
    return content


@given(CONTENTS)
def test_parts_are_written_as_plain_content_is(content: Any) -> None:
    expected = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    assert canonical_json(content) == expected
    assert canonical_json(_in_parts(content)) == expected


def test_a_key_stays_what_it_was_when_storages_were_filled() -> None:
    identity = {"model": {"hub": "x/y", "revision": "main"}, "seed": 0, "learning_rate": 1e-05, "size": None}
    assert key_of("train", identity) == key_of("train", Part(identity)) == "59b64ca6fb74faf70c35"


def test_not_a_number_has_no_key() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of("train", {"learning_rate": float("nan")})
