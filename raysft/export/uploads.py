"""An exported folder as it is to be on the hub: names of other exports become those of their repositories."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysft.export.checkpoints import ADAPTER_CONFIG
from raysft.export.folders import CARD, RECORD, as_record, file_entry, files_of, read_record
from raysft.export.mistakes import ExportError
from raysft.export.sections import beside_note
from raysft.spec.mistakes import shown

ORGANISATION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_ADDED = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)[A-Za-z0-9._-]*", re.IGNORECASE)  # by the user, to go along


@dataclass(frozen=True)
class Upload:
    """What a repository is to hold. `files`: name -> path or bytes; `record`: what their `raysft.json` says."""

    repository: str
    repo_type: str
    files: Mapping[str, Path | bytes]
    record: Mapping[str, Any]

    def entry(self, name: str) -> Mapping[str, Any]:
        """Size and SHA-256 of a file."""
        found = self.record["files"].get(name)
        return file_entry(self.files[name]) if found is None else found

    def with_card_of(self, record: Mapping[str, Any]) -> Upload:
        """Without the card, for a repository whose card stays; its record goes on to say what was sent last."""
        entries = {**self.record["files"], CARD: record["files"].get(CARD)}
        files = {name: content for name, content in self.files.items() if name not in (CARD, RECORD)}
        return _upload(self.repository, self.repo_type, files, {**self.record, "files": entries})


def prepare(out: Path, name: str, organisation: str) -> Upload:
    """The upload of the export `name` in `out`.

    Raises:
        ExportError: no export of that name, one that was changed since, or one whose base has no repository.
    """
    folder = out / name
    record = read_record(folder)
    files: dict[str, Path | bytes] = dict(_unchanged(folder, record))
    replaced = {f'"{name}"': f'"{organisation}/{name}"'}
    card = (folder / CARD).read_text(encoding="utf-8")
    base = _base_beside(folder)
    _check_base(name, record if base is None else read_record(out / base))
    if base is not None:
        repository = f"{organisation}/{base}"
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        config["base_model_name_or_path"] = repository
        files[ADAPTER_CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        card = _with_base(card.replace(f"\n{beside_note(f'./{base}')}\n", ""), repository)
    for local, remote in replaced.items():
        card = card.replace(local, remote)
    files[CARD] = card.encode()
    kind = "dataset" if record["kind"] == "tables" else "model"
    entries = {one: file_entry(content) for one, content in files.items()}
    entries[CARD]["blob"] = git_blob(files[CARD])
    return _upload(f"{organisation}/{name}", kind, files, {**record, "files": entries})


def check_organisation(name: str) -> None:
    """ExportError for what cannot be the name of a user or organisation."""
    if not ORGANISATION.fullmatch(name):
        raise ExportError(f"--push {shown(name, 80)}: the name of a user or organisation on the hub is wanted")


def git_blob(content: Path | bytes) -> str:
    """The id that git gives a file: what the hub tells of one that it keeps in git itself."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if isinstance(content, bytes):
        digest.update(content)
        return digest.hexdigest()
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _upload(repository: str, repo_type: str, files: Mapping[str, Path | bytes], record: Mapping[str, Any]) -> Upload:
    content = as_record(record["kind"], record["identity"], record["content"], record["files"])
    return Upload(repository, repo_type, {**files, RECORD: content}, json.loads(content))


def _unchanged(folder: Path, record: Mapping[str, Any]) -> dict[str, Path]:
    """The files of an export, each what its record says; a card may have been edited, and a licence been added."""
    there = files_of(folder)
    for name, entry in record["files"].items():
        if name not in there:
            raise ExportError(f"{shown(folder / name)}: not there any more; delete the folder and export it again")
        if name != CARD and file_entry(there[name]) != {key: entry[key] for key in ("bytes", "sha256")}:
            raise ExportError(
                f"{shown(folder / name)}: changed since its export; delete the folder and export it again"
            )
    return {name: path for name, path in there.items() if name in record["files"] or _ADDED.fullmatch(name)}


def _base_beside(folder: Path) -> str | None:
    """The export that an adapter names as its base."""
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        return None
    reference = json.loads(config.read_bytes()).get("base_model_name_or_path") or ""
    return str(reference.removeprefix("./")) if reference.startswith("./") else None


def _check_base(name: str, record: Mapping[str, Any]) -> None:
    """ExportError for a base model that is a folder of the user's, or an adapter of it: it is not ours to publish."""
    identity = record["identity"]
    if record["kind"] == "base" and identity.get("source") == "folder":
        raise ExportError(
            f"{name}: the base model {identity['model']} is a folder of yours, which is not pushed; say which "
            f"repository holds it: --base {identity['model']}=ORG/NAME"
        )


def _with_base(card: str, repository: str) -> str:
    """The card with its base model in the front matter, unless somebody named one there."""
    begin, matter, rest = card.partition("---\n")
    if begin or re.search(r"^base_model:", rest.partition("\n---\n")[0], re.MULTILINE):
        return card
    return f"{begin}{matter}base_model: {repository}\nbase_model_relation: adapter\n{rest}"
