"""The pipeline on real text, shortened: it is skipped, by name, where the texts are not beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from raysft.cluster.pipeline import run_everything
from raysft.spec.sweep import load_sweep

pytestmark = pytest.mark.end_to_end

SWEEP = Path(__file__).parents[2] / "sweeps" / "real_text.yaml"
TEXTS = SWEEP.parent / "../../shared/data"


@pytest.mark.skipif(not TEXTS.is_dir(), reason="the real texts that sweeps/real_text.yaml names are not there")
def test_real_text_from_pretraining_to_gains(tmp_path: Path, local_ray: None) -> None:
    content = yaml.safe_load(SWEEP.read_text())
    content["models"] = content["models"][:1]
    content["models"][0]["micro"] |= {"steps": 60, "width": 96, "heads": 4, "layers": 2}
    content["grid"][0] |= {"methods": ["full"], "sizes": [160], "epochs": [2]}
    content["evaluation"]["limit"] = 40
    content["probes"] = {"perplexity": {"rows": 32}, "intrinsic_dimension": {"texts": 160, "neighbours": 10}}
    content["evaluation"]["include"] = [str(SWEEP.parent / "tasks" / "real_text")]
    for entry in content["datasets"]:
        entry["path"] = str((SWEEP.parent / entry["path"]).resolve())
    for model in content["models"]:
        model["micro"]["texts"] = [str((SWEEP.parent / text).resolve()) for text in model["micro"]["texts"]]
    content["storage"] = str(tmp_path / "storage")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))

    result = run_everything(load_sweep(tmp_path / "sweep.yaml"), say=lambda _: None)
    assert result.failures == ()
    scores = pq.read_table(tmp_path / "storage" / "tables" / "scores.parquet").to_pylist()
    bits = {(row["dataset"], row["task"]): row["bits_per_byte"] for row in scores}
    assert len(bits) == 4 * 3
    for dataset in ("gsm8k", "alpaca", "code_alpaca"):
        assert bits[dataset, "gsm8k_gold"] < bits[None, "gsm8k_gold"]
    # Even this little training is enough to see which dataset fits which benchmark.
    assert min(("gsm8k", "alpaca", "code_alpaca"), key=lambda name: bits[name, "gsm8k_gold"]) == "gsm8k"
