"""The optimiser's state as a safetensors file, so that a trial goes on where a checkpoint left it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE_FILE = "trainer_state.safetensors"
POSITION_FILE = "trainer_state.json"

NamedParameters = list[tuple[str, torch.nn.Parameter]]


def save_state(folder: Path, optimizer: torch.optim.Optimizer, named: NamedParameters, epoch: int) -> None:
    """Write AdamW's moments and step counts, by parameter name, and the epoch they belong to."""
    tensors = {
        f"{name}:{entry}": value.detach().cpu().contiguous()
        for name, parameter in named
        for entry, value in optimizer.state[parameter].items()
    }
    save_file(tensors, folder / STATE_FILE)
    (folder / POSITION_FILE).write_text(json.dumps({"epoch": epoch}))


def load_state(folder: Path, optimizer: torch.optim.Optimizer, named: NamedParameters) -> int:
    """Take over what `save_state` wrote; returns the epoch."""
    tensors = load_file(folder / STATE_FILE)
    parameters = dict(named)
    for key, value in tensors.items():
        name, entry = key.rsplit(":", 1)
        parameter = parameters[name]
        state: dict[str, Any] = optimizer.state[parameter]
        state[entry] = value.to(parameter.device) if entry != "step" else value
    position: dict[str, int] = json.loads((folder / POSITION_FILE).read_text())
    return position["epoch"]
