"""What can be known of vLLM before anything starts: that it is there, and that its GPUs are those of who starts it."""

from __future__ import annotations

from raysft.evaluation.vllm_engine import why_missing
from raysft.spec.sweep import SpecError, Sweep
from raysft.spec.vllm import VllmSpec


def check_serving(sweep: Sweep) -> None:
    """SpecError for what of `backend: vllm` cannot work; this machine stands for all nodes, as with local models."""
    spec = sweep.evaluation.served_by
    if spec is None:
        return
    for gpus in sorted(_gpus_held(sweep)):
        _check_gpus(spec, gpus)
    if problem := why_missing(spec):
        raise SpecError(problem)


def _gpus_held(sweep: Sweep) -> set[float]:
    """GPUs of each process that measures; with none, vLLM computes on what else it was built for."""
    held = [sweep.resources_of(model.name, method.name) for model in sweep.models for method in sweep.methods]
    in_place = {one.gpus_per_worker for one in held if one.measures_in_place}
    return {gpus for gpus in (*in_place, sweep.resources.measuring_shape.gpus) if gpus > 0}


def _check_gpus(spec: VllmSpec, gpus: float) -> None:
    if spec.tensor_parallel > max(gpus, 1):
        raise SpecError(
            f"evaluation.vllm.tensor_parallel: {spec.tensor_parallel}, and a process that measures holds {gpus:g} GPU; "
            "give it more under resources, or less here"
        )
    if gpus < 1 and spec.gpu_memory_utilization is None:
        raise SpecError(
            "evaluation.vllm.gpu_memory_utilization: required where processes share a GPU, and one that measures "
            f"holds {gpus:g} of it; valid: a share that leaves room for the others"
        )
