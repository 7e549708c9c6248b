"""Two gloo ranks give the numbers of one process, under DDP and every stage of ZeRO, straight and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raysft.training.parallel import ALONE
from tests.invariants import on_ranks

pytestmark = pytest.mark.invariants

STRATEGIES = ["ddp"]
if importlib.util.find_spec("deepspeed") is not None:
    STRATEGIES += ["zero1", "zero2", "zero3"]
SUBJECTS = ["llama:full", "llama:lora", "qwen3:lora", "gemma2:full"]
CASES = [f"{strategy}:{subject}{stop}" for strategy in STRATEGIES for subject in SUBJECTS for stop in ("", ":4")]
CASES = [case for case in CASES if not case.endswith(":4") or ":llama:" in case]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two ranks made of every case."""
    out = tmp_path_factory.mktemp("ranks")
    words = [sys.executable, "-m", "tests.invariants.on_ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"}
    ranks = [
        subprocess.Popen(
            [*words, str(rank), "2", str(out / "group"), str(out), *CASES],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(said)[-4000:]
    return out


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for subject in SUBJECTS:
        on_ranks.run_case(f"ddp:{subject}", ALONE, out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_give_the_numbers_of_one(case: str, two_ranks: Path, one_process: Path) -> None:
    _, family, method, *_ = case.split(":")
    alone = f"ddp:{family}:{method}"
    history, expected = (
        json.loads((folder / f"{name}.json").read_text()) for folder, name in ((two_ranks, case), (one_process, alone))
    )
    assert len(history) == 2
    for mine, theirs in zip(history, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert (mine["step"], mine["tokens"], mine["rows"]) == (theirs["step"], theirs["tokens"], theirs["rows"])
    weights = load_file(two_ranks / f"{case}.safetensors")
    for name, tensor in load_file(one_process / f"{alone}.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(":4")])
def test_a_resumed_group_is_the_straight_one_to_the_last_bit(case: str, two_ranks: Path) -> None:
    straight = load_file(two_ranks / f"{case.removesuffix(':4')}.safetensors")
    for name, tensor in load_file(two_ranks / f"{case}.safetensors").items():
        assert torch.equal(tensor, straight[name]), name
