"""Whatever a sweep's YAML holds, it is planned, or refused with one line that says where: never a traceback.

Mutations of valid sweeps, as data and as text, by hypothesis; always the same ones, so that a failure stays one.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raysft.cli import app
from raysft.spec.memory import memory_needs, too_large
from raysft.spec.plan import make_plan
from raysft.spec.size import POLICIES, retention
from raysft.spec.sweep import SpecError, load_sweep
from tests.conftest import SMALL

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
STARTER = (ROOT / "raysft" / "spec" / "starter.yaml").read_text()
TEXTS = {
    "small": yaml.safe_dump({**SMALL, "storage": "results"}, sort_keys=False),
    "quickstart": (ROOT / "sweeps" / "quickstart.yaml").read_text(),
    "starter": STARTER,
    "massive": (ROOT / "sweeps" / "massive_sft.yaml").read_text(),
}
CONTENTS = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
ALWAYS_THE_SAME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# What has been forgotten somewhere before: endless numbers, names of other systems, codes of terminals and of rich.
AWKWARD: list[Any] = [
    *(None, True, False, 0, -1, 1 << 31, 1 << 63, -(1 << 63) - 1, 10**30, 10**400, 0.5, -0.0, 1e308, 1e-320, 1e30),
    *(math.nan, math.inf, -math.inf, "", " ", "\0", "\n", "\t", "\x1b[31m", "\u2028", "\ud800", "\ufeff", "é" * 300),
    *("x" * 5000, "a/" * 3000, "..", "/", "/proc/1/mem", "~nobody-of-this-name/x", "s3://", "foo://x", "file:///\0"),
    *(
        "[/INST]",
        "[red]",
        ":x:",
        "{instruction}",
        "{response}",
        "{instruction}{response}",
        "chat",
        "all",
        "none",
        "1e400",
    ),
    *(
        "9" * 30,
        "9" * 5000,
        ".nan",
        "2024-01-01",
        "*",
        "&a",
        "<<",
        "!!python/name:os.system",
        "full",
        "capitals",
        "tiny",
    ),
    *([], {}, [[]], [{}], {"a": {}}, [None], {None: 1}, {1: 2}, {True: 1}, {1.5: []}, {"": ""}, {"\x1b": "\r\n"}),
    *(datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, 1), b"\xff\0", {"a", "b"}, list(range(300))),
]
FIELDS = [
    *sorted({name for model in (SMALL, *SMALL["models"], *SMALL["methods"]) for name in model}),
    *("hub", "path", "mixture", "shape", "micro", "override", "seeds", "epochs", "learning_rates", "measure", "rules"),
    *("include", "template", "chat_template", "labels", "memory_per_worker", "gpus_per_worker", "where", "columns"),
]
SNIPPETS = [
    *(
        "\t",
        "\r\n",
        "\r",
        "\0",
        "\x85",
        "\ufeff",
        "---\n",
        "...\n",
        "%YAML 9.9\n",
        "&a ",
        "*a",
        "<<: *a\n",
        "? ",
        ": ",
        "- ",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        "|\n",
        ">-\n",
        "#",
        "!!binary ",
        "!!python/object:os.system ",
        "!!int x",
        "!!set {a}",
    ),
    *(
        "0b_",
        "0x_",
        "._",
        "1:2:3",
        "2024-99-99",
        '"\\UFFFFFFFF"',
        '"\\ud800"',
        '"\\x1b[2J"',
        ".inf",
        "~",
        "=",
        "@",
        "`",
    ),
    *("&a [*a]", "[" * 200, "- " * 200, "{a: " * 200, "9" * 5000, "0x" + "f" * 5000, "grid: []\n", "name: again\n"),
    *("&x [a, b]\n", "[*x, *x]", "é", "𝕏", "\n", "  ", "null", "no", "on", "!!timestamp x", "!!bool x", "!", "!<", "%"),
]


def _texts(content: Any) -> set[str]:
    if isinstance(content, str):
        return {content}
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return {text for value in inside for text in _texts(value)}


leaves = st.one_of(
    st.sampled_from(AWKWARD),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.binary(max_size=5),
    st.dates(),
    st.booleans(),
)
keys = st.one_of(st.sampled_from(FIELDS), st.text(max_size=8), st.integers(), st.none(), st.booleans())
values = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(keys, inside, max_size=4), max_leaves=8
)

# What may well be valid in the place of a value of this type, so that planning has to cope with it.
ALIKE: dict[type, st.SearchStrategy[Any]] = {
    int: st.one_of(
        st.integers(0, 40),
        st.integers(1, 1 << 40),
        st.integers(),
        st.sampled_from([1 << 31, 1 << 53, (1 << 63) - 1, 10**9]),
    ),
    float: st.one_of(st.floats(0, 10), st.floats()),
    str: st.one_of(
        st.sampled_from(sorted(_texts(list(CONTENTS.values())))), st.sampled_from(AWKWARD), st.text(max_size=9)
    ),
    list: st.lists(
        st.one_of(st.integers(0, 9), st.sampled_from(["capitals", "full", "tiny", "every", 0.5])), max_size=4
    ),
}


@st.composite
def mutated_data(draw: st.DrawFn, name: str) -> bytes:
    """The YAML of a sweep in which up to three places hold something else."""
    content = copy.deepcopy(CONTENTS[name])
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3]))):
        places = list(_places(content))
        if places:
            _mutate(draw, *draw(st.sampled_from(places)))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every (list or mapping, index or key) of the content."""
    for place in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, place
        if isinstance(holder[place], (dict, list)):
            yield from _places(holder[place])


def _mutate(draw: st.DrawFn, holder: Any, place: Any) -> None:
    change = draw(st.sampled_from([*["alike"] * 6, "replace", "delete", "duplicate", "insert", "again"]))
    old = holder[place]
    if change == "delete":
        del holder[place]
    elif change == "alike":
        holder[place] = copy.deepcopy(draw(ALIKE.get(type(old), values)))
    elif change == "replace":
        holder[place] = copy.deepcopy(draw(values))
    elif isinstance(holder, dict):
        holder[draw(keys)] = old if change in ("duplicate", "again") else copy.deepcopy(draw(values))
    elif change == "again":
        holder.append(old)  # the same object twice, which YAML writes as an alias
    else:
        holder.insert(place, copy.deepcopy(old if change == "duplicate" else draw(values)))


@st.composite
def mutated_text(draw: st.DrawFn, name: str) -> bytes:
    """The bytes of a sweep's YAML in which up to four pieces are cut out, doubled, or replaced."""
    text = TEXTS[name]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 10, 60])))
        piece = draw(
            st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(text.splitlines(keepends=True)), st.text(max_size=4))
        )
        text = text[:start] + draw(st.sampled_from([piece, "", text[start:end] * 2])) + text[end:]
    content = text.replace("\n", draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))).encode(
        "utf-8", "surrogatepass"
    )
    start = draw(st.integers(0, len(content)))
    return content[:start] + draw(st.sampled_from([b"", b"", b"", b"\xff", b"\xef\xbb\xbf", b"\x00"])) + content[start:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sweeps, with the base and the data that the starter names."""
    return make_folder(tmp_path_factory.mktemp("fuzzed"))


def make_folder(folder: Path) -> Path:
    (folder / "models" / "my-base").mkdir(parents=True)
    (folder / "models" / "my-base" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "models" / "my-base" / "model.safetensors").write_bytes(b"weights")
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    return folder


def check(folder: Path, content: bytes) -> None:
    """What holds for every content of a sweep's file."""
    path = folder / "sweep.yaml"
    path.write_bytes(content)
    try:
        sweep = load_sweep(path)
        made = make_plan(sweep)
        [retention(sweep, made.trials, keep) for keep in POLICIES]
        memory_needs(sweep, made.trials)
        too_large(sweep, made.missing_trials())
        made.count_by_stage()
    except SpecError as error:
        check_message(str(error), path)


def check_message(message: str, path: Path) -> None:
    """One line for people, which starts with the file or a field of it."""
    assert message.isprintable()
    assert len(message) < 6000
    assert not any(
        word in message for word in ("pydantic", "<class", "Traceback", "datetime.", "instance of", "constrained")
    )
    where, found, problem = message.partition(": ")
    assert found
    assert problem
    assert where == str(path) or where.partition(".")[0] in {*SMALL, "storage", "resources", "checkpoints"}, message


def check_command(folder: Path, content: bytes, *words: str) -> None:
    """What holds for a command on every content of a sweep's file."""
    path = folder / "sweep.yaml"
    path.write_bytes(content)
    ended = CliRunner().invoke(app, [words[0], str(path), *words[1:]])
    assert isinstance(ended.exception, (SystemExit, type(None))), ended.exception
    assert ended.exit_code in (0, 2)
    if ended.exit_code == 2:
        [line] = ended.stderr.splitlines()
        assert line.startswith("raysft: ")
    elif "--json" in words:
        json.loads(ended.stdout)


@settings(ALWAYS_THE_SAME, max_examples=80)
@given(content=mutated_data("small"))
def test_any_data_is_planned_or_refused(folder: Path, content: bytes) -> None:
    check(folder, content)


@settings(ALWAYS_THE_SAME, max_examples=20)
@given(content=st.one_of(mutated_data("quickstart"), mutated_data("starter")))
def test_any_data_in_a_sweep_of_ours_is_planned_or_refused(folder: Path, content: bytes) -> None:
    check(folder, content)


@settings(ALWAYS_THE_SAME, max_examples=60)
@given(content=st.one_of(*(mutated_text(name) for name in ("small", "quickstart", "starter", "massive"))))
def test_any_text_is_planned_or_refused(folder: Path, content: bytes) -> None:
    check(folder, content)


@settings(ALWAYS_THE_SAME, max_examples=30)
@given(content=st.one_of(mutated_data("small"), mutated_text("small")), as_json=st.booleans())
def test_the_command_ends_with_its_plan_or_one_line(folder: Path, content: bytes, as_json: bool) -> None:
    check_command(folder, content, "plan", *(["--json"] if as_json else []))
