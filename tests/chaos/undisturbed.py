"""The sweep of the chaos tests, run without any fault, and without Ray."""

from __future__ import annotations

from pathlib import Path

import torch

from raysft.reduce import reduce_sweep
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.layout import open_storage
from raysft.trial import run_unit
from tests.chaos.faulty_sweep import sweep_content


def run_undisturbed(folder: Path, seeds: int) -> Path:
    """Run it unit by unit in this process; its storage, which is `folder`."""
    torch.set_num_threads(1)
    sweep = parse_sweep(sweep_content(str(folder), seeds=seeds), "test")
    storage = open_storage(sweep.storage)
    plan, session = make_plan(sweep, storage), Session(sweep, torch.device("cpu"))
    for unit in plan.missing_units():
        assert run_unit(session, unit, plan.missing_works(unit)).failures == []
    reduce_sweep(sweep, storage)
    return folder
