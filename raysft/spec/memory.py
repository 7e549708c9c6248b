"""Memory that a training step needs of a worker, estimated from a base model's sizes before anything runs.

Model state (weights, gradients, the optimiser's moments) is counted, and divided over the workers as ZeRO does it
(Rajbhandari et al. 2020, section 5). Activations are summed over what autograd saves of each layer, in the manner of
Korthikanti et al. 2022, section 4.1, for what these models run: norms in fp32, gated feed-forward layers, no dropout of
the base's own, and fused attention, which keeps no scores, but keys and values for each query head where rows are
padded. `benchmarks/memory.py` compares the estimates with what real steps took on a CPU; ZeRO is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from raysft.spec.grid import Trial
from raysft.spec.shape import Matrix, ModelShape
from raysft.spec.size import GB, adapted, decimal, shape_of, trainable_parameters, trained_layers, weight_bytes
from raysft.spec.sweep import MethodSpec, SpecError, Sweep

PROCESS = 0.6e9
"""Bytes of a worker before its model: the imported libraries (0.58 GB resident), or as much for a CUDA context."""

LOGITS = 1 << 24
"""Numbers of logits that exist at a time (`raysft/training/loss.py`)."""


@dataclass(frozen=True)
class Step:
    """One micro-batch of a worker, and how the model's state is divided.

    `tokens`: of the micro-batch, padding counted; `supervised` of them have a loss. `length`: tokens of a row.
    `accumulates`: a step has several micro-batches, so that gradients are there while another one runs. `stage`: of
    ZeRO over `workers`; 0 where each worker holds everything. `offload`: what ZeRO divides lies in the CPU's memory.
    """

    tokens: int
    length: int
    supervised: int
    precision: str = "float32"
    checkpointing: bool = False
    accumulates: bool = True
    workers: int = 1
    stage: int = 0
    offload: bool = False


@dataclass(frozen=True)
class StepMemory:
    """Peak of a training step in bytes, by what takes it.

    `state` stays whatever the size of a micro-batch; `passing` is the most that is there for a while at the turn from
    forward to backward.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    passing: float
    accumulates: bool

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """At the start of a backward pass; without accumulation gradients grow while activations are freed."""
        batch = self.activations + self.passing
        together = self.gradients + batch if self.accumulates else max(self.gradients, batch)
        return self.weights + self.optimizer + together


@dataclass(frozen=True)
class Need:
    """What the training steps of a base model and method need of a worker, at most, and the trials they are of.

    `offered` are the bytes that its worker has; infinite where `resources` does not say.
    """

    model: str
    method: str
    trials: int
    memory: StepMemory
    offered: float

    @property
    def bytes(self) -> float:
        return PROCESS + self.memory.peak

    @property
    def floor(self) -> float:
        """Bytes that no smaller token budget saves."""
        return PROCESS + self.memory.state

    def __str__(self) -> str:
        """For people, with the floor in brackets."""
        plural = "" if self.trials == 1 else "s"
        sizes = f"{decimal(self.bytes)} ({decimal(self.floor)})"
        return f"{self.model} x {self.method}, {self.trials} trial{plural}: {sizes}"


def memory_needs(sweep: Sweep, trials: Iterable[Trial]) -> list[Need]:
    """Needs of every base model with known sizes and method of the trials, in their order.

    Micro-batches are taken as full of rows of the maximum length that are supervised throughout: what data can come to.
    """
    shapes = {model.name: shape_of(model) for model in sweep.models}
    known: dict[tuple[str, str, Step], StepMemory] = {}
    needs: dict[tuple[str, str], Need] = {}
    for trial in trials:
        shape = shapes[trial.model]
        if shape is None:
            continue
        pair = (trial.model, trial.method)
        case = (*pair, _largest_step(sweep, trial))
        if case not in known:
            known[case] = step_memory(shape, sweep.method(trial.method), case[-1])
        offered = (sweep.resources_of(*pair).memory_per_worker or math.inf) * GB
        so_far = needs.get(pair, Need(*pair, 0, known[case], offered))
        larger = max(so_far.memory, known[case], key=lambda memory: memory.peak)
        needs[pair] = Need(*pair, so_far.trials + 1, larger, offered)
    return list(needs.values())


def too_large(sweep: Sweep, trials: Iterable[Trial]) -> list[str]:
    """Lines that name each need above its `memory_per_worker`; none where all fit or that is left out."""
    above = [need for need in memory_needs(sweep, trials) if need.bytes > need.offered]
    lines = []
    for offered in dict.fromkeys(need.offered for need in above):
        lines.append(
            f"Above the {decimal(offered)} of resources.memory_per_worker (in brackets: at any training.token_budget):"
        )
        lines += [f"  {need}" for need in above if need.offered == offered]
    return lines


def refuse_what_never_fits(sweep: Sweep, trials: Iterable[Trial]) -> None:
    """SpecError for the first need of which weights, gradients and optimiser alone are above what a worker has."""
    for need in memory_needs(sweep, trials):
        if need.floor > need.offered:
            raise SpecError(
                f"resources.memory_per_worker: found {decimal(need.offered)}, where weights, gradients and optimiser "
                f"of {need.model} x {need.method} take {decimal(need.floor)}; valid: more, ZeRO over workers, or LoRA"
            )


def _largest_step(sweep: Sweep, trial: Trial) -> Step:
    training, settings = sweep.training, trial.optimisation
    resources = sweep.resources_of(trial.model, trial.method)
    tokens = -(-settings.batch_size // resources.workers) * settings.max_length
    micro_batch = min(tokens, max(training.token_budget, settings.max_length))
    return Step(
        tokens=micro_batch,
        length=settings.max_length,
        supervised=micro_batch,
        precision=settings.dtype,
        checkpointing=training.activation_checkpointing,
        accumulates=tokens > micro_batch,
        workers=resources.workers,
        stage=0 if resources.strategy == "ddp" else int(resources.strategy[-1]),
        offload=resources.offload,
    )


def step_memory(shape: ModelShape, method: MethodSpec, step: Step) -> StepMemory:
    """Estimate of a training step of `method` on a model of `shape`; SpecError for a depth range without a layer."""
    weight = weight_bytes(step.precision)
    # peft keeps adapters in fp32, whatever the base is in.
    trained = (4 if method.kind == "lora" else weight) * trainable_parameters(shape, method)
    weights = weight * shape.parameter_count() + (trained if method.kind == "lora" else 0)
    # Beside the two moments of AdamW, DeepSpeed updates a copy of the weights that are this worker's.
    moments = 2 * trained if step.stage == 0 else 3 * trained / step.workers
    saved, recomputed = _activation_bytes(shape, method, step)
    return StepMemory(
        weights=weights / step.workers * (not step.offload) if step.stage == 3 else weights,
        gradients=trained / step.workers * (not step.offload) if step.stage >= 2 else trained,
        optimizer=moments * (not step.offload),
        activations=saved,
        passing=max(_loss_bytes(shape, method, step), recomputed) + _buffer_bytes(shape, method, step),
        accumulates=step.accumulates,
    )


def _buffer_bytes(shape: ModelShape, method: MethodSpec, step: Step) -> float:
    """What DeepSpeed reduces gradients in (twice at stage 2, where that overlaps with backward), and the weights that
    are whole at a time at stage 3, by its defaults of `reduce_bucket_size` and `stage3_max_live_parameters`."""
    reduced = 4 * min(5e8, trainable_parameters(shape, method)) * (2 if step.stage == 2 else 1)
    live = weight_bytes(step.precision) * min(1e9, shape.parameter_count())
    return (reduced if step.stage >= 1 else 0) + (live if step.stage == 3 else 0)


def _loss_bytes(shape: ModelShape, method: MethodSpec, step: Step) -> float:
    """The end of forward, where the output layer's gradient is taken: log-probabilities, their gradient and that of the
    logits in fp32, for as many tokens as are done at once; and the gradient summed over them and that of the last."""
    logits = step.supervised * shape.vocabulary
    whole_model = method.kind == "full" and method.depth is None
    trains = whole_model and not (method.freeze_embeddings and shape.is_tied)
    head = weight_bytes(step.precision) * shape.output_matrix().parameters if trains else 0
    return 12 * min(logits, LOGITS) + head * (2 if logits > LOGITS else 1)


def _activation_bytes(shape: ModelShape, method: MethodSpec, step: Step) -> tuple[float, float]:
    """(what is saved for backward at its start, what one layer makes again): all of every layer from the lowest that
    trains, and nothing; or, under activation checkpointing, the layers' inputs, and the largest of them."""
    trained = _trained_modules(shape, method)
    embeds = method.kind == "full" and method.depth is None
    lowest = 0 if embeds else min(trained, default=shape.layers)
    modules = [trained.get(layer, frozenset()) for layer in range(lowest, shape.layers)]
    sizes = {names: _layer_bytes(shape, method, step, names) for names in set(modules)}
    layers = [sizes[names] for names in modules]
    stream = weight_bytes(step.precision) * shape.hidden * step.tokens
    ends = 2 * stream + _cast_bytes([shape.output_matrix()], step)
    if step.checkpointing:
        return ends + stream * len(layers), max(layers, default=0.0)
    return ends + sum(layers), 0.0


def _trained_modules(shape: ModelShape, method: MethodSpec) -> dict[int, frozenset[str]]:
    """Names of the linear modules whose weights or adapters train, by layer."""
    if method.kind == "full":
        names = frozenset(matrix.name for matrix in shape.layer_matrices())
        return dict.fromkeys(trained_layers(shape, method), names)
    modules: dict[int, set[str]] = {}
    for layer, matrix in adapted(shape, method):
        if layer is not None:
            modules.setdefault(layer, set()).add(matrix.name)
    return {layer: frozenset(own) for layer, own in modules.items()}


def _layer_bytes(shape: ModelShape, method: MethodSpec, step: Step, trained: Collection[str]) -> float:
    """Bytes that one layer saves for backward; `trained` are the modules in it whose weights or adapters train."""
    about, compute = shape.about, _compute_bytes(step)
    own_weights = bool(trained) and method.kind == "full"
    norms = about.norms * shape.hidden * _norm_bytes(shape, own_weights)
    if about.query_key_norm is not None:
        norms += (shape.query_width + shape.key_width) * _norm_bytes(shape, own_weights)
    attention = 4 * shape.query_width * compute
    if about.soft_caps:
        attention += 8 * shape.heads * step.length  # tanh and softmax of the scores
    else:
        attention += step.length * compute  # the mask's row
    # Gate, its activation and the other factor; the four steps of Phi's GELU.
    feed_forward = (3 if about.gated else 4) * shape.intermediate * compute
    matrices = shape.layer_matrices()
    inputs = _input_bytes(method, step, [matrix for matrix in matrices if matrix.name in trained])
    return step.tokens * (norms + attention + feed_forward + inputs) + _cast_bytes(matrices, step)


def _norm_bytes(shape: ModelShape, trained: bool) -> int:
    """Bytes for each number that is normalised: its fp32 value, and the result where a weight's gradient needs it."""
    return 8 if trained and shape.about.norm_vectors == 1 else 4


def _input_bytes(method: MethodSpec, step: Step, modules: list[Matrix]) -> float:
    """Bytes of a token for the inputs of the modules that train.

    Modules share an input, and fused attention keeps its own result anyway, unless it is cast: by autocast to bfloat16,
    by peft to its adapters' fp32. LoRA adds what its first matrices pass on; with dropout each module has a mask and a
    dropped input of its own; DoRA keeps both terms of each result.
    """
    casts = step.precision == "bfloat16" or (method.kind == "lora" and step.precision == "pure_bfloat16")
    number = 4 if casts and step.precision == "pure_bfloat16" else _compute_bytes(step)
    if method.kind == "lora" and method.dropout > 0:
        inputs = (4 + number) * sum(matrix.inputs for matrix in modules)
    elif method.kind == "lora" and casts:
        inputs = number * sum(matrix.inputs for matrix in modules)
    else:
        own = [matrix for matrix in modules if matrix.reads != "self_attn result"]
        inputs = number * sum(matrix.inputs for matrix in (own if casts else {m.reads: m for m in own}.values()))
    if method.kind == "full":
        return inputs
    return inputs + number * sum(method.rank + (2 * matrix.outputs if method.dora else 0) for matrix in modules)


def _cast_bytes(matrices: list[Matrix], step: Step) -> float:
    """bfloat16 copies of fp32 weights, which autocast makes and backward reads."""
    return 2 * sum(matrix.inputs * matrix.outputs for matrix in matrices) if step.precision == "bfloat16" else 0


def _compute_bytes(step: Step) -> int:
    """Bytes of a number that a linear module reads or makes."""
    return 4 if step.precision == "float32" else 2
