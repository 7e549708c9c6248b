"""What lets Tune forget trials that have ended.

Tune keeps each trial for its table at the end: an object, its state as JSON and folders, some 100 KB together. A sweep
reads none of it, since all that a trial made is in the storage. Tune has no call for this, so the trials are taken out
of its controller's own collections (2.60), whose names a test holds on to.
"""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

_KEPT = 50  # of the latest: some of Tune's own steps come after a trial's end


class ForgettingScheduler(FIFOScheduler):
    """First in, first out, as Tune is without a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: deque[Any] = deque()

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._end(tune_controller, trial)

    def _end(self, controller: Any, trial: Any) -> None:
        self._ended.append(trial)
        while len(self._ended) > _KEPT:
            _forget(controller, self._ended.popleft())


def _forget(controller: Any, trial: Any) -> None:
    if not trial.is_finished() or trial in controller._trial_to_actor:
        return
    for collection in (controller._stopped_trials, controller._failed_trials, controller._live_trials):
        collection.discard(trial)
    controller._trials_to_cache.discard(trial)
    controller._trial_metadata.pop(trial.trial_id, None)
    controller._trials.remove(trial)
    for folder in (trial.local_path, trial.storage.trial_fs_path):
        shutil.rmtree(Path(folder), ignore_errors=True)


class NoProgress(TrialProgressCallback):
    """In the place of Tune's own printer of trials, which keeps each of them and is added where there is none."""

    def __init__(self) -> None:
        super().__init__(metric=None)

    def on_trial_start(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    on_trial_result = on_trial_error = on_trial_complete = on_trial_start
