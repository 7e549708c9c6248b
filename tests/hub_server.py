"""A hub on loopback: the part of its API that `huggingface_hub` pushes with, and the faults of a real one on demand.

Repositories are files by path, in git itself or behind LFS by their names; a commit replaces the files whole.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from tests.faults import FaultyService, hang_up

Kind = Literal[
    "throttle", "internal error", "hang up", "hang up in the middle", "lose the answer", "refuse", "not found"
]
_ANSWERS: dict[str, tuple[int, str]] = {
    "throttle": (429, "slow down"),
    "internal error": (500, "out of order"),
    "refuse": (403, "you may not"),
}

LARGE = (".safetensors", ".parquet")  # behind LFS
TOKEN = "hf_a_token_of_nobody"


@dataclass
class Repository:
    """`files`: path -> content; `large` are those behind LFS; `commits` counts."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    large: set[str] = field(default_factory=set)
    commits: int = 1

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"commit {self.commits}".encode()).hexdigest()


class HubServer(FaultyService[Kind]):
    """The service: `url`, `repositories` by `models/ORG/NAME`, and LFS `objects` by digest."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: dict[str, int] = {}  # digest -> uploads of it that arrived whole
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def uploads(self) -> list[str]:
        """Requests that sent content: LFS objects and commits."""
        return [request for request in self.requests if request.startswith("PUT /lfs/") or "/commit/" in request]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(timeout=30)
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing: the log of a test shows no requests."""

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault_of(f"{self.command} {path}")
        if fault is not None and fault.kind == "hang up in the middle":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            hang_up(self)
            return
        body = self._body()
        if fault is not None and fault.kind == "hang up":
            hang_up(self)
        elif fault is not None and fault.kind == "not found":
            self._answer(404, None)
        elif fault is not None and fault.kind in _ANSWERS:
            self._answer(_ANSWERS[fault.kind][0], {"error": _ANSWERS[fault.kind][1]})
        elif self.headers.get("Authorization") not in (f"Bearer {TOKEN}", None) and "/lfs/" not in path:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        else:
            with self.hub.lock:
                status, content = self._serve(path, body)
            if fault is not None and fault.kind == "lose the answer":
                hang_up(self)
            else:
                self._answer(status, content)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815  # names that http.server asks for

    def _serve(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return self._store(found[1], body)
        if path == "/lfs-verify":
            return (200, {}) if json.loads(body)["oid"] in self.hub.objects else (404, {})
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return 200, self._batch(json.loads(body))
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._resolve(self._repository(f"{found[1] or 'models/'}{found[2]}"), found[3])
        found = re.fullmatch(
            r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(tree|preupload|commit|revision)/[^/]+)?", path
        )
        if found is None:
            return 404, {"error": f"no {path} here"}
        repository = self._repository(found[1])
        if repository is None:
            return 404, None
        if found[2] == "tree":
            return 200, [_entry(repository, name) for name in repository.files]
        if found[2] == "preupload":
            return 200, {"files": [_mode(file) for file in json.loads(body)["files"]]}
        if found[2] == "commit":
            return self._commit(found[1], repository, [json.loads(line) for line in body.splitlines()])
        name = found[1].partition("/")[2]
        return 200, {"_id": "0", "id": name, "sha": repository.sha, "private": repository.private, "tags": []}

    def _repository(self, name: str) -> Repository | None:
        found = self.hub.repositories.get(name)
        hidden = found is not None and found.private and "Authorization" not in self.headers
        return None if hidden else found

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if "Authorization" not in self.headers:
            return 401, {"error": "Invalid username or password."}
        name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return 409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return 200, {"url": f"{self.hub.url}/{name.removeprefix('models/')}"}

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = []
        for one in asked["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(answer)
        return {"transfer": "basic", "objects": objects}

    def _store(self, oid: str, body: bytes) -> tuple[int, Any]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "not the object that was announced"}
        self.hub.objects[oid] = body
        self.hub.received[oid] = self.hub.received.get(oid, 0) + 1
        return 200, {}

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header, *operations = lines
        parent = header["value"].get("parentCommit")
        if parent not in (None, repository.sha):
            return 412, {"error": "a commit has happened since"}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
                repository.large.discard(value["path"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return 400, {"error": "an LFS object is not there"}
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
                repository.large.add(value["path"])
            else:
                del repository.files[value["path"]]
        repository.commits += 1
        return 200, {
            "commitUrl": f"{self.hub.url}/{name.removeprefix('models/')}/commit/{repository.sha}",
            "commitOid": repository.sha,
        }

    def _resolve(self, repository: Repository | None, path: str) -> tuple[int, Any]:
        if repository is None or path not in repository.files:
            return 404, None
        return 200, (
            repository.files[path],
            {"X-Repo-Commit": repository.sha, "ETag": f'"{_blob(repository.files[path])}"'},
        )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, content: Any) -> None:
        headers: dict[str, str] = {"Content-Type": "application/json"}
        if isinstance(content, tuple):
            data, more = content
            headers = {"Content-Type": "application/octet-stream", **more}
        else:
            data = json.dumps(content or {}).encode()
        if status == 404 and content is None:
            headers["X-Error-Code"] = "RepoNotFound"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _mode(file: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": file["path"],
        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
        "shouldIgnore": False,
    }


def _entry(repository: Repository, name: str) -> dict[str, Any]:
    content = repository.files[name]
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}
    if name in repository.large:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 133}
        entry["oid"] = _blob(b"pointer of " + content)
    return entry


def environment(url: str, home: str) -> dict[str, str]:
    """What a process needs in its environment to push there, and to ask nobody else."""
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": home,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextmanager
def hub_service() -> Iterator[HubServer]:
    server = HubServer()
    try:
        yield server
    finally:
        server.close()
