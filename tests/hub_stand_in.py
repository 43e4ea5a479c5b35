# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
A stand-in of the Hugging Face Hub on this machine: repositories in memory, and as much of the Hub's HTTP interface as
uploading and downloading models and kernels takes.

    with HubStandIn() as hub:
        hub.files("model", "org/name")["config.json"] = b"{}"
        subprocess.run(command, env=os.environ | hub.environment(cache))
"""

import base64
import hashlib
import http.server
import json
import re
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit


class HubStandIn:
    """
    Attributes:
        repositories: Type ("model" or "kernel") and name -> branch -> path -> content.
        requests: Method and path of each request.
        broken: Paths of files whose download fails.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.requests: list[str] = []
        self.broken: set[str] = set()

    def files(self, kind: str, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch, to be read or changed."""
        return self.repositories.setdefault((kind, repo_id), {}).setdefault(branch, {})

    def environment(self, cache: Path) -> dict[str, str]:
        """Environment variables of a process that uses it in place of the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # Without the second, `kernels` 0.17.2 sends an illegal header where the first is set.
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_USER_AGENT_ORIGIN": "tests",
        }  # fmt: skip

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def commit_of(files: dict[str, bytes]) -> str:
    """The name of a state of a branch, as that of a commit."""
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        api = re.fullmatch(r"/api/(model|kernel)s/([\w.-]+/[\w.-]+)(?:/([\w-]+))?(?:/([\w.-]+))?(?:/(.+))?", path)
        download = re.fullmatch(r"/(kernels/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if path == "/api/validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            request = json.loads(body)
            repo_id = f"{request['organization']}/{request['name']}"
            self.hub.files(request.get("type") or "model", repo_id)
            prefix = "kernels/" if request.get("type") == "kernel" else ""
            self.send(200, {"url": f"{self.hub.endpoint}/{prefix}{repo_id}"})
        elif api:
            self.answer_api(*api.groups(), body)
        elif download:
            kind = "kernel" if download[1] else "model"
            self.answer_download(kind, download[2], download[3], download[4])
        else:
            self.send(404, {"error": f"no such address: {path}"})

    def answer_api(self, kind, repo_id, action, revision, rest, body):
        branches = self.hub.repositories.get((kind, repo_id))
        if branches is None:
            self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif action == "branch":
            branches.setdefault(revision, dict(branches["main"]))
            self.send(200, {})
        elif action == "refs":
            refs = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_of(files)}
                for name, files in branches.items()
            ]
            self.send(200, {"branches": refs, "converts": [], "tags": []})
        elif (files := self.state(branches, revision)) is None:
            self.send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        elif action == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.send(200, {"files": [{"path": file["path"]} | modes for file in json.loads(body)["files"]]})
        elif action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            url = f"{self.hub.endpoint}/{repo_id}/commit/{commit_of(files)}"
            self.send(200, {"commitUrl": url, "commitOid": commit_of(files), "hookOutput": ""})
        elif action == "tree":
            self.send(200, self.tree(files, f"{rest}/" if rest else "", "recursive=true" in self.path.lower()))
        elif action == "paths-info":
            wanted = re.findall(r"[\w./-]+", unquote(body.decode()).replace("paths=", " "))
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else wanted
            self.send(200, [self.entry(path, files[path]) for path in wanted if path in files])
        else:  # of the repository or a revision
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            self.send(200, {"id": repo_id, "modelId": repo_id, "sha": commit_of(files), "siblings": siblings})

    def state(self, branches, revision):
        """The files of a branch or of a commit; `None` if there is none."""
        states = {commit_of(files): files for files in branches.values()} | branches
        return states.get(revision or "main")

    def tree(self, files, folder, is_recursive):
        entries = {}
        for path, content in files.items():
            if path.startswith(folder):
                name, _, below = path[len(folder) :].partition("/")
                if below and not is_recursive:
                    entries[name] = {"type": "directory", "path": folder + name, "oid": "0" * 40, "size": 0}
                else:
                    entries[path] = self.entry(path, content)
        return list(entries.values())

    def entry(self, path, content):
        return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer_download(self, kind, repo_id, revision, path):
        files = self.state(self.hub.repositories.get((kind, repo_id), {}), revision)
        if files is None or path not in files:
            code = "EntryNotFound" if files is not None else "RepoNotFound"
            self.send(404, {"error": f"{path} not found"}, {"X-Error-Code": code})
        elif path in self.hub.broken:
            self.send(403, {"error": "not for you"})  # (the client repeats a request after other errors)
        else:
            headers = {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"', "X-Repo-Commit": commit_of(files)}
            self.send(200, files[path], headers)

    def send(self, status, content, headers=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
