"""A process that runs the units of a sweep and can stop still for its parent to kill it.

    python -m tests.chaos.trial_to_kill SWEEP.yaml [MOMENT STEPS]

It keeps a state before each step, and says from which step its training goes on. At the moment given it says so in one
line and does nothing more, until it is killed, or told `go on`, or its standard input is closed, so that it does not
outlive its parent.
Moments, with that many steps done:

- `stepped`: the step was taken, its state is not kept, so that the newest is of the step before;
- `writing`: a part of its state is written, nothing of it published;
- `kept`: its state is kept.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from raysft import trial
from raysft.session import Session
from raysft.spec.plan import make_plan
from raysft.spec.sweep import load_sweep
from raysft.store.layout import open_storage
from raysft.training import loop
from raysft.training.loop import Hooks, Job, Progress
from raysft.training.parallel import Engine

Train = Callable[[Engine, Job, Hooks, Progress], bool]


def _stand_still(moment: str, steps: int) -> None:
    print(f"stopped {moment} {steps}", flush=True)
    if sys.stdin.readline() != "go on\n":
        sys.exit("the parent went away without killing this process")


def stopping(moment: str, steps: int) -> Train:
    """The training loop, saying where it starts and standing still at that moment."""

    def train(engine: Engine, job: Job, hooks: Hooks, start: Progress) -> bool:
        print(f"from {start.steps}", flush=True)
        done = itertools.count(start.steps)
        write = engine.save_optimizer

        def should_stop() -> bool:  # the first thing that the loop asks before a step
            if (moment, steps) == ("stepped", next(done)):
                _stand_still(moment, steps)
            return hooks.should_stop()

        def save_optimizer(folder: Path) -> None:
            write(folder)
            _stand_still(moment, steps)

        def save(progress: Progress) -> None:
            if (moment, steps) == ("writing", progress.steps):
                engine.save_optimizer = save_optimizer  # type: ignore[method-assign]  # of this engine alone
            hooks.save(progress)
            if (moment, steps) == ("kept", progress.steps):
                _stand_still(moment, steps)

        return loop.train(engine, job, replace(hooks, should_stop=should_stop, save=save), start)

    return train


def main() -> None:
    """Run every missing unit of the sweep."""
    path, moment, steps = [*sys.argv[1:], "never", "0"][:3]
    torch.set_num_threads(1)
    trial.RESUME_EVERY_S = 0.0
    trial.train = stopping(moment, int(steps))
    sweep = load_sweep(Path(path))
    plan, session = make_plan(sweep, open_storage(sweep.storage)), Session(sweep, torch.device("cpu"))
    for unit in plan.missing_units():
        report = trial.run_unit(session, unit, plan.missing_works(unit))
        if report.failures:
            sys.exit(str(report.failures))


if __name__ == "__main__":
    main()
