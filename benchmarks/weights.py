"""Weight change: checkpoints streamed from disk beside a plain read of the same files, LoRA norms beside merging.

    python benchmarks/weights.py --folder FOLDER OUT.json

Files. Two model folders in FOLDER (deleted at the end) of random weights with the shapes of a Llama, in shards, and the
same with twice the layers; the tuned one is the base moved by 1e-3 of its size, in fp32 and in bf16. In turn, each
`--repeats` times: every file read through into a buffer of 16 MiB; norms, mean absolute change and zeros streamed
(`norms`); all measures, with singular values and sketches (`all`). Before each, the files are either read (warm) or
dropped from the page cache (cold). Peak memory is by how far a fresh process rises above what it has before it opens a
file, mapped pages and all. Before anything counts, norms must equal those of weights in memory in fp64 to 1e-6.

LoRA. Adapters of `--rank` on every linear module of those layers, in fp32: norms from r x r matrices, and all measures
of an adapter, beside W' = W + s B A; ||W' - W||. Norms must equal those of the product in fp64 to 1e-10.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import circumstances
from safetensors.torch import load_file, save_file

from raysft.probes.weights.folders import weight_change_of_folders
from raysft.probes.weights.low_rank import low_rank_norm, low_rank_update

BUFFER = 16 << 20
AIM_LORA = 100.0
VOCABULARY = 32_000


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama's stack."""

    layers: int
    hidden: int

    @property
    def inner(self) -> int:
        return 32 * round(self.hidden * 8 / 3 / 32)

    def linear(self) -> dict[str, tuple[int, int]]:
        """Matrices of a layer, (outputs, inputs)."""
        square, up = (self.hidden, self.hidden), (self.inner, self.hidden)
        attention = {f"self_attn.{kind}_proj": square for kind in "qkvo"}
        return {**attention, "mlp.gate_proj": up, "mlp.up_proj": up, "mlp.down_proj": (self.hidden, self.inner)}

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Names and sizes of the tensors of each file: the embeddings, then four layers each."""
        ends = {"model.embed_tokens.weight": (VOCABULARY, self.hidden), "lm_head.weight": (VOCABULARY, self.hidden)}
        yield {**ends, "model.norm.weight": (self.hidden,)}
        for first in range(0, self.layers, 4):
            yield {
                f"model.layers.{layer}.{name}.weight": sizes
                for layer in range(first, min(first + 4, self.layers))
                for name, sizes in {**self.linear(), "input_layernorm": (self.hidden,)}.items()
            }


def write_models(shape: Shape, dtype: torch.dtype, folder: Path) -> tuple[Path, Path]:
    """(base folder, tuned folder), each with an index."""
    shards = list(shape.shards())
    for which in ("base", "tuned"):
        (folder / which).mkdir(parents=True)
        (folder / which / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 16}))
        names = {name: file_name(place, len(shards)) for place, shard in enumerate(shards) for name in shard}
        (folder / which / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    for place, shard in enumerate(shards):
        base = {name: 0.02 * torch.randn(sizes) for name, sizes in shard.items()}
        save_file({name: one.to(dtype) for name, one in base.items()}, folder / "base" / file_name(place, len(shards)))
        for one in base.values():
            one.add_(2e-5 * torch.randn(one.shape))
        save_file({name: one.to(dtype) for name, one in base.items()}, folder / "tuned" / file_name(place, len(shards)))
    os.sync()
    return folder / "base", folder / "tuned"


def file_name(place: int, count: int) -> str:
    return f"model-{place + 1:05d}-of-{count:05d}.safetensors"


def plain_read(*folders: Path) -> int:
    """Read every file through; bytes read."""
    buffer, total = bytearray(BUFFER), 0
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def drop_from_cache(*folders: Path) -> None:
    """Have the kernel forget the files' pages, which are on disk."""
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def check_equality(base: Path, tuned: Path) -> float:
    """Largest relative difference of a tensor's norm from that in memory, in fp64."""
    rows = {row["tensor"]: row for row in weight_change_of_folders(base, tuned, norms_only=True).to_pylist()}
    worst = 0.0
    for file in sorted(base.glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(tuned / file.name)
        for name, one in ours.items():
            exact = float(torch.linalg.vector_norm(theirs[name].double() - one.double()))
            worst = max(worst, abs(rows[name.removeprefix("model.")]["change_norm"] / exact - 1))
    if worst > 1e-6:
        raise RuntimeError(f"norms differ by {worst:.1e}")
    return worst


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def streamed(base: Path, tuned: Path, repeats: int) -> dict[str, Any]:
    """Seconds of each contender from a warm and from a cold cache, in turn, and GB/s."""
    contenders: dict[str, Callable[[], object]] = {
        "plain read": lambda: plain_read(base, tuned),
        "norms": lambda: weight_change_of_folders(base, tuned, norms_only=True),
        "all": lambda: weight_change_of_folders(base, tuned),
    }
    size = plain_read(base, tuned)
    found: dict[str, Any] = {"bytes": size}
    for state, prepare in (("warm", plain_read), ("cold", drop_from_cache)):
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, work in contenders.items():
                prepare(base, tuned)
                seconds[name].append(timed(work))
        medians = {name: median(values) for name, values in seconds.items()}
        found[state] = {
            "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
            "gb_per_s": {name: round(size / value / 1e9, 3) for name, value in medians.items()},
            "share_of_plain_read": {name: round(medians["plain read"] / value, 3) for name, value in medians.items()},
        }
    return found


def peak_memory(base: Path, tuned: Path, norms_only: bool) -> int:
    """Bytes by which a process of its own rises in streaming the folders."""
    command = [sys.executable, __file__, "--peak", str(base), str(tuned), str(int(norms_only))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split()[-1])


def own_peak(base: str, tuned: str, norms_only: str) -> None:
    """What the process of `peak_memory` does."""
    matrix = torch.randn(256, 256)
    torch.linalg.qr(matrix @ matrix)  # the libraries allocate what they keep for themselves
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    weight_change_of_folders(Path(base), Path(tuned), norms_only=bool(int(norms_only)))
    # Not getrusage: its peak is that of the process that started this one, if it was larger.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 - before)


def files(chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Every dtype at two heights of the stack."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        for layers in (chosen.layers, 2 * chosen.layers):
            folder = chosen.folder / f"weights-{os.getpid()}"  # one that was killed leaves its own behind
            try:
                base, tuned = write_models(Shape(layers, chosen.hidden), dtype, folder)
                row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "layers": layers}
                row["largest_difference"] = check_equality(base, tuned)
                row["peak_bytes"] = {
                    name: peak_memory(base, tuned, only) for name, only in (("norms", True), ("all", False))
                }
                if layers > chosen.layers:
                    row |= streamed(base, tuned, chosen.repeats)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            print(json.dumps(row), flush=True)
            found.append(row)
    return found


def lora(shape: Shape, rank: int, repeats: int) -> dict[str, Any]:
    """Seconds of norms, of all measures and of merging and subtracting, over all adapters, in turn."""
    adapters = {
        f"layers.{layer}.{name}": (torch.randn(sizes), 0.1 * torch.randn(sizes[0], rank), torch.randn(rank, sizes[1]))
        for layer in range(shape.layers)
        for name, sizes in shape.linear().items()
    }
    scaling = 2.0

    def norms() -> list[float]:
        return [low_rank_norm(a, b, scaling) for _, b, a in adapters.values()]

    def measures() -> list[Any]:
        return [low_rank_update(name, a, b, scaling, 1.0) for name, (_, b, a) in adapters.items()]

    def merged() -> list[float]:
        return [
            float(torch.linalg.vector_norm(weight + scaling * (b @ a) - weight)) for weight, b, a in adapters.values()
        ]

    worst = max(
        abs(low_rank_norm(a, b, scaling) / float(torch.linalg.matrix_norm(scaling * b.double() @ a.double())) - 1)
        for _, b, a in adapters.values()
    )
    if worst > 1e-10:
        raise RuntimeError(f"norms differ by {worst:.1e}")
    contenders: dict[str, Callable[[], object]] = {"norms": norms, "all measures": measures, "merge": merged}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for work in contenders.values():
        work()  # threads and buffers are made once
    for _ in range(repeats):
        for name, work in contenders.items():
            seconds[name].append(timed(work))
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "adapters": len(adapters),
        "rank": rank,
        "hidden": shape.hidden,
        "largest_difference": worst,
        "seconds": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
        "times_faster_than_merging": {name: round(medians["merge"] / medians[name], 1) for name in medians},
        "aim": AIM_LORA,
    }


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured; needs 6 GB")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lora-hidden", type=int, default=4096)
    parser.add_argument("--lora-layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    about = circumstances("safetensors", "peft")
    torch.manual_seed(0)
    adapters = lora(Shape(chosen.lora_layers, chosen.lora_hidden), chosen.rank, chosen.repeats)
    print(json.dumps(adapters), flush=True)
    settings = {key: value for key, value in vars(chosen).items() if key not in ("out", "folder")}
    result = {
        **about,
        "threads": torch.get_num_threads(),
        "settings": settings,
        "lora": adapters,
        "files": files(chosen),
    }
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        own_peak(*sys.argv[2:])
    else:
        main()
