"""What rows of scores say of each metric of a multiple choice: its chance level and the choice that it prefers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raysft.evaluation.harness import load_benchmarks
from raysft.spec.sweep import load_sweep
from tests.conftest import SMALL
from tests.scripted_lm import Scripted, score_rows

pytestmark = pytest.mark.unit

ITEMS = [
    {"question": "Which is a colour?", "choices": ["mud", "red", "a pale and rainy blue"], "right": 1, "all": [1, 2]},
    {"question": "Which is a sound?", "choices": ["yes", "moo"], "right": 1, "all": [1]},
]
# Log-likelihood of a choice, behind its question and by itself. What is common is likely anyway.
LIKED = {"mud": (-3.0, -1.0), "red": (-4.0, -7.0), "a pale and rainy blue": (-5.0, -6.0), "yes": (-2.0, -0.5)}
LIKED["moo"] = (-2.5, -9.0)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: items.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: {target}
metric_list:
"""


def _rows(folder: Path, metrics: list[str], target: str = "right") -> dict[str, dict[str, Any]]:
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    listed = "".join(f"  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}\n" for metric in metrics)
    (folder / "quiz.yaml").write_text(TASK.format(name="quiz", target=target) + listed)
    evaluation = {"tasks": ["quiz"], "include": [str(folder)]}
    (folder / "sweep.yaml").write_text(json.dumps({**SMALL, "storage": "none", "evaluation": evaluation}))
    model = Scripted(str, lambda context, choice: (LIKED[choice.strip()][not context], False))
    rows = score_rows(load_benchmarks(load_sweep(folder / "sweep.yaml")), "quiz", model)
    return {metric.partition(",")[0]: row for (_, metric), row in rows.items()}


def test_mutual_information_prefers_what_its_question_adds_most_to(tmp_path: Path) -> None:
    """By hand: mud -2, red +3, blue +1 and yes -1.5, moo +6.5 nats; of all that is asked, `yes` alone is likeliest."""
    rows = _rows(tmp_path, ["acc", "acc_mutual_info"])
    said = {metric: [sample["response"] for sample in row["samples"]] for metric, row in rows.items()}
    assert said == {"acc": ["0", "0"], "acc_mutual_info": ["1", "1"]}
    values = {metric: [sample["value"] for sample in row["samples"]] for metric, row in rows.items()}
    assert values == {"acc": [0.0, 0.0], "acc_mutual_info": [1.0, 1.0]}
    assert [row["chance"] for row in rows.values()] == pytest.approx([(1 / 3 + 1 / 2) / 2] * 2)
    for row in rows.values():
        assert [sample["gold_bits"] for sample in row["samples"]] == pytest.approx([4 / 0.6931472, 2.5 / 0.6931472])
        assert (row["n"], row["unextracted"]) == (2, 0.0)


def test_a_guess_has_the_share_of_choices_that_are_right(tmp_path: Path) -> None:
    assert _rows(tmp_path, ["acc"], "all")["acc"]["chance"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_what_is_no_share_of_right_choices_has_no_chance_level(tmp_path: Path) -> None:
    rows = _rows(tmp_path, ["acc_norm", "exact_match", "acc_bytes"])
    assert {metric: row["chance"] is None for metric, row in rows.items()} == {
        "acc_norm": False,
        "acc_bytes": False,
        "exact_match": True,
    }
