"""The optimiser's state as a safetensors file, so that a trial goes on where it was."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STATE_FILE = "trainer_state.safetensors"

NamedParameters = list[tuple[str, torch.nn.Parameter]]


def save_state(folder: Path, optimizer: torch.optim.Optimizer, named: NamedParameters) -> None:
    """Write AdamW's moments and step counts, by parameter name."""
    tensors = {
        f"{name}:{entry}": value.detach().cpu().contiguous()
        for name, parameter in named
        for entry, value in optimizer.state[parameter].items()
    }
    save_file(tensors, folder / STATE_FILE)


def load_state(folder: Path, optimizer: torch.optim.Optimizer, named: NamedParameters) -> None:
    """Take over what `save_state` wrote."""
    parameters = dict(named)
    for key, value in load_file(folder / STATE_FILE).items():
        name, entry = key.rsplit(":", 1)
        parameter = parameters[name]
        optimizer.state[parameter][entry] = value.to(parameter.device)
