"""An emulator of Google Cloud Storage that answers with errors on request."""

import contextlib
import functools
import re
import socket
from http.server import HTTPServer
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound

BUCKET = "bucket"
_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^?]+)")


class BucketServer:
    """Server with one bucket, for this process and for commands that it starts.

    Attributes:
      environment: Environment variables that make clients use the server.
      status: HTTP status with which the server answers every request; None for correct answers.
      failures: Number of requests that are answered with `status`; the following ones succeed.
      requests: (method, path) of every request.
    """

    def __init__(self, port=None):
        port = port or _free_port()
        self.environment = _environment(port)
        self.reset()
        self._server = emulator.create_server("localhost", port, in_memory=True, default_bucket=BUCKET)
        self._server._api = _Thread("localhost", port, self._server._storage, self)
        self._server.start()

    @contextlib.contextmanager
    def door(self, fails_if):
        """Yields environment variables of another address of the bucket, which fails while `fails_if()` is true."""
        port = _free_port()
        thread = _Thread("localhost", port, self._server._storage, self, fails_if)
        thread.start()
        thread.is_running.wait()
        try:
            yield _environment(port)
        finally:
            thread.join(timeout=1)

    def reset(self):
        """Makes the server answer correctly and forgets earlier requests."""
        self.status, self.failures, self.requests = None, 0, []

    def fail(self, status, failures=1_000_000):
        """Answers the next requests with an HTTP status."""
        self.status, self.failures = status, failures

    def downloads(self, part):
        """Returns the paths of objects that were read and contain `part`."""
        return [path for method, path in self.requests if method == "GET" and "media" in path and part in path]

    def stop(self):
        self._server.stop()


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _environment(port):
    url = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "TENSORSTORE_GOOGLE_AUTH_MODE": "anonymous",
        # Otherwise gcsfs asks Google for the type of the bucket.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


class _Thread(emulator.APIThread):
    def __init__(self, host, port, storage, owner, fails_if=lambda: False):
        super().__init__(host, port, storage, daemon=True)
        self._owner, self._fails_if = owner, fails_if

    def run(self):
        handler = type("Handler", (_Handler,), {"owner": self._owner, "fails_if": staticmethod(self._fails_if)})
        self._httpd = _Server((self._host, self._port), functools.partial(handler, self._storage))
        self.is_running.set()
        self._httpd.serve_forever()


class _Server(HTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Prints nothing: clients close connections when they have what they need, or are killed."""


class _Handler(emulator.RequestHandler):
    owner: BucketServer

    def _answer(self):
        owner = self.owner
        owner.requests.append((self.command, self.path))
        if owner.failures > 0:
            owner.failures -= 1
            self._refuse(owner.status)
        elif self.fails_if():
            self._refuse(503)
        elif self._precondition_fails():
            self._refuse(412)
        else:
            emulator.Router(self).handle(self.command)

    def _refuse(self, status):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def end_headers(self):
        # The emulator sends no generation with a download, and checks none before an upload. TensorStore needs both.
        if self.command == "GET" and (match := _OBJECT.match(self.path)):
            self.send_header("x-goog-generation", self._generation(*map(unquote, match.groups())))
        super().end_headers()

    def _precondition_fails(self):
        query = parse_qs(urlparse(self.path).query)
        if self.command != "POST" or "ifGenerationMatch" not in query or "name" not in query:
            return False
        bucket = self.path.partition("/b/")[2].partition("/")[0]
        return query["ifGenerationMatch"][0] != self._generation(bucket, query["name"][0])

    def _generation(self, bucket, name):
        try:
            return self.storage.get_file_obj(bucket, name)["generation"]
        except NotFound:
            return "0"

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer
