"""When a running sweep will end: what is left, at the pace at which its results came of late."""

from __future__ import annotations

from collections import defaultdict

from raysft.spec.cost import Device, Estimate
from raysft.spec.plan import Plan
from raysft.store.costs import published_at
from raysft.store.layout import Storage

WINDOW_S = 3600.0  # of results that tell the pace: the cluster may have grown or shrunk before


def seconds_to_the_end(plan: Plan, storage: Storage, estimate: Estimate, since: float, now: float) -> float | None:
    """Wall seconds to the end of a sweep whose driver started at `since`, both in seconds of the epoch.

    None until results tell the pace. What is left for devices that no result came from yet, as the estimates of
    intrinsic dimensions at the very end, is not in it.
    """
    start = max(since, now - WINDOW_S)
    if now <= start:
        return None
    made: dict[Device, float] = defaultdict(float)
    for stage, (done, _) in plan.count_by_stage().items():
        for key, time in published_at(storage, stage).items() if done else ():
            if time >= start and (stage, key) in plan.committed and estimate.knows(stage, key):
                device, seconds = estimate.seconds(stage, key)
                made[device] += seconds
    if not any(made.values()):
        return None
    return sum(left * (now - start) / made[device] for device, left in estimate.left_s.items() if made[device] > 0)
