"""A small sweep to be watched while it runs as a job: four trials, and one whose dataset is refused."""

from __future__ import annotations

import copy
from typing import Any

from tests.conftest import SMALL


def sweep_content(storage: str) -> dict[str, Any]:
    """A pretended GPU for each trial; the refused dataset has a prompt that is longer than its `max_length`."""
    content = copy.deepcopy(SMALL)
    content["name"] = "watched"
    content["datasets"][1]["override"] = {"max_length": 8}
    content["grid"] = [
        {"name": "main", "sizes": [32], "epochs": [2], "measure": "every", "datasets": ["capitals"], "seeds": [0, 1]},
        {"name": "refused", "sizes": [32], "epochs": [1], "datasets": ["addition"], "methods": ["lora"]},
    ]
    content["probes"]["intrinsic_dimension"] = None
    content["resources"] = {"gpus_per_worker": 1}
    return {**content, "storage": storage}
