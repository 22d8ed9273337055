"""A small Hub on 127.0.0.1: what `huggingface_hub` asks when it pushes models and datasets and loads them back.

Everything is in memory: a repository is branches, each a list of commits, each a dict of path to bytes. Large files go
through the LFS endpoints, as on the real Hub. A request it does not know is answered 404 and remembered, so that a
test can see that none was made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".jpg", ".parquet", ".npy")
# Of https://huggingface.co/docs/hub/repositories-licenses those that anybody here would name.
LICENSE = (
    r"apache-2\.0|mit|isc|bsd(-[23]-clause)?|cc|cc0-1\.0|cc-by(-nc)?(-nd|-sa)?-[234]\.0|[al]?gpl(-3\.0)?|mpl-2\.0|"
    r"openrail(\+\+)?|odbl|odc-by|pddl|unlicense|unknown|other"
)


@dataclass
class Commit:
    message: str
    files: dict[str, bytes]
    sha: str = field(default_factory=lambda: secrets.token_hex(20))


@dataclass
class Repository:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if self.branches.get(revision):
            return self.branches[revision][-1]
        return next((c for commits in self.branches.values() for c in commits if c.sha == revision), None)


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """Starts with `with HubServer({token: user}) as server:`; `server.url` is the `HF_ENDPOINT`.

    `server.requests` are "METHOD /path" of all that were answered; one that fits a pattern of `server.failures` breaks
    off half read, with no answer, until the pattern is taken out.
    """

    def __init__(self, tokens: dict[str, str]):
        self.tokens = tokens
        self.repos: dict[tuple[str, str], Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.unknown_requests: list[str] = []
        self.failures: list[str] = []
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, kind: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision; `kind` is "models" or "datasets"."""
        commit = self.repos[kind, repo_id].find(revision)
        return dict(commit.files) if commit else {}

    def commits(self, kind: str, repo_id: str, revision: str = "main") -> list[str]:
        """The messages of a branch, oldest first."""
        return [commit.message for commit in self.repos[kind, repo_id].branches[revision]]


def card_errors(content: str) -> list[str]:
    """What is wrong with the metadata of a card: as far as this Hub knows what the real one checks."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", content, re.S)
    try:
        data = yaml.safe_load(block[1]) if block else {}  # without metadata the real one warns
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {' '.join(str(error).split())}"]
    errors = []
    if not re.fullmatch(LICENSE, str(data.get("license", "unknown"))):
        errors.append('"license" must be one of [apache-2.0, mit, ...]')
    languages = data.get("language") or []
    for code in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", str(code)):
            errors.append(f'"language" with value "{code}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code')
    for key in ("datasets", "tags", "metrics"):
        if not all(isinstance(value, str) for value in data.get(key) or []):
            errors.append(f'"{key}" must be an array of strings')
    for model in data.get("model-index") or []:
        named = [model.get("name")]
        for result in model.get("results") or []:
            metrics = result.get("metrics") or [{}]
            named += [result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name")]
            named += [metric.get("type") if "value" in metric else None for metric in metrics]
        if not all(isinstance(name, str) for name in named):
            errors.append('"model-index" lacks a name, type or value')
    return errors


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    # ---- reading a request, writing an answer ----

    def log_message(self, format: str, *values: object) -> None:
        pass

    def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _handle(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        request = f"{self.command} {url.path}"
        if any(re.search(pattern, request) for pattern in self.hub.failures):
            self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            return
        self.data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(request)
        try:
            with self.hub.lock:
                for method, pattern, route in ROUTES:
                    match = re.fullmatch(pattern, url.path)
                    if match and self.command in method.split("|"):
                        parts = {
                            name: unquote(value) for name, value in match.groupdict().items() if value is not None
                        }
                        return route(self, **parts)
            self.hub.unknown_requests.append(f"{self.command} {url.path}")
            raise Refusal(404, "NotFound", "There is no such endpoint.")
        except Refusal as refusal:
            message = {"error": str(refusal)}
            self._answer(refusal.status, message, {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    # ---- who asks, and for what ----

    @property
    def user(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repo(self, repo_id: str, kind: str = "models", write: bool = False) -> Repository:
        repo = self.hub.repos.get((kind, repo_id))
        is_owner = self.user == repo_id.split("/")[0]
        if repo is None or (repo.private and not is_owner):
            # As on the real Hub, who may not see a repository does not learn that it exists.
            raise Refusal(404 if self.user else 401, "RepoNotFound", "Repository not found.")
        if write and not is_owner:
            raise Refusal(403, "", f"You may not write to {repo_id}.")
        return repo

    def _at(self, repo_id: str, revision: str, kind: str = "models") -> Commit:
        commit = self._repo(repo_id, kind).find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- repositories ----

    def create_repo(self) -> None:
        asked = json.loads(self.data)
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        if repo_id.split("/")[0] != self.user:
            raise Refusal(403, "", f"You may not create {repo_id}.")
        kind = f"{asked.get('type') or 'model'}s"
        address = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            return self._answer(409, {"error": "You already created this repo.", "url": address})
        first = Commit("initial commit", {})
        is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repos[kind, repo_id] = Repository(is_private, {"main": [first]})
        return self._answer(200, {"url": address, "name": repo_id, "id": repo_id})

    def harnesses(self) -> None:
        self._answer(200, {"standardEnvVars": [], "harnesses": {}})

    def validate_yaml(self) -> None:
        errors = card_errors(json.loads(self.data)["content"])
        answer: Any = {"errors": [{"message": error} for error in errors], "warnings": []}  # for a commit
        if "text/plain" in self.headers.get("Accept", ""):  # for a card
            answer = "\n".join(f"- Error: {error}" for error in errors).encode()
        self._answer(400 if errors else 200, answer)

    def info(self, kind: str, repo_id: str, revision: str = "main") -> None:
        repo, commit = self._repo(repo_id, kind), self._at(repo_id, revision, kind)
        siblings = [{"rfilename": path, "size": len(data)} for path, data in commit.files.items()]
        about = {"id": repo_id, "sha": commit.sha, "private": repo.private, "siblings": siblings, "tags": []}
        self._answer(200, {**about, "modelId": repo_id, "downloads": 0, "likes": 0, "disabled": False, "gated": False})

    def create_branch(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, kind, write=True)
        if revision in repo.branches:
            raise Refusal(409, "", "Reference already exists.")
        repo.branches[revision] = [self._at(repo_id, "main", kind)]
        self._answer(200, {})

    # ---- files ----

    def tree(self, kind: str, repo_id: str, revision: str, folder: str = "") -> None:
        commit = self._at(repo_id, revision, kind)
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        below = [path.removeprefix(prefix) for path in commit.files if path.startswith(prefix)]
        if prefix and not below:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist.")
        is_deep = self.query.get("recursive", "").lower() == "true"
        folders = {"/".join(parts[:n]) for parts in (path.split("/") for path in below) for n in range(1, len(parts))}
        entries = [
            {"type": "directory", "path": prefix + path, "size": 0, "oid": "0" * 40}
            for path in sorted(folders)
            if is_deep or "/" not in path
        ]
        entries += [_entry(prefix + path, commit.files[prefix + path]) for path in below if is_deep or "/" not in path]
        self._answer(200, entries)

    def resolve(self, repo_id: str, revision: str, path: str, kind: str = "models") -> None:
        commit = self._at(repo_id, revision, kind)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if path not in commit.files:
            message = {"error": "Entry not found"}
            return self._answer(404, message, {**headers, "X-Error-Code": "EntryNotFound"})
        data, entry = commit.files[path], _entry(path, commit.files[path])
        headers["ETag"] = f'"{entry.get("lfs", entry)["oid"]}"'
        if "lfs" in entry:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.command == "GET":
            first, last = int(part[1]), min(int(part[2] or len(data) - 1), len(data) - 1)
            return self._answer(
                206, data[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            )
        return self._answer(200, data, {**headers, "Content-Length": str(len(data))})

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        self._repo(repo_id, kind, write="create_pr" not in self.query)
        there = self._at(repo_id, revision, kind).files
        files = []
        for path in (asked["path"] for asked in json.loads(self.data)["files"]):
            entry = _entry(path, there[path]) if path in there else {}
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = entry.get("lfs", entry).get("oid")
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": files})

    def lfs_batch(self, repo_id: str, kind: str = "models") -> None:
        self._repo(repo_id, kind)
        objects = []
        for asked in json.loads(self.data)["objects"]:
            address = {"href": f"{self.hub.url}/lfs/{asked['oid']}"}
            actions = {} if asked["oid"] in self.hub.lfs else {"actions": {"upload": address, "verify": address}}
            objects.append({**asked, "authenticated": True, **actions})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def lfs_object(self, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.data).hexdigest() != oid:
                raise Refusal(400, "", "The content does not fit its hash.")
            self.hub.lfs[oid] = self.data
        self._answer(200, {}, {"ETag": f'"{oid}"'})

    def commit(self, kind: str, repo_id: str, revision: str) -> None:
        is_pull = self.query.get("create_pr") == "1"
        repo = self._repo(repo_id, kind, write=not is_pull)
        parent = self._at(repo_id, revision, kind)
        header, *items = map(json.loads, self.data.splitlines())
        files = dict(parent.files)
        for key, value in ((item["key"], item["value"]) for item in items):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
            else:
                raise Refusal(400, "", f"Unknown operation {key}.")
        if errors := card_errors(files.get("README.md", b"").decode()):
            raise Refusal(400, "", f"Invalid metadata in README.md: {errors[0]}")
        made = Commit(header["value"]["summary"], files)
        pull: dict[str, Any] = {}
        if is_pull:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            repo.branches[f"refs/pr/{number}"] = [parent, made]
            pull = {"pullRequestUrl": f"{self.hub.url}/{repo_id}/discussions/{number}"}
        else:
            repo.branches[revision].append(made)
        address = f"{self.hub.url}/{repo_id}/commit/{made.sha}"
        self._answer(200, {"success": True, "commitOid": made.sha, "commitUrl": address, "hookOutput": "", **pull})


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_REVISION = r"/(?P<revision>refs%2Fpr%2F\d+|[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("GET", r"/api/agent-harnesses", _Handler.harnesses),
    ("GET", _API, _Handler.info),
    ("GET", rf"{_API}/revision{_REVISION}", _Handler.info),
    ("GET", rf"{_API}/tree{_REVISION}(?P<folder>/.*)?", _Handler.tree),
    ("POST", rf"{_API}/branch{_REVISION}", _Handler.create_branch),
    ("POST", rf"{_API}/preupload{_REVISION}", _Handler.preupload),
    ("POST", rf"{_API}/commit{_REVISION}", _Handler.commit),
    ("POST", rf"/(?:(?P<kind>datasets)/)?{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT|POST", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.lfs_object),
    ("GET|HEAD", rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
