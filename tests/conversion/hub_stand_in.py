# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
A local HTTP server in the place of the Hugging Face Hub, for an unmodified `huggingface_hub` client.

    with HubStandIn() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path / "hf_home")})
        assert hub.repositories["someone/model"].commits[-1]["files"] == ["config.json"]

Stood in for: public model repositories with one branch, `main`; large files as Git LFS objects, not Xet; tokens that
may write or only read. The rest (data sets, pull requests, ...) is answered with 501.
"""

import base64
import hashlib
import io
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".bin", ".ckpt", ".gz", ".h5", ".npy", ".npz", ".onnx", ".pkl", ".pt", ".pth", ".safetensors", ".zip")
LFS_SIZE = 10 * 2**20  # larger files are LFS objects whatever their name
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
USER = "someone"
UNRECORDED = "/api/agent-harnesses"  # a list that the client fetches for itself, once in each HF_HOME, or does without


class Refusal(Exception):
    """An answer that is an error, in the Hub's form: JSON, `X-Error-Message` and where there is one `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status = status
        self.answer = {"error": message}
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


def opened(content: bytes | Path):
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def needs_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_SIZE


class Blob:
    """One content of one file, in memory or left on disk.

    `oid` is what the client compares: the SHA-256 of an LFS file, Git's SHA-1 of any other. `listing` is how the Hub
    lists the file, with all the names that it has for one thing at its various addresses.
    """

    def __init__(self, path: str, content: bytes | Path, is_lfs: bool | None = None):
        self.content = content
        self.size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self.is_lfs = needs_lfs(path, self.size) if is_lfs is None else is_lfs
        digest = hashlib.sha256() if self.is_lfs else hashlib.sha1(b"blob %d\0" % self.size)
        with opened(content) as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        self.oid = digest.hexdigest()
        self.listing = {"type": "file", "path": path, "rfilename": path, "size": self.size}
        if self.is_lfs:
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n"
            pointer = Blob(path, text.encode(), is_lfs=False)
            lfs = {"oid": self.oid, "sha256": self.oid, "size": self.size, "pointerSize": pointer.size}
            self.listing |= {"oid": pointer.oid, "blobId": pointer.oid, "lfs": lfs}
        else:
            self.listing |= {"oid": self.oid, "blobId": self.oid}


@dataclass
class Repository:
    commits: list[dict] = field(default_factory=list)  # {"oid", "message", "files": changed paths}, oldest first
    trees: dict[str, dict[str, Blob]] = field(default_factory=dict)  # by commit
    objects: dict[str, bytes | Path] = field(default_factory=dict)  # LFS objects by SHA-256, also those of no commit

    @property
    def head(self) -> str:
        return self.commits[-1]["oid"]

    @property
    def files(self) -> dict[str, bytes | Path]:
        return {path: blob.content for path, blob in self.trees[self.head].items()}

    def commit(self, message: str, changes: dict[str, Blob | None]):
        """Adds a commit; a change to None deletes the file."""
        tree = (self.trees[self.head] if self.commits else {}) | changes
        tree = {path: blob for path, blob in sorted(tree.items()) if blob is not None}
        summary = [len(self.commits), message, [(path, blob.oid) for path, blob in tree.items()]]
        oid = hashlib.sha1(json.dumps(summary).encode()).hexdigest()
        self.objects |= {blob.oid: blob.content for blob in changes.values() if blob is not None and blob.is_lfs}
        self.trees[oid] = tree
        self.commits.append({"oid": oid, "message": message, "files": sorted(changes)})

    def tree(self, revision: str) -> tuple[str, dict[str, Blob]]:
        commit = self.head if revision == "main" else revision
        if commit not in self.trees:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, self.trees[commit]


class HubStandIn:
    """Serves while the `with` block runs.

    `fail(method, path)` is asked about every request, possibly by several threads at once, and makes those for which
    it returns True fail: with the status `failure`, or, where that is None, by breaking the connection half-way
    through the file that is sent or received. The client repeats most requests of an upload, for some 23 seconds,
    after a broken connection or a status 408, 429, 500, 502, 503 or 504, but none after any other; hence 507.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []  # (method, path), in order
        self.tokens = {"hf_write": "write", "hf_read": "read"}
        self.fail: Callable[[str, str], bool] | None = None
        self.failure: int | None = 507
        self.lock = threading.Lock()  # one commit at a time

    def __enter__(self):
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = "hf_write") -> dict[str, str]:
        """The variables with which a client process uses this server, and nothing of the user's own login or cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            **dict.fromkeys(["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"], "0"),
            **dict.fromkeys(["HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"], "1"),
            **dict.fromkeys(["NO_PROXY", "no_proxy"], "127.0.0.1"),
        }

    def add_repository(self, repo_id: str, files: dict[str, bytes | Path]) -> Repository:
        """A repository with one commit. A Path is read from disk at each download and must not change."""
        repository = Repository()
        repository.commit("initial commit", {path: Blob(path, content) for path, content in files.items()})
        self.repositories[repo_id] = repository
        return repository


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client may go at any time
            super().handle_error(request, client_address)


ROUTES: list[tuple[str, re.Pattern, str | None, Callable]] = []


def route(methods: str, path: str, needs: str | None = None):
    """REPO in `path` stands for an existing repository; `needs` is the permission that the token must have."""
    pattern = re.compile(path.replace("REPO", r"(?P<repo>[^/]+/[^/]+)"))

    def register(method: Callable):
        ROUTES.append((methods, pattern, needs, method))
        return method

    return register


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle_request(self):
        """Records the request, and fails or answers it."""
        self.hub = self.server.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = (self.command, unquote(url.path))
        if url.path != UNRECORDED:
            self.hub.requests.append(request)
        fails = url.path != UNRECORDED and self.hub.fail is not None and self.hub.fail(*request)
        self.breaks = fails and self.hub.failure is None
        length = int(self.headers.get("Content-Length", 0))
        if self.breaks and (length or self.command == "HEAD"):
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        try:
            if fails and not self.breaks:
                raise Refusal(self.hub.failure, "This failure was asked for.")
            self.dispatch(url.path)
        except Refusal as refusal:
            self.answer(refusal.answer, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def dispatch(self, path: str):
        """Finds the method that answers the request, once the token permits it and the repository exists."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.permission = self.hub.tokens.get(token)
        if token and self.permission is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, needs, method in ROUTES:  # noqa: B007
            match = pattern.fullmatch(path)
            if match and self.command in methods and "create_pr" not in self.query:
                break
        else:
            raise Refusal(501, f"Not stood in for: {self.command} {self.path}")
        # Without the code, a client takes a 401 for a missing repository only where the endpoint is https.
        code = "RepoNotFound" if path.startswith("/api/models/") or "/resolve/" in path else None
        unauthorized = Refusal(401, "Invalid username or password.", code)
        if needs and self.permission is None:
            raise unauthorized
        if needs == "write" and self.permission != "write":
            raise Refusal(403, "you must use a write token to upload to a repository")
        groups = {name: unquote(value) for name, value in match.groupdict(default="").items()}
        if "repo" in groups:
            self.repo_id = groups["repo"]
            groups["repo"] = self.hub.repositories.get(self.repo_id)
            if groups["repo"] is None:
                raise unauthorized if self.permission is None else Refusal(404, "Repository not found", "RepoNotFound")
        method(self, **groups)

    def answer(self, value=None, status: int = 200, headers: dict | None = None):
        content = b"" if value is None else json.dumps(value).encode()
        self.send(content, 0, len(content), status, {"Content-Type": "application/json"} | (headers or {}))

    def send(self, content: bytes | Path, start: int, stop: int, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.breaks:
            stop = (start + stop) // 2
            self.close_connection = True
        with opened(content) as file:
            file.seek(start)
            while chunk := file.read(min(2**20, stop - file.tell())):
                self.wfile.write(chunk)

    # What is asked about the user and about a repository.

    @route("GET", "/api/whoami-v2", needs="read")
    def whoami(self):
        token = {"displayName": "test", "role": self.permission}
        self.answer({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": token}})

    @route("GET", "/api/models/REPO(/revision/(?P<revision>[^/]+))?")
    def model_info(self, repo: Repository, revision: str):
        commit, tree = repo.tree(revision or "main")
        siblings = [blob.listing if "blobs" in self.query else {"rfilename": path} for path, blob in tree.items()]
        self.answer({"id": self.repo_id, "sha": commit, "siblings": siblings, "private": False, "gated": False})

    @route("GET", "/api/models/REPO/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?")
    def list_tree(self, repo: Repository, revision: str, folder: str):
        """All files below the folder; asked for a listing that is not recursive, the Hub would list folders too."""
        _, tree = repo.tree(revision)
        files = [blob.listing for path, blob in tree.items() if not folder or path.startswith(f"{folder}/")]
        if folder and not files:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.answer(files)

    @route("POST", "/api/models/REPO/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, repo: Repository, revision: str):
        _, tree = repo.tree(revision)
        paths = parse_qs(self.body.decode()).get("paths", [])
        self.answer([tree[path].listing for path in paths if path in tree])

    @route("GET HEAD", "/REPO/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def download(self, repo: Repository, revision: str, path: str):
        commit, tree = repo.tree(revision)
        if path not in tree:
            raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
        blob = tree[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.is_lfs:
            headers |= {"X-Linked-ETag": f'"{blob.oid}"', "X-Linked-Size": str(blob.size)}
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))  # what resumes a download
        if span is None:
            return self.send(blob.content, 0, blob.size, 200, headers)
        headers["Content-Range"] = f"bytes {span[1]}-{blob.size - 1}/{blob.size}"
        self.send(blob.content, int(span[1]), blob.size, 206, headers)

    # Uploads: card -> preupload -> LFS batch -> the LFS objects -> commit.

    @route("POST", "/api/repos/create", needs="read")
    def create_repository(self):
        request = json.loads(self.body)
        namespace = request.get("organization") or USER
        if self.permission != "write":
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if request.get("type", "model") != "model":
            raise Refusal(501, f"Not stood in for: a repository of type {request['type']}")
        repo_id = f"{namespace}/{request['name']}"
        created = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                return self.answer(created | {"error": "You already created this model repo"}, 409)
            self.hub.add_repository(repo_id, {".gitattributes": GIT_ATTRIBUTES})
        self.answer(created)

    @route("POST", "/api/validate-yaml")
    def validate_card(self):
        """Asks for a license, and nothing else; the Hub checks the values too, and only warns of empty metadata."""
        card = json.loads(self.body)["content"]
        metadata = re.match(r"\s*---\n(.*?\n)---\s*(\n|$)", card, re.DOTALL)
        if metadata and re.search(r"^license:[ \t]*\S", metadata[1], re.MULTILINE):
            return self.answer({"errors": [], "warnings": []})
        error = {"message": '"license" is required'}
        self.answer({"error": error["message"], "errors": [error], "warnings": []}, 400)

    @route("POST", "/api/models/REPO/preupload/main", needs="write")
    def preupload(self, repo: Repository):
        _, tree = repo.tree("main")
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if needs_lfs(file["path"], file["size"]) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            if file["path"] in tree:
                files[-1]["oid"] = tree[file["path"]].oid
        self.answer({"files": files})

    @route("POST", r"/REPO\.git/info/lfs/objects/batch", needs="write")
    def lfs_batch(self, repo: Repository):
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in repo.objects:
                upload = {"href": f"{self.hub.url}/lfs-storage/{self.repo_id}/{item['oid']}"}
                verify = {"href": f"{self.hub.url}/{self.repo_id}.git/info/lfs/objects/verify"}
                item["actions"] = {"upload": upload, "verify": verify}
        self.answer({"transfer": "basic", "objects": objects})

    @route("PUT", "/lfs-storage/REPO/(?P<oid>[0-9a-f]{64})")
    def upload_lfs_object(self, repo: Repository, oid: str):
        """Elsewhere than on the Hub in truth, at an address that is itself the permission; so without a token."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have this SHA-256.")
        repo.objects[oid] = self.body
        self.answer()

    @route("POST", r"/REPO\.git/info/lfs/objects/verify", needs="write")
    def verify_lfs_object(self, repo: Repository):
        if json.loads(self.body)["oid"] not in repo.objects:
            raise Refusal(404, "Object does not exist")
        self.answer({})

    @route("POST", "/api/models/REPO/commit/main", needs="write")
    def commit(self, repo: Repository):
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.lock:
            _, tree = repo.tree("main")
            if header.get("parentCommit", repo.head) != repo.head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            changes = {}
            for line in lines:
                kind, value = line["key"], line["value"]
                path = value.get("path", "")
                if kind == "file":
                    changes[path] = Blob(path, base64.b64decode(value["content"]), is_lfs=False)
                elif kind == "lfsFile":
                    if value["oid"] not in repo.objects:
                        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
                    changes[path] = Blob(path, repo.objects[value["oid"]], is_lfs=True)
                elif kind == "deletedFile":
                    if path not in tree:
                        raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                    changes[path] = None
                elif kind == "deletedFolder":
                    changes |= {name: None for name in tree if name.startswith(path.rstrip("/") + "/")}
            repo.commit(header["summary"], changes)
            commit_url = f"{self.hub.url}/{self.repo_id}/commit/{repo.head}"
            self.answer({"success": True, "commitOid": repo.head, "commitUrl": commit_url})
