"""The HTTP reward and its server, over real sockets: slow, failing, dead and wrong services."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests
import uvicorn

from janus_jax.errors import ExitCode, JanusError, RewardUnavailable
from janus_jax.rewards import http, make_reward
from janus_jax.rewards.base import checked
from janus_jax.rewards.server import make_app

NUM = 7
PROMPTS = [f"prompt {n}" for n in range(NUM)]
IMAGES = np.random.default_rng(0).integers(0, 256, (NUM, 8, 6, 3), np.uint8)
METADATA = [{"n": n, "objects": ["circle"]} for n in range(NUM)]


def checksum(prompts, images, metadata):
    """A reward that depends on every pixel and on the metadata."""
    assert images.dtype == np.uint8
    return images.astype(np.float64).sum(axis=(1, 2, 3)) / 1000 + [1000 * one["n"] for one in metadata]


EXPECTED = checksum(PROMPTS, IMAGES, METADATA).astype(np.float32)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_DELAY", 0.02)


@contextlib.contextmanager
def serve(reward):
    """Runs the server of a reward; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(make_app(reward, "test"), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Service:
    """A service that answers as told: a list of (status, answer, seconds), the last of which is repeated.

    The answer "right" is the right one.
    """

    def __init__(self, *answers):
        self.answers, self.sizes, self.lock = list(answers), [], threading.Lock()

    def __enter__(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    service.sizes.append(len(body["items"]))
                    status, answer, seconds = service.answers[0]
                    if len(service.answers) > 1:
                        del service.answers[0]
                time.sleep(seconds)
                if answer == "right":
                    answer = {"rewards": [float(EXPECTED[item["metadata"]["n"]]) for item in body["items"]]}
                content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


RIGHT = (200, "right", 0)


def dead_url():
    """Returns the URL of a port that nobody listens on."""
    with Service(RIGHT) as service:
        return service.url


def score(*urls, **options):
    options = {"urls": urls, "batch_size": 2, "wait_seconds": 60, **options}
    return make_reward("http", options)(PROMPTS, IMAGES, METADATA)


def test_the_server_computes_the_same_values_as_the_reward():
    with serve(checked(checksum, "checksum")) as url:
        np.testing.assert_array_equal(score(url), EXPECTED)
        assert requests.get(f"{url}/health", timeout=10).json() == {"status": "ok", "reward": "test"}


def test_requests_have_at_most_the_batch_size():
    with Service(RIGHT) as service:
        np.testing.assert_array_equal(score(service.url, batch_size=3), EXPECTED)
        assert sorted(service.sizes) == [1, 3, 3]


def test_no_images_need_no_service():
    assert make_reward("http", {"urls": ("http://127.0.0.1:9",)})([], IMAGES[:0], []).shape == (0,)


def test_the_batches_are_distributed_over_the_replicas():
    slow = (200, "right", 0.1)
    with Service(slow) as one, Service(slow) as two:
        np.testing.assert_array_equal(score(one.url, two.url, batch_size=1, connections=1), EXPECTED)
        assert min(len(one.sizes), len(two.sizes)) >= 2


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_service_that_fails_is_asked_again(status):
    failing = (status, {"detail": "out of memory"}, 0)
    with Service(failing, failing, RIGHT) as service:
        np.testing.assert_array_equal(score(service.url), EXPECTED)


def test_a_request_that_takes_too_long_is_repeated():
    with Service((200, "right", 1.0), RIGHT) as service:
        np.testing.assert_array_equal(score(service.url, timeout_seconds=0.2, connections=1), EXPECTED)


def test_the_batches_of_a_dead_replica_go_to_the_others():
    with Service(RIGHT) as service:
        np.testing.assert_array_equal(score(dead_url(), service.url), EXPECTED)
        assert sum(service.sizes) == NUM


def test_a_call_waits_for_a_service_that_starts_later(caplog):
    service, url = Service(RIGHT), dead_url()

    def start():
        time.sleep(0.3)
        with serve_at(service, url):
            finished.wait()

    finished = threading.Event()
    thread = threading.Thread(target=start)
    thread.start()
    try:
        np.testing.assert_array_equal(score(url), EXPECTED)
    finally:
        finished.set()
        thread.join()
    messages = [record.getMessage() for record in caplog.records]
    assert any("has failed 1 times" in one and "asked again in" in one for one in messages)
    assert messages[-1] == f"The reward service at {url} answers again."


@contextlib.contextmanager
def serve_at(service, url):
    """Runs a service at the port of `url`."""
    with service:
        server = ThreadingHTTPServer(("127.0.0.1", int(url.rpartition(":")[2])), service.server.RequestHandlerClass)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield
        server.shutdown()
        server.server_close()


def test_a_dead_service_ends_the_call_with_a_retryable_error():
    urls = dead_url(), dead_url()
    begin = time.monotonic()
    with pytest.raises(RewardUnavailable, match=rf"at {urls[0]}, {urls[1]} has not answered for .*ConnectionError"):
        score(*urls, wait_seconds=0.3)
    assert 0.3 < time.monotonic() - begin < 30
    assert RewardUnavailable.exit_code == ExitCode.STORAGE_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {"rewards": [1.0]}, 0), r"values of shape \[1\] for 2 images"),
        ((200, {"rewards": [1.0, None]}, 0), r"is nan for image 1|returned \[1.0, None\]"),
        ((200, {"scores": [1.0, 2.0]}, 0), r"answered .*scores.*expected \{'rewards': \[...\]\}"),
        ((200, "<html>", 0), "answered '<html>'"),
        ((404, {"detail": "Not Found"}, 0), r"refuses the request with status 404 \(Not Found\)"),
        ((400, {"detail": "metadata lacks objects"}, 0), "metadata lacks objects"),
    ],
)
def test_wrong_answers_end_the_call_at_once(answer, message):
    with Service(answer) as service, pytest.raises(JanusError, match=message):
        score(service.url)


def test_an_error_in_one_batch_does_not_wait_for_a_dead_replica():
    begin = time.monotonic()
    with Service((400, {"detail": "no"}, 0)) as service, pytest.raises(JanusError, match="status 400"):
        score(service.url, dead_url(), wait_seconds=60)
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": ("localhost:8000",)}, "urls has 'localhost:8000'; each URL starts with http://"),
        ({"urls": ()}, "urls is empty"),
        ({"urls": ("http://a",), "batch_size": 0}, "batch_size is 0; it must be positive"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(JanusError, match=message):
        make_reward("http", options)


def post(url, items):
    response = requests.post(f"{url}/score", json={"items": items}, timeout=10)
    return response.status_code, response.json().get("detail")


def test_the_server_names_what_is_wrong_with_a_request():
    image, other = (http.encode_image(np.zeros((size, 4, 3), np.uint8)) for size in (4, 5))
    with serve(checked(checksum, "checksum")) as url:
        assert post(url, []) == (200, None)
        status, detail = post(url, [{"prompt": "a", "image": "?"}])
        assert status == 400
        assert "The image of item 0 cannot be decoded" in detail
        status, detail = post(url, [{"prompt": "a", "image": one, "metadata": {"n": 0}} for one in (image, other)])
        assert status == 400
        assert "differ in size" in detail
        assert post(url, [{"image": image}])[0] == 422


def test_the_server_distinguishes_failures_of_the_code_and_user_errors():
    def fail(prompts, images, metadata):
        raise MemoryError("GPU is full") if metadata[0]["n"] else JanusError("metadata lacks objects.")

    image = http.encode_image(IMAGES[0])
    with serve(checked(fail, "fail")) as url:
        assert post(url, [{"prompt": "a", "image": image, "metadata": {"n": 0}}]) == (400, "metadata lacks objects.")
        status, detail = post(url, [{"prompt": "a", "image": image, "metadata": {"n": 1}}])
        assert status == 500
        assert "MemoryError: GPU is full" in detail
