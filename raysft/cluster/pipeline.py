"""The whole of a sweep as one call: trials, geometry, tables, study, report. The command line and `jobs/` call this."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from raysft.cluster.connect import connected
from raysft.cluster.geometry import forget_embeddings, run_geometry
from raysft.cluster.metrics import exported_metrics
from raysft.cluster.retries import UnitDeath
from raysft.cluster.sweep import SweepOutcome, UnitOutcome, Watcher, run_sweep
from raysft.preflight import check_sweep
from raysft.publish import make_report
from raysft.reduce import Reduced, reduce_sweep
from raysft.spec.digests import keep_digests
from raysft.spec.keys import text_digest
from raysft.spec.memory import too_large
from raysft.spec.plan import Plan, is_up_to_date, make_plan, nothing_missing
from raysft.spec.sweep import Sweep, resolved_yaml
from raysft.store.checkpoints import delete_folder
from raysft.store.layout import REPORT_FILE, REPORT_SPEC_FILE, SPEC_FILE, Storage, checkpoint_folder, open_storage
from raysft.store.lease import Lease, driving
from raysft.store.results import set_aside

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """What `run_everything` did: new units, failures by one line each, and where the report is."""

    units: int
    failures: tuple[str, ...]
    report: str


def run_everything(
    sweep: Sweep, address: str | None = None, dashboard: bool = False, say: Say = print, advance: Say = lambda _: None
) -> RunResult:
    """Run what is missing of a sweep and bring its tables, study and report up to date.

    `say` gets lines for people; `advance` is called once for each unit that ended. Raises SpecError or StorageError
    before any worker starts, for what can be known then, and for a storage that another driver works on.
    """
    storage = open_storage(sweep.storage)
    plan = make_plan(sweep, storage)
    report = storage.path(REPORT_FILE)
    if is_up_to_date(plan, storage):
        say(nothing_missing(plan))
        return RunResult(0, (), report)
    check_sweep(plan, storage)
    with driving(storage, sweep.name, text_digest(resolved_yaml(sweep)), say) as lease:
        return _run_missing(sweep, storage, lease, address, dashboard, say, advance)


def _run_missing(
    sweep: Sweep, storage: Storage, lease: Lease, address: str | None, dashboard: bool, say: Say, advance: Say
) -> RunResult:
    plan, report = make_plan(sweep, storage), storage.path(REPORT_FILE)  # another driver may just have ended
    for line in too_large(sweep, plan.missing_trials()):
        say(line)
    storage.delete(REPORT_SPEC_FILE)  # from here to the end of the report, a kill leaves a report to be made again
    storage.write_bytes(resolved_yaml(sweep).encode(), SPEC_FILE)
    keep_digests(storage)
    for path in plan.damaged:
        say(f"{path}: truncated; moved aside, to be redone")
    set_aside(storage, plan.damaged)
    units, geometry = plan.missing_units(), plan.missing_geometry()
    forget_embeddings(plan, storage)
    if not units and not geometry:
        say("No result is missing, but the tables are of another version of this sweep")
        return RunResult(0, tuple(reduce_and_report(sweep, storage, say)), report)
    say(f"{len(units)} units to run, {len(geometry)} intrinsic dimensions to estimate; results go to {storage.uri}")
    with connected(address, dashboard), exported_metrics(plan, storage) as metrics:
        watch = _both(metrics.ended, _watcher(len(units), say, advance))
        outcome = run_sweep(plan, storage, watch, metrics.started, lease.check, say)
        metrics.units_over(outcome.blocked)
        lines = _failure_lines(outcome)
        if geometry:
            failed = run_geometry(make_plan(sweep, storage), storage, say)
            metrics.failed(failed)
            lines += [f"{failure['stage']} {failure['key']}: {failure['message']}" for failure in failed]
    _forget_weights(sweep, storage)
    _say_overhead(outcome, say)
    lines += reduce_and_report(sweep, storage, say)
    return RunResult(len(units), tuple(lines), report)


def run_geometry_only(sweep: Sweep, address: str | None = None, say: Say = print) -> tuple[str, ...]:
    """Embed and estimate what a finished or running sweep has checkpoints for; a line for each failure."""
    storage = open_storage(sweep.storage)
    with driving(storage, sweep.name, text_digest(resolved_yaml(sweep)), say), connected(address):
        failed = run_geometry(make_plan(sweep, storage), storage, say)
    return tuple(f"{failure['stage']} {failure['key']}: {failure['message']}" for failure in failed)


def reduce_and_report(sweep: Sweep, storage: Storage, say: Say = print) -> list[str]:
    """Tables, study and report of whatever is in the storage; a line for each result that could not be read."""
    started = time.perf_counter()
    reduced = reduce_sweep(sweep, storage)
    say(f"tables: {sum(reduced.rows.values())} rows in {storage.path('tables')}")
    make_report(storage, sweep.name)
    storage.write_bytes(resolved_yaml(sweep).encode(), REPORT_SPEC_FILE)
    say(f"study and report: {storage.path('report')} ({time.perf_counter() - started:.0f} s)")
    return _put_unreadable_aside(storage, reduced)


def _put_unreadable_aside(storage: Storage, reduced: Reduced) -> list[str]:
    """Move results that are damaged inside to dot-prefixed names, so that the next run redoes them; a line for each.

    Results of a newer version of this package stay where they are, and are in no table of this one.
    """
    set_aside(storage, reduced.damaged)
    damaged = [f"{line}; moved aside, run again to redo it" for line in reduced.unreadable]
    return [*damaged, *(f"{line}; it is in no table" for line in reduced.newer)]


def _both(first: Watcher, second: Watcher) -> Watcher:
    def watch(ended: UnitOutcome | UnitDeath) -> None:
        first(ended)
        second(ended)

    return watch


def _watcher(total: int, say: Say, advance: Say) -> Watcher:
    done = 0

    def watch(ended: UnitOutcome | UnitDeath) -> None:
        nonlocal done
        if isinstance(ended, UnitDeath) and ended.again:
            say(f"[{done}/{total}] {ended.unit}: {_death_line(ended)}; tried again")
            return
        done += 1
        if isinstance(ended, UnitDeath):
            say(f"[{done}/{total}] {ended.unit}: {_death_line(ended)}; FAILED")
        else:
            spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in ended.seconds.items() if seconds >= 0.05)
            failed = f"; {len(ended.failures)} FAILED" if ended.failures else ""
            say(f"[{done}/{total}] {ended.unit}: {ended.wall_s:.1f} s ({spent}){failed}")
        advance(str(ended.unit))

    return watch


def _death_line(ended: UnitDeath) -> str:
    return f"{type(ended.death).__name__} ({str(ended.death)[:200]})"


def _failure_lines(outcome: SweepOutcome) -> list[str]:
    lines = [
        f"{ended.unit}: {failure['stage']}: {failure['message']}"
        for ended in outcome.outcomes
        for failure in ended.failures
    ]
    lines += [f"{unit}: its base model could not be pretrained" for unit in outcome.blocked]
    return lines + [f"{unit}: its process died" for unit in outcome.died]


def _say_overhead(outcome: SweepOutcome, say: Say) -> None:
    """Seconds of a warm trial that are neither training nor measuring, which is what running it on Ray costs."""
    warm = [ended.overhead_s for ended in outcome.outcomes if ended.unit.kind == "fine_tune" and not ended.failures]
    if warm:
        say(
            f"{len(warm)} trials: {median(warm):.2f} s each were neither training nor measuring "
            f"(median; longest {max(warm):.2f} s)"
        )


def _forget_weights(sweep: Sweep, storage: Storage) -> None:
    """With `checkpoints.keep: none`, delete the weights of trials that are measured to the end."""
    if sweep.checkpoints.keep != "none":
        return
    plan: Plan = make_plan(sweep, storage)
    waiting = {work.subject.trial for work in plan.works() if work.stage != "embed" and not plan.is_done(work)}
    for trial in plan.trials:
        if trial.key not in waiting:
            delete_folder(storage, checkpoint_folder(trial.key, trial.epochs))
