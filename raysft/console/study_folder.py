"""Where the study that `raysft recommend` learns from lies: a local folder, or a storage of which copies are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from raysft.spec.sweep import load_sweep
from raysft.store.layout import SPEC_FILE, Storage, open_storage
from raysft.study.recommend_known import RecommendError

SWEEP_TABLES = ("scores", "data_properties", "log_likelihood")
"""Tables of the sweep that a recommendation looks at."""

# of a sweep's storage, and of a study of released scores
_STUDIES = (("study", "tables"), ("tables",))
_SWEEPS = ("tables", "sweep")
WANTED = "a sweep's storage or the DIR of `raysft study --released CSV --out DIR` is wanted"


@contextmanager
def study_folder(sweep: Path | None, study: str | None) -> Iterator[Path]:
    """The folder of --study, or of the storage that the sweep names; of a remote one, a copy of what is needed of it.

    Raises:
        RecommendError: neither is given, or the remote storage holds no study.
        StorageError: it cannot be read.
    """
    if study is None and sweep is None:
        raise RecommendError("recommend: a sweep's YAML or --study DIR is wanted")
    where = study if study is not None else load_sweep(sweep).storage if sweep is not None else ""
    if "://" not in where:
        yield Path(where)
        return
    with TemporaryDirectory() as scratch:
        _copy(open_storage(where), Path(scratch))
        yield Path(scratch)


def _copy(storage: Storage, folder: Path) -> None:
    if not any(storage.exists(*place, "gains.parquet") for place in _STUDIES):
        raise RecommendError(f"{storage.uri}: no study; {WANTED}")
    tables = [(place, f"{name}.parquet") for place in _SWEEPS for name in ("trials", *SWEEP_TABLES)]
    for *place, name in [*((*study, "gains.parquet") for study in _STUDIES), *tables, (SPEC_FILE,)]:
        if storage.exists(*place, name):
            target = folder.joinpath(*place, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read_bytes(*place, name))
