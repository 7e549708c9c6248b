"""TwoNN, MLE and Gride of one layer from one exact neighbour table, beside scikit-dimension called once for each.

    python benchmarks/dimension.py benchmarks/results/dimension.json
    python benchmarks/dimension.py OUT --points 10000 --widths 1024 --repeats 5
    python benchmarks/dimension.py OUT --device cuda --gpu-points 100000 --gpu-width 4096 --peak-tflops 67

Points lie near a curved manifold of 20 dimensions, off centre, in fp32 values, as hidden states are stored.
scikit-dimension gets them in fp64 and centred already, without which its numbers would not be exact. Every run is a
process of its own, contenders take turns, and ratios are of medians. Imports, compiled kernels (kept on disk after
their first use) and making the points are not timed; memory is the peak of the process less what it held before,
points included. `raysft` makes a table of 100 neighbours and the estimates; `raysft_intervals` also 20 splits into
halves, for which the table is deeper; `raysft_layer` does all that the probe does to a layer, duplicates and spectrum
too. Numbers must agree to 1e-6 with scikit-dimension's, or there is no result. A run adds its sizes to the file, or
replaces them; the section on a GPU is only measured with --device cuda.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import circumstances

NEIGHBOURS, MLE_NEIGHBOURS, SPLITS = 100, 20, 20
TOLERANCE = 1e-6
OURS = ("raysft", "raysft_intervals", "raysft_layer")
CONTENDERS = (*OURS, "scikit_dimension")

Values = dict[str, float]
Run = dict[str, Any]


def points_of(count: int, width: int, dtype: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """fp32 values (count, width), near a curved manifold of 20 dimensions, with an offset and a little noise."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(20, width)).astype(np.float32)
    offset = 3 * random.standard_normal(size=width, dtype=np.float32)
    points = np.empty((count, width), dtype)
    for start in range(0, count, 500):  # in parts, so that making them leaves no peak of memory behind
        part = points[start : start + 500]
        inner = random.normal(size=(len(part), 20)).astype(np.float32)
        noise = 0.01 * random.standard_normal(size=part.shape, dtype=np.float32)
        part[:] = np.tanh(inner @ directions / 5) + noise + offset
    return points


def from_table(points: np.ndarray, device: str) -> Values:
    """The estimates as raysft makes them, without intervals."""
    from raysft.probes.geometry.estimators import estimates_of
    from raysft.probes.geometry.neighbours import neighbour_table

    table = neighbour_table(points, NEIGHBOURS, device)
    return _named(estimates_of(table.distances, NEIGHBOURS, MLE_NEIGHBOURS))


def with_intervals(points: np.ndarray, device: str) -> Values:
    """The estimates and their intervals, from a table that is deep enough for halves."""
    from raysft.probes.geometry.estimators import deepest_order, estimates_of
    from raysft.probes.geometry.half_samples import depth_for_halves, intervals
    from raysft.probes.geometry.neighbours import neighbour_table

    depth = max(NEIGHBOURS, depth_for_halves(deepest_order(NEIGHBOURS, MLE_NEIGHBOURS)))
    table = neighbour_table(points, depth, device)
    estimates = estimates_of(table.distances, NEIGHBOURS, MLE_NEIGHBOURS)
    intervals(table, estimates, NEIGHBOURS, MLE_NEIGHBOURS, SPLITS, 0)
    return _named(estimates)


def whole_layer(points: np.ndarray, device: str) -> Values:
    """All that the probe does to a layer."""
    from raysft.probes.geometry.intrinsic_dimension import Texts, layer_estimates
    from raysft.probes.geometry.neighbours import neighbour_table
    from raysft.spec.probes import IntrinsicDimensionProbe

    probe = IntrinsicDimensionProbe(
        texts=len(points), neighbours=NEIGHBOURS, mle_neighbours=MLE_NEIGHBOURS, half_samples=SPLITS
    )
    table_of = partial(neighbour_table, device=device)
    rows = layer_estimates(points, 0, 0, probe, Texts("benchmark"), table_of).rows
    return {f"{row['estimator']} {row['scale']}": row["value"] for row in rows if row["scale"]}


def by_scikit_dimension(points: np.ndarray, device: str) -> Values:
    """The same estimates by scikit-dimension's own three calls, each of which looks for neighbours itself."""
    import skdim.id

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = {"twonn 2": float(skdim.id.TwoNN().fit(points).dimension_)}
        mle = skdim.id.MLE().fit(points, n_neighbors=MLE_NEIGHBOURS, comb="mle")
        values[f"mle {MLE_NEIGHBOURS}"] = float(mle.dimension_)
        curve = skdim.id.GRIDE(multiscale=True, range_max=NEIGHBOURS).fit(points)
    scales = zip(curve.scales_, curve.dimension_scales_, strict=True)
    return values | {f"gride {2 * order}": float(value) for order, value in scales}


WORK: dict[str, Callable[[np.ndarray, str], Values]] = {
    "raysft": from_table,
    "raysft_intervals": with_intervals,
    "raysft_layer": whole_layer,
    "scikit_dimension": by_scikit_dimension,
}


def _named(estimates: dict[tuple[str, int], float]) -> Values:
    return {f"{estimator} {scale}": value for (estimator, scale), value in estimates.items()}


def measure(request: Run) -> Run:
    """One run in this process: seconds, peak bytes above what was held before, and the values."""
    work, device = WORK[request["contender"]], request["device"]
    work(points_of(300, request["width"]), device)  # imports, compiled kernels, threads
    theirs = request["contender"] == "scikit_dimension"
    points = points_of(request["points"], request["width"], np.float64 if theirs else np.float32)
    if theirs:
        points -= points.mean(axis=0)
    before = resident()
    started = time.perf_counter()
    values = work(points, device)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak - before, "values": values}


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(request: Run) -> Run:
    """`measure` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, json.dumps(request)], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{request} failed with exit code {done.returncode}")
    outcome: Run = json.loads(done.stdout.splitlines()[-1])
    return outcome


def difference(found: Values, expected: Values) -> float:
    """Largest relative difference of two sets of estimates."""
    return max(abs(found[name] - value) / abs(value) for name, value in expected.items())


def measure_case(points: int, width: int, repeats: int) -> Run:
    """All contenders at one size, taking turns; no result if their numbers differ."""
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    for _ in range(repeats):
        for name in CONTENDERS:
            runs[name].append(run({"contender": name, "points": points, "width": width, "device": "cpu"}))
    expected = runs["scikit_dimension"][0]["values"]
    differences = {name: max(difference(one["values"], expected) for one in runs[name]) for name in OURS}
    if max(differences.values()) > TOLERANCE:
        raise SystemExit(f"{points} x {width}: values differ by {differences}: nothing to compare")
    seconds = {name: median(one["seconds"] for one in found) for name, found in runs.items()}
    case = {
        "points": points,
        "width": width,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "all_seconds": {name: [round(one["seconds"], 3) for one in found] for name, found in runs.items()},
        "peak_mib": {name: round(median(one["peak_bytes"] for one in found) / 2**20) for name, found in runs.items()},
        "times_as_fast_as_scikit_dimension": {
            name: round(seconds["scikit_dimension"] / seconds[name], 2) for name in OURS
        },
        "largest_relative_difference": differences,
        "values": expected,
    }
    shown = "  ".join(f"{name} {seconds[name]:.2f} s {case['peak_mib'][name]} MiB" for name in CONTENDERS)
    print(f"{points:6} x {width:4}  {shown}  {case['times_as_fast_as_scikit_dimension']['raysft']}x", flush=True)
    return case


def on_gpu(options: argparse.Namespace) -> Run:
    """The table on a GPU: seconds, the share of the device's fp32 peak that its products are, equality on a part."""
    import torch

    if options.device != "cuda" or not torch.cuda.is_available():
        asked = "not asked for (--device cuda)" if options.device != "cuda" else "PyTorch finds no GPU"
        print(f"GPU: {asked}")
        return {"measured": False, "because": asked}
    from raysft.probes.geometry.neighbours import neighbour_table

    check = points_of(4000, options.gpu_width)
    ours, here = neighbour_table(check, NEIGHBOURS, "cuda"), neighbour_table(check, NEIGHBOURS)
    equal = float((ours.indices == here.indices).mean())
    apart = float(np.abs(ours.distances / here.distances - 1).max())
    points = points_of(options.gpu_points, options.gpu_width)
    seconds = []
    for _ in range(options.repeats):
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        neighbour_table(points, NEIGHBOURS, "cuda")
        seconds.append(time.perf_counter() - started)
    flops = 2.0 * options.gpu_points**2 * options.gpu_width
    return {
        "measured": True,
        "device": torch.cuda.get_device_name(),
        "points": options.gpu_points,
        "width": options.gpu_width,
        "seconds": round(median(seconds), 3),
        "all_seconds": [round(value, 3) for value in seconds],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "share_of_peak": round(flops / median(seconds) / options.peak_tflops / 1e12, 3)
        if options.peak_tflops
        else None,
        "same_neighbours_as_on_cpu": equal,
        "largest_relative_difference_of_distances": apart,
    }


def main(options: argparse.Namespace) -> None:
    """Measure every size, and add each to the result as soon as it is there."""
    about = circumstances("scikit-dimension", "scikit-learn", "numba", "torch")
    for width in options.widths:
        for points in options.points:
            add_to(options.out, {**about, **measure_case(points, width, options.repeats)})
    if options.device == "cuda":
        write(options.out, {**read(options.out), "gpu": {**about, **on_gpu(options)}})


def add_to(out: Path, case: Run) -> None:
    """Add a case to the file, in place of one of the same size."""
    result = read(out)
    others = [old for old in result["cases"] if (old["points"], old["width"]) != (case["points"], case["width"])]
    result["cases"] = sorted([*others, case], key=lambda one: (one["width"], one["points"]))
    write(out, result)


def read(out: Path) -> Run:
    """What the file holds."""
    if out.exists():
        found: Run = json.loads(out.read_text())
        return found
    settings = {"neighbours": NEIGHBOURS, "mle_neighbours": MLE_NEIGHBOURS, "splits": SPLITS}
    return {**settings, "cases": [], "gpu": {"measured": False, "because": "not asked for (--device cuda)"}}


def write(out: Path, result: Run) -> None:
    """Write the file whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 5000, 10000, 20000])
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: the section on a GPU too")
    parser.add_argument("--gpu-points", type=int, default=100_000)
    parser.add_argument("--gpu-width", type=int, default=4096)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, in fp32, for the share of peak")
    return parser.parse_args()


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main(parse())
