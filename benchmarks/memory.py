"""Memory of real training steps beside what `raysft plan` estimates for them.

    python benchmarks/memory.py benchmarks/results/memory.json

Each case is a process of its own on the CPU: it makes a random model, trains two steps of two micro-batches with the
project's own loop, and reports how far its resident memory rose from before the model (peak, from the kernel). The
estimate is that of `raysft/spec/memory.py` without the process itself. Half of the tokens are supervised.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from machine import circumstances

from raysft.spec.memory import Step, step_memory
from raysft.spec.shape import FamilyName, ModelShape
from raysft.spec.sweep import MethodSpec

LENGTH = 128  # tokens of a row


@dataclass(frozen=True)
class Case:
    """A model's sizes, a method and the settings of a step."""

    family: FamilyName
    layers: int
    hidden: int
    vocabulary: int
    method: str = "full"
    precision: str = "float32"
    tokens: int = 2048
    checkpointing: bool = False

    @property
    def shape(self) -> ModelShape:
        heads = self.hidden // 64
        return ModelShape(
            family=self.family,
            layers=self.layers,
            hidden=self.hidden,
            intermediate=32 * round(self.hidden * 8 / 3 / 32),
            heads=heads,
            kv_heads=heads if self.family == "olmo2" else heads // 2,
            head_dim=64,
            vocabulary=self.vocabulary,
            tied=False,
        )

    @property
    def step(self) -> Step:
        return Step(self.tokens, LENGTH, self.tokens // 2, self.precision, self.checkpointing)


METHODS = {
    "full": MethodSpec(name="full", kind="full"),
    "lora": MethodSpec(name="lora", kind="lora"),
    "lora, dropout": MethodSpec(name="dropout", kind="lora", dropout=0.1),
    "middle": MethodSpec(name="middle", kind="full", depth=(0.4, 0.8)),
}

CASES = (
    Case("llama", 4, 128, 1280),
    Case("llama", 4, 128, 1280, "lora"),
    Case("llama", 8, 512, 8192),
    Case("llama", 8, 512, 8192, "lora"),
    Case("llama", 8, 512, 8192, "lora, dropout"),
    Case("llama", 8, 512, 8192, "middle"),
    Case("llama", 8, 512, 8192, precision="bfloat16"),
    Case("llama", 8, 512, 8192, "lora", "bfloat16"),
    Case("llama", 8, 512, 8192, precision="pure_bfloat16"),
    Case("llama", 8, 512, 8192, checkpointing=True),
    Case("llama", 8, 512, 8192, "lora", "bfloat16", checkpointing=True),
    Case("llama", 8, 512, 8192, "full", "bfloat16", checkpointing=True),
    Case("qwen3", 8, 512, 32000),
    Case("gemma2", 8, 512, 32000),
    Case("olmo2", 8, 512, 8192),
    Case("llama", 12, 768, 32000, tokens=1024),
    Case("llama", 12, 768, 32000, "lora", tokens=1024),
)


def measured(case: Case) -> int:
    """Bytes by which the resident memory of this process rises in making the model and training it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from raysft.corpus.tokenize import TokenisedRow
    from raysft.models.load import Base
    from raysft.models.methods import apply_method, prepare
    from raysft.spec.grid import Optimisation
    from raysft.training.loop import Hooks, Job, train
    from raysft.training.parallel import DataParallel

    torch.set_num_threads(1)
    shape, count = case.shape, 2 * case.tokens // LENGTH
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    settings = Optimisation(
        learning_rate=1e-4,
        batch_size=count,
        weight_decay=0.0,
        warmup_steps=0,
        max_length=LENGTH,
        max_grad_norm=1.0,
        schedule="constant",
        dtype=case.precision,
        template="paper",
    )
    # One row is shorter, so that there is padding and with it a mask, as in real micro-batches.
    lengths = [LENGTH] * (count - 1) + [LENGTH - 8]
    rows = [TokenisedRow.from_token([5] * length, length - LENGTH // 2) for length in lengths]
    _warm_up()
    before = _resident()
    dtype = torch.bfloat16 if case.precision == "pure_bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    names = {name: torch.empty(0) for name, _ in model.named_parameters()}  # originals are a mapped file, not counted
    tuned = apply_method(Base("case", model, None, names), METHODS[case.method], 0)
    prepare(tuned, case.checkpointing, False)
    engine = DataParallel(tuned.model, tuned.trainable(), settings)
    train(engine, Job(rows, settings, 0, 2, 0, case.tokens, torch.device("cpu"), tuned.noise), Hooks())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _warm_up() -> None:
    """Have the libraries allocate what they keep for themselves."""
    import torch

    layer = torch.nn.Linear(256, 256)
    layer(torch.randn(64, 256)).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    torch.optim.AdamW(layer.parameters(), fused=True).step()


def _resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def compared(case: Case) -> dict[str, object]:
    """The case with its estimate and its measurement, in bytes, and estimate / measured."""
    command = [sys.executable, __file__, json.dumps(asdict(case))]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr}")
    took = int(done.stdout.split()[-1])
    estimate = round(step_memory(case.shape, METHODS[case.method], case.step).peak)
    parameters = case.shape.parameter_count()
    return {
        **asdict(case),
        "parameters": parameters,
        "estimate": estimate,
        "measured": took,
        "ratio": round(estimate / took, 3),
    }


def main(out: Path) -> None:
    """Measure every case and write what it took beside the estimate."""
    rows = []
    for case in CASES:
        rows.append(compared(case))
        print(" ".join(str(value) for value in rows[-1].values()), flush=True)
    ratios = sorted(row["ratio"] for row in rows)  # type: ignore[type-var]  # all floats
    result = {**circumstances("peft"), "lowest_ratio": ratios[0], "highest_ratio": ratios[-1], "cases": rows}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1].startswith("{"):
        print(measured(Case(**json.loads(sys.argv[1]))))
    else:
        main(Path(sys.argv[1]))
