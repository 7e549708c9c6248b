"""One rank of a worker group without Ray: `python -m tests.invariants.on_ranks RANK COUNT GROUP_FILE OUT CASE...`.

Trains each case (`strategy:family:method`) on this rank and, on the first, writes its losses and weights to OUT. A case
`strategy:family:method:STEP` stops after that step, keeps a state, and goes on from it with everything made anew.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed

from raysft.models.methods import Tuned, apply_method
from raysft.spec.sweep import MethodSpec
from raysft.store.layout import open_storage
from raysft.training.loop import EpochStats, Hooks, Job, Progress, train
from raysft.training.parallel import DataParallel, Engine, Ranks
from raysft.training.resume import ResumeStates
from raysft.training.zero import ZeroEngine
from tests.invariants.tiny_models import optimisation, random_rows, tiny_base

METHODS = {
    "full": MethodSpec(name="full", kind="full"),
    "lora": MethodSpec(name="lora", kind="lora", rank=4, alpha=8, dropout=0.1),
}


def job(**changes: Any) -> Job:
    """Two epochs of three steps over twenty rows."""
    given: dict[str, Any] = {
        "rows": random_rows(20),
        "settings": optimisation(),
        "seed": 0,
        "epochs": 2,
        "pad_id": 0,
        "token_budget": 64,
        "device": torch.device("cpu"),
    }
    return Job(**{**given, **changes})


def engine_of(strategy: str, tuned: Tuned, ranks: Ranks) -> Engine:
    if strategy == "ddp":
        return DataParallel(tuned.model, tuned.trainable(), optimisation(), ranks)
    return ZeroEngine(tuned.model, tuned.trainable(), optimisation(), int(strategy[-1]), ranks=ranks)


def run_case(case: str, ranks: Ranks, out: Path) -> None:
    """Train one case and write what came of it."""
    strategy, family, method, *stop = case.split(":")
    states = ResumeStates(open_storage(str(out / "storage")), case, ranks, job().device, strategy != "ddp")
    epochs: list[EpochStats] = []
    progress = Progress()
    for stop_at in [*map(int, stop), -1]:
        tuned = apply_method(tiny_base(family), METHODS[method], seed=progress.steps)  # nothing of it may survive
        if not epochs and progress.steps == 0:
            tuned = apply_method(tiny_base(family), METHODS[method], seed=0)
        state = states.newest(before=99)
        if state is not None:
            tuned.load(state.first)
            epochs, progress = state.history, state.progress
        engine = engine_of(strategy, tuned, ranks)
        if state is not None:
            engine.load_optimizer(state.own)
        whole = replace(job(), noise=tuned.noise)
        train(engine, whole, _hooks(states, tuned, engine, epochs, stop_at - progress.steps), progress)
    weights = engine.gathered_weights() or dict(tuned.model.named_parameters())
    names = [name for name, _ in tuned.trainable()]
    if ranks.is_first:
        save_file({name: weights[name].detach().clone().contiguous() for name in names}, out / f"{case}.safetensors")
        (out / f"{case}.json").write_text(json.dumps([asdict(stats) for stats in epochs]))
    engine.close()


def _hooks(states: ResumeStates, tuned: Tuned, engine: Engine, epochs: list[EpochStats], stop_in: int) -> Hooks:
    """Keep a state at the step at which to stop."""
    asked = iter(range(1000))
    now = [False]

    def is_time() -> bool:
        now[0] = next(asked) == stop_in
        return now[0]

    return Hooks(
        epoch_ended=epochs.append,
        should_stop=is_time,
        should_save=lambda: now[0],
        save=lambda progress: states.save(tuned, engine, epochs, progress),
    )


def main() -> None:
    rank, count, group, out, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{group}", rank=int(rank), world_size=int(count))
    for case in cases:
        run_case(case, Ranks(int(rank), int(count)), Path(out))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
