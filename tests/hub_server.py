"""A local server with those routes of the Hugging Face hub that huggingface_hub uses to download and upload models."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_of_the_tests"
_LFS_BYTES = 10_000
"""Size from which the server asks for uploads through git-lfs."""


class Hub:
    """Models by `owner/name`, and what clients asked for.

    Attributes:
      models: Files by name, by `owner/name`.
      gated: Models that need access.
      private: Models that need `TOKEN`.
      downloads: (file, first byte) of each GET of a file's content.
      stop_after: Number of bytes after which a download of a file pauses until `go_on` is set, by file.
      drop_after: Number of bytes after which the connection breaks in the first download of a file, by file.
    """

    def __init__(self):
        self.models, self.gated, self.private = {}, set(), set()
        self.downloads, self.requests = [], []
        self.stop_after, self.drop_after = {}, {}
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.messages, self.lfs = [], {}
        self.url = ""

    def add(self, name, folder):
        """Publishes all files of a folder."""
        files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
        self.models[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    def commit(self, name):
        digest = hashlib.sha1(name.encode())
        for file, content in sorted(self.models[name].items()):
            digest.update(file.encode() + content)
        return digest.hexdigest()

    def names(self):
        """Returns the names of the downloaded files, in alphabetical order, with repetitions."""
        return sorted(file for file, _ in self.downloads)


def connect(monkeypatch, url, cache):
    """Makes this process a client of a server. huggingface_hub reads the variables when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def variables(url, home):
    """Environment variables of a process that is a client of a server."""
    return {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


@contextlib.contextmanager
def serve():
    """Runs the server in a thread, and yields its `Hub`."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._file_or_api()

    def do_GET(self):
        self._file_or_api()

    def _file_or_api(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(*match.groups())
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            self._tree(*match.groups())
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups())
        elif path == "/api/whoami-v2":
            self._json({"name": "me", "type": "user", "orgs": []}) if self._has_token() else self._error(401)
        else:
            self._error(404, "EntryNotFound")

    def _info(self, name, revision):
        if self._check(name, revision):
            siblings = [{"rfilename": file} for file in self.hub.models[name]]
            self._json({"id": name, "modelId": name, "sha": self.hub.commit(name), "siblings": siblings})

    def _tree(self, name, revision):
        if self._check(name, revision):
            files = self.hub.models[name].items()
            self._json(
                [
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files
                ]
            )

    def _file(self, name, revision, file):
        if not self._check(name, revision):
            return
        if name in self.hub.gated:
            self._error(403, "GatedRepo")
            return
        content = self.hub.models[name].get(file)
        if content is None:
            self._error(404, "EntryNotFound")
            return
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.hub.commit(name))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.hub.downloads.append((file, first))
            self._send(file, content[first:])

    def _send(self, file, content):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if file in self.hub.drop_after:
                self.wfile.write(content[: self.hub.drop_after.pop(file)])
                self.close_connection = True
            elif file in self.hub.stop_after:
                count = self.hub.stop_after.pop(file)
                self.wfile.write(content[:count])
                self.wfile.flush()
                self.hub.stopped.set()
                self.hub.go_on.wait(60)
                self.wfile.write(content[count:])
            else:
                self.wfile.write(content)

    def do_POST(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, path))
        if path.endswith("/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(body))
        elif not self._has_token():
            self._error(401)
        elif path == "/api/repos/create":
            content = json.loads(body)
            name = f"{content.get('organization') or 'me'}/{content['name']}"
            self.hub.models.setdefault(name, {})
            if content.get("private"):
                self.hub.private.add(name)
            self._json({"url": f"{self.hub.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": _mode(one), "shouldIgnore": False} for one in files]
            self._json({"files": modes})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        else:
            self._error(404)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.lfs[self.path.rpartition("/")[2]] = body
        self._json({})

    def _lfs_batch(self, request):
        objects = [
            one | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}}
            for one in request["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name, body):
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif operation["key"] == "file":
                self.hub.models[name][value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                content = self.hub.lfs[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.hub.models[name][value["path"]] = content
        commit = self.hub.commit(name)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def _check(self, name, revision):
        """Reports an error and returns False if the model or revision does not exist or may not be read."""
        if name not in self.hub.models or (name in self.hub.private and not self._has_token()):
            self._error(401 if not self._has_token() else 404, "RepoNotFound")
            return False
        if revision not in (None, "main", "v1", self.hub.commit(name)):
            self._error(404, "RevisionNotFound")
            return False
        return True

    def _has_token(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _error(self, status, code=None):
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _mode(file):
    return "lfs" if file["size"] >= _LFS_BYTES else "regular"
