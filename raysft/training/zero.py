"""ZeRO (Rajbhandari et al. 2020) through DeepSpeed: optimiser state, gradients and weights divided over the ranks.

DeepSpeed averages gradients over ranks where the loop wants their sum, so the loss is multiplied by the number of
ranks. Weights stay in fp32; `torch.autocast` around the forward pass gives bfloat16 arithmetic as without ZeRO.

DeepSpeed is an extra (`pip install raysft[deepspeed]`) and is imported when an engine is made. Its own checkpoints are
pickles, so the state of a rank's partition is written as safetensors here.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from raysft.spec.grid import Optimisation
from raysft.training.parallel import ALONE, Ranks, make_optimizer
from raysft.training.state import STATE_FILE, NamedParameters


class ZeroEngine:
    """ZeRO of stage 1 (optimiser state), 2 (and gradients) or 3 (and weights) over the ranks of a trial.

    The model must be given up afterwards: DeepSpeed moves its weights into buffers of its own.
    """

    lockstep = True

    def __init__(
        self,
        model: Any,
        named: NamedParameters,
        settings: Optimisation,
        stage: int,
        offload: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        deepspeed = _deepspeed()
        _join_group()
        self.ranks = ranks
        self._stage = stage
        self._gathered = deepspeed.zero.GatheredParameters
        self._count = float(ranks.count)
        parameters = [parameter for _, parameter in named]
        self._engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameters,
            optimizer=make_optimizer(parameters, settings),
            config=_config(stage, offload, settings.max_grad_norm, next(model.parameters()).device.type),
            dist_init_required=False,
        )

    @property
    def model(self) -> Any:
        return self._engine

    def zero_grad(self) -> None:
        self._engine.optimizer.zero_grad()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self._count)

    def gradient_norm(self) -> None:
        return None

    def step(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save_optimizer(self, folder: Path) -> None:
        state = self._engine.optimizer.optimizer.state
        tensors = {
            f"{index}:{entry}": value.detach().cpu().contiguous()
            for index, partition in enumerate(self._partitions())
            for entry, value in state[partition].items()
        }
        save_file(tensors, folder / STATE_FILE)

    def load_optimizer(self, folder: Path) -> None:
        state, partitions = self._engine.optimizer.optimizer.state, self._partitions()
        for key, value in load_file(folder / STATE_FILE).items():
            index, entry = key.split(":")
            partition = partitions[int(index)]
            state[partition][entry] = value.to(partition.device)

    def gathered_weights(self) -> dict[str, torch.Tensor] | None:
        if self._stage < 3:
            return None
        whole: dict[str, torch.Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():  # one at a time: a device may not hold them all
            with self._gathered([parameter]):
                if self.ranks.is_first:
                    whole[name] = parameter.detach().cpu().clone()
        return whole

    def close(self) -> None:
        self._engine.destroy()

    def _partitions(self) -> list[torch.Tensor]:
        """This rank's parts of the fp32 weights, each flat: what the optimiser's state belongs to."""
        optimizer = self._engine.optimizer
        partitions = (
            optimizer.fp32_partitioned_groups_flat if self._stage == 3 else optimizer.single_partition_of_fp32_groups
        )
        return list(partitions)


def _config(stage: int, offload: bool, max_norm: float, device: str) -> dict[str, Any]:
    """DeepSpeed's settings. Accumulation is not managed: a step has as many micro-batches as its tokens need."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": device != "cpu" and stage == 2}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device != "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": device != "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }


def _deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError("resources.strategy: ZeRO needs DeepSpeed: pip install 'raysft[deepspeed]'") from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _join_group() -> None:
    """A process group of one, for a trial that has one worker and offloads."""
    if not distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        with tempfile.TemporaryDirectory() as scratch:
            distributed.init_process_group(backend, init_method=f"file://{scratch}/group", rank=0, world_size=1)
