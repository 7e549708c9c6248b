"""The generated skills' held-out items, as the dataset that lm-eval builds a task from."""

from __future__ import annotations

from typing import Any

import datasets

from raysft.corpus import skills


def held_out(skill: str, **_metadata: Any) -> dict[str, datasets.Dataset]:
    """Test split with columns question, answer, choices and gold (index of the answer among the choices).

    lm-eval passes a task's metadata along with its `dataset_kwargs`; only the skill is of use here.
    """
    rows = [
        {
            "question": item.question,
            "answer": item.answer,
            "choices": list(item.choices),
            "gold": item.choices.index(item.answer),
        }
        for item in skills.test_items(skill)
    ]
    return {"test": datasets.Dataset.from_list(rows)}
