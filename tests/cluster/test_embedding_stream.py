"""Hidden states as Ray Data streams them into parts, beside those of a plain pass; kills, failures, dropped texts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from raysft.cluster import embed as embedding
from raysft.cluster import estimate, geometry
from raysft.cluster.embed import Subject, embed
from raysft.cluster.embedder import Embedder, layer_column
from raysft.cluster.estimate import _tables
from raysft.cluster.geometry import run_geometry
from raysft.cluster.subjects import subjects_of
from raysft.models.load import pad_id
from raysft.models.methods import apply_method
from raysft.probes.pooling import pooled_layers
from raysft.session import Session
from raysft.spec.plan import Plan, make_plan
from raysft.spec.sweep import parse_sweep
from raysft.store.checkpoints import gathering_place, read_manifest, write_folder
from raysft.store.layout import Storage, checkpoint_folder, embeddings_folder, open_storage
from raysft.store.parts import gathered, read_parts
from raysft.store.results import read_failures, read_result
from raysft.trial import run_unit
from tests.conftest import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

_TEXTS = 24


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A sweep whose base is there, and of one trial a checkpoint: the base with its norms doubled."""
    content = copy.deepcopy(SMALL) | {"storage": str(tmp_path_factory.mktemp("stream") / "storage")}
    content["methods"], content["datasets"] = content["methods"][:1], content["datasets"][1:]
    content["probes"]["intrinsic_dimension"] = {"texts": _TEXTS, "neighbours": 4, "batch_size": 5}
    sweep = parse_sweep(content, "test")
    storage = open_storage(sweep.storage)
    plan, session = make_plan(sweep, storage), Session(sweep, torch.device("cpu"))
    for unit in plan.missing_units():
        if unit.kind == "pretrain":
            run_unit(session, unit, unit.works)
    trial, base = plan.trials[0], session.base("tiny")
    tuned = apply_method(base, sweep.method("full"), 0)
    with torch.no_grad():
        for name, parameter in tuned.model.named_parameters():
            parameter.mul_(2.0 if "norm" in name else 1.0)
    write_folder(storage, checkpoint_folder(trial.key, trial.epochs), tuned.save, {})
    tuned.detach()
    return make_plan(sweep, storage)


def _planned(plan: Plan, storage: Storage) -> tuple[list[Subject], tuple[int, int]]:
    ((shape, subjects),) = subjects_of(plan, storage, plan.missing_geometry(), [])
    return subjects, shape


def _states(storage: Storage, subject: Subject, shape: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """(texts, layers + 1, width) as they lie in the storage, and which texts they are of."""
    names = [layer_column(layer) for layer in range(shape[0])]
    table = read_parts(storage, embeddings_folder(subject.job.key), ["text", *names])
    layers = [table[name].combine_chunks().to_numpy_ndarray() for name in names]
    return np.stack(layers, axis=1), table["text"].to_pylist()


def _in_a_storage_of_its_own(plan: Plan, folder: Path) -> tuple[Plan, Storage]:
    """The same sweep on a storage that shares its models and checkpoints, and nothing else."""
    root = Path(plan.sweep.storage)
    folder.mkdir()
    for name in ("models", "checkpoints"):
        (folder / name).symlink_to(root / name)
    (folder / "results").mkdir()
    (folder / "results" / "pretrain").symlink_to(root / "results" / "pretrain")
    sweep = plan.sweep.model_copy(update={"storage": str(folder)})
    storage = open_storage(str(folder))
    return make_plan(sweep, storage), storage


def test_the_stream_has_the_states_of_a_plain_pass(pretrained: Plan, tmp_path: Path) -> None:
    """For the base and the checkpoint, each text once, in every layer; and the results say what is there."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    subjects, shape = _planned(plan, storage)
    assert [subject.work.subject.trial is None for subject in subjects] == [True, False]
    assert embed(plan.sweep, storage, subjects, shape) == []
    session = Session(plan.sweep, torch.device("cpu"))
    base = session.base("tiny")
    rows = session.rows(plan.trials[0], base)
    for subject in subjects:
        tuned = None
        if subject.job.trial is not None:
            tuned = apply_method(base, plan.sweep.method("full"), 0)
            tuned.load(Path(storage.path(checkpoint_folder(subject.job.trial.key, subject.job.epoch))))
        states, texts = _states(storage, subject, shape)
        assert sorted(texts) == sorted(subject.texts)
        expected = pooled_layers(base.restore() if tuned is None else tuned.model, rows, pad_id(base.tokenizer), 1)
        np.testing.assert_allclose(states, expected[texts], rtol=1e-4, atol=1e-5)
        if tuned is not None:
            tuned.detach()
        (row,) = read_result(storage, "embed", subject.job.key).to_pylist()
        assert row == {
            "folder": embeddings_folder(subject.job.key),
            "texts": len(subject.texts),
            "layers": shape[0],
            "width": shape[1],
            "pooling": "mean",
            "dropped": 0,
        }
    assert storage.all_names("embeddings")
    assert not [name for name in storage.all_names("embeddings") if name.startswith(".")]


def test_after_a_kill_only_what_is_missing_is_embedded(
    pretrained: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of a stream that ended in its middle stay as they are; a damaged one is made again."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 8 << 10)  # several parts
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    assert embed(plan.sweep, storage, [subject], shape) == []
    folder = embeddings_folder(subject.job.key)
    before, texts = _states(storage, subject, shape)
    parts = list(read_manifest(storage, folder)["files"])
    assert len(parts) > 2
    Path(storage.path("results", "embed", f"{subject.job.key}.parquet")).unlink()
    Path(storage.path(folder)).rename(storage.path(gathering_place(storage, folder)))
    Path(storage.path(gathering_place(storage, folder), "manifest.json")).unlink()
    lost, damaged = (Path(storage.path(gathering_place(storage, folder), name)) for name in parts[:2])
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"x" * 9)
    stamps = {path.name: path.stat().st_mtime_ns for path in damaged.parent.iterdir() if path != damaged}

    assert embed(plan.sweep, storage, [subject.anew()], shape) == []
    now = {path.name: path.stat().st_mtime_ns for path in Path(storage.path(folder)).glob("*.parquet")}
    assert {name: now[name] for name in stamps} == stamps
    after, texts_after = _states(storage, subject, shape)
    assert sorted(texts_after) == sorted(texts)
    np.testing.assert_allclose(after[np.argsort(texts_after)], before[np.argsort(texts)], rtol=1e-4, atol=1e-5)


def test_a_subject_that_fails_is_recorded_and_the_others_go_on(pretrained: Plan, tmp_path: Path) -> None:
    """Weights of another shape: one record, with the class, the line and the traceback of the actor."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    subjects, shape = _planned(plan, storage)
    broken = next(subject for subject in subjects if subject.job.trial is not None)
    assert broken.job.trial is not None
    method = plan.sweep.methods[0].model_copy(update={"kind": "lora", "rank": 2, "alpha": 4})
    sweep = plan.sweep.model_copy(update={"methods": (method,)})
    (failure,) = embed(sweep, storage, subjects, shape)
    assert failure["key"] == broken.job.key
    assert "adapter_model.safetensors" in failure["message"]
    (record,) = read_failures(storage, "embed", broken.job.key)
    assert "_embedded" in storage.read_bytes(record["log"]).decode()
    assert {name.removesuffix(".parquet") for name in storage.names("results", "embed")} == {
        subject.job.key for subject in subjects if subject is not broken
    }
    assert not storage.exists(gathering_place(storage, embeddings_folder(broken.job.key)))


def test_texts_that_a_trial_drops_are_counted(pretrained: Plan, tmp_path: Path) -> None:
    """A maximum length that leaves some rows no supervised token."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    session = Session(plan.sweep, torch.device("cpu"))
    rows = session.rows(plan.trials[0], session.base("tiny"))
    limit = max(rows[text].spans[0][0] for text in subject.texts)
    trial = plan.trials[0]
    settings = replace(trial.optimisation, max_length=limit, overlong_rows="drop")
    identity = {**trial.identity, "optimisation": {**trial.identity["optimisation"], "max_length": limit}}
    short = replace(trial, optimisation=settings, identity=identity)
    subject = replace(subject, job=replace(subject.job, texts_of=short))
    assert embed(plan.sweep, storage, [subject], shape) == []
    (row,) = read_result(storage, "embed", subject.job.key).to_pylist()
    assert 0 < row["dropped"] == sum(rows[text].spans[0][0] >= limit for text in subject.texts)
    assert row["texts"] + row["dropped"] == len(subject.texts)


def test_estimates_are_the_same_from_shards_of_the_table(
    pretrained: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many texts are shared out among tasks; what is estimated is equal to the last bit."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    assert embed(plan.sweep, storage, [subject], shape) == []
    works = [work for work in plan.missing_geometry() if work.source == subject.job.key]
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    whole = _tables(storage, works, probe)
    monkeypatch.setattr(estimate, "_SHARD", 7)
    shared_out = _tables(storage, works, probe)
    assert {work.stage for work in works} == whole.keys() == shared_out.keys()
    assert all(shared_out[stage].equals(table) for stage, table in whole.items())


def test_what_the_storage_refuses_at_the_end_is_recorded(
    pretrained: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that fails is a failure of its subject; its embeddings stay, and the next run only commits."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    with monkeypatch.context() as refusing:
        refusing.setattr(embedding, "commit_result", Mock(side_effect=OSError("the storage is busy")))
        (failure,) = embed(plan.sweep, storage, [subject.anew()], shape)
    assert failure["message"] == "the storage is busy"
    folder = Path(storage.path(embeddings_folder(subject.job.key)))
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert embed(plan.sweep, storage, [subject.anew()], shape) == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    (row,) = read_result(storage, "embed", subject.job.key).to_pylist()
    assert row["texts"] == len(subject.texts)


def test_a_task_asks_for_memory_where_its_states_are_many(
    pretrained: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    assert embed(plan.sweep, storage, [subject], shape) == []
    assert geometry._memory(storage, subject.job.key) == geometry._memory(storage, "nothing") == {}
    monkeypatch.setattr(geometry, "_MUCH", 1 << 10)
    assert geometry._memory(storage, subject.job.key) == {"memory": 3 * 4 * _TEXTS * shape[1]}
    monkeypatch.setattr(geometry, "_COPIES", 1 << 50)
    largest = max(node["Resources"]["memory"] for node in ray.nodes())
    assert geometry._memory(storage, subject.job.key) == {"memory": int(largest)}


def test_geometry_from_end_to_end_and_what_is_left_of_it(pretrained: Plan, tmp_path: Path) -> None:
    """Pooled at the last token: all layers but the embeddings, the checkpoint beside its base, and no leftovers; then
    a base whose neighbours are gone fails what is compared with it, in one line."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    probe = plan.sweep.probes.intrinsic_dimension
    assert probe is not None
    probes = plan.sweep.probes.model_copy(
        update={"intrinsic_dimension": probe.model_copy(update={"pooling": "last_token"})}
    )
    sweep = plan.sweep.model_copy(update={"probes": probes})
    plan = _trained(make_plan(sweep, storage), storage)
    assert run_geometry(plan, storage) == []
    plan = _trained(make_plan(sweep, storage), storage)
    assert plan.missing_geometry() == []
    estimates = {work.subject.trial: work for work in plan.geometry if work.stage == "intrinsic_dimension"}
    tables = {trial: read_result(storage, work.stage, work.key) for trial, work in estimates.items()}
    assert all(min(table["layer"].to_pylist()) == 1 for table in tables.values())
    assert len({text for table in tables.values() for text in table["same_texts"].to_pylist()}) == 1
    assert storage.all_names("embeddings") == []

    (trial,) = (trial for trial in estimates if trial is not None)
    Path(storage.path("results", "intrinsic_dimension", f"{estimates[trial].key}.parquet")).unlink()
    Path(storage.path("results", "neighbours", f"{estimates[trial].before}.parquet")).unlink()
    works = [work for work in plan.geometry if work.subject.trial == trial]
    geometry = tuple(work for work in works if work.stage != "neighbours")
    (failure,) = run_geometry(_trained(replace(make_plan(sweep, storage), geometry=geometry), storage), storage)
    assert "neighbours of the texts are not there" in failure["message"]


def _trained(plan: Plan, storage: Storage) -> Plan:
    """The plan as if the training that wrote the checkpoint had committed."""
    trains = {(work.stage, work.key) for unit in plan.units for work in unit.works if work.stage == "train"}
    return replace(plan, committed=plan.committed | trains)


def test_an_actor_takes_the_seam_of_two_subjects(pretrained: Plan, tmp_path: Path) -> None:
    """A batch with texts of both has each under its own weights, and one part of each."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    subjects, shape = _planned(plan, storage)
    actor = Embedder(plan.sweep, [subject.job for subject in subjects], shape)
    keys = [subject.job.key for subject in subjects]
    out = actor(pa.table({"key": [keys[0], keys[1], keys[0]], "text": pa.array([0, 0, 1], pa.int32())}))
    assert out["key"].to_pylist() == [keys[0], keys[0], keys[1]]
    assert out["text"].to_pylist() == [0, 1, 0]
    first = out[layer_column(shape[0] - 1)].combine_chunks().to_numpy_ndarray()
    assert not np.allclose(first[0], first[2])
    assert gathered(storage, embeddings_folder(keys[0]), ["text"]) == {}


def test_a_checkpoint_whose_states_are_not_finite_is_recorded_and_its_base_is_measured(
    pretrained: Plan, tmp_path: Path
) -> None:
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (tmp_path / "storage" / "checkpoints").unlink()
    session, trial = Session(plan.sweep, torch.device("cpu")), plan.trials[0]
    tuned = apply_method(session.base("tiny"), plan.sweep.method("full"), 0)
    with torch.no_grad():
        next(parameter for name, parameter in tuned.model.named_parameters() if "norm" in name)[0] = torch.nan
    write_folder(storage, checkpoint_folder(trial.key, trial.epochs), tuned.save, {})
    plan = _trained(make_plan(plan.sweep, storage), storage)
    failures = run_geometry(plan, storage)
    assert {failure["stage"] for failure in failures} == {"intrinsic_dimension"}
    assert failures[0]["message"].startswith("layer 1: hidden states of 24 of 24 texts are not all finite")
    (record,) = read_failures(storage, "intrinsic_dimension", failures[0]["key"])
    assert record["subject"]["trial"] == trial.key
    missing = _trained(make_plan(plan.sweep, storage), storage).missing_geometry()
    assert {work.subject.trial for work in missing} == {trial.key}


def test_a_size_with_fewer_texts_than_neighbours_is_recorded_and_the_others_go_on(
    pretrained: Plan, tmp_path: Path
) -> None:
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    block = plan.sweep.grid[0].model_copy(update={"sizes": (5, 32)})
    plan = make_plan(plan.sweep.model_copy(update={"grid": (block,)}), storage)
    bases = [work for work in plan.missing_geometry() if work.subject.trial is None]
    failures: list[dict[str, Any]] = []
    ((_, subjects),) = subjects_of(plan, storage, bases, failures)
    assert {subject.work.subject.size for subject in subjects} == {32}
    (failure,) = failures
    assert failure["message"] == (
        "datasets.addition at size 5: 5 distinct texts, 6 are needed for 4 neighbours (probes.intrinsic_dimension)"
    )
    assert read_failures(storage, "embed", failure["key"]) == [failure]


def test_a_text_longer_than_the_context_is_named(pretrained: Plan, tmp_path: Path) -> None:
    """Positions that are learned end in an error of the device, after which a GPU's process can do nothing more."""
    plan, storage = _in_a_storage_of_its_own(pretrained, tmp_path / "storage")
    (subject, _), shape = _planned(plan, storage)
    actor = Embedder(plan.sweep, [subject.job], shape)
    actor.session.base("tiny").model.config.max_position_embeddings = 3
    found = actor(pa.table({"key": [subject.job.key] * 2, "text": subject.texts[:2]}))
    (said,) = found["error"].to_pylist()
    assert said.startswith(f"ValueError: text {subject.texts[0] + 1}: ")
    assert said.endswith("tokens; the model's context holds 3, so shorten the text")
