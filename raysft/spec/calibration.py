"""Device seconds of works: from those of their kind that were measured, or from the FLOP model and assumed speeds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from raysft.spec.flops import TRAINING, Load
from raysft.spec.rates import Assumed
from raysft.spec.resources import Shape
from raysft.store.results import Cost

Group = Literal["train", "evaluate", "probes"]
Device = Literal["GPU", "core"]
Basis = Literal["measured", "scaled", "modelled"]


@dataclass(eq=False)
class Kind:
    """Works that differ in nothing that their cost depends on."""

    stage: str
    model: str
    method: str | None
    shape: Shape
    load: Load

    @property
    def group(self) -> Group:
        return "train" if self.stage in TRAINING else "evaluate" if self.stage == "evaluate" else "probes"

    @property
    def device(self) -> Device:
        return "GPU" if self.shape.gpus > 0 else "core"

    def device_of(self, cost: Cost) -> Device:
        """What the result says it held: the sweep's resources may have changed since."""
        return "GPU" if cost.gpu_s > 0 else self.device

    def seconds_of(self, cost: Cost) -> float:
        """Device seconds of a result; GPUs that are none but by name are not in its own."""
        gpus, cpus = self.shape.size
        return cost.gpu_s if cost.gpu_s > 0 else cost.wall_s * (gpus if self.device == "GPU" else cpus)


@dataclass
class _Measured:
    """Sums over results."""

    results: int = 0
    seconds: float = 0.0
    amount: float = 0.0
    modelled: float = 0.0


@dataclass
class Calibration:
    """Speeds of one sweep. Results that were measured are added; then `seconds` reckons the others."""

    assumed: Assumed
    _cells: dict[tuple[str, str, str | None, Device], _Measured] = field(default_factory=lambda: defaultdict(_Measured))
    _stages: dict[tuple[str, Device], _Measured] = field(default_factory=lambda: defaultdict(_Measured))

    def add(self, kind: Kind, results: int, seconds: float) -> None:
        """Results of a kind took these device seconds together."""
        cell, modelled = self._cells[_cell(kind)], self.modelled(kind)
        cell.results += results
        cell.seconds += seconds
        cell.amount += results * (kind.load.amount or 0.0)
        if modelled is not None:
            stage = self._stages[kind.stage, kind.device]
            stage.seconds += seconds
            stage.modelled += results * modelled

    def modelled(self, kind: Kind) -> float | None:
        """Device seconds by the FLOP model; None if the model's or the data's sizes are not known."""
        if kind.load.flops is None:
            return None
        assumed = self.assumed
        peak = assumed.gpu_flops if kind.device == "GPU" else assumed.core_flops
        share = assumed.training_utilisation if kind.group == "train" else assumed.scoring_utilisation
        return kind.load.flops / (peak * share)

    def seconds(self, kind: Kind) -> tuple[float, Basis] | None:
        """Device seconds of a work, and what they rest on; None if nothing tells."""
        cell = self._cells.get(_cell(kind))
        if cell is not None and kind.load.amount is not None and cell.amount > 0:
            return cell.seconds / cell.amount * kind.load.amount, "measured"
        if cell is not None:
            return cell.seconds / cell.results, "measured"
        modelled = self.modelled(kind)
        if modelled is None:
            return None
        stage = self._stages.get((kind.stage, kind.device))
        if stage is None or stage.modelled == 0:
            return modelled, "modelled"
        return modelled * stage.seconds / stage.modelled, "scaled"


def _cell(kind: Kind) -> tuple[str, str, str | None, Device]:
    return kind.stage, kind.model, kind.method, kind.device
