"""Health, metrics, limits and failures of the server."""

import asyncio
import threading

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import ClientDisconnect

from janus_jax.errors import JanusError
from janus_jax.generation.engine import Engine, EngineClosed, EngineOptions, Failed, Handle, Overloaded
from janus_jax.serving.errors import ApiError
from janus_jax.serving.images import _is_public, download
from janus_jax.serving.metrics import Metrics
from janus_jax.serving.options import ServerOptions, read_api_keys
from janus_jax.serving.streams import EventResponse, submit
from tests.serving.conftest import KEY, model, running

HELLO = [{"role": "user", "content": "Hello"}]


class FakeEngine(Engine):
    """An engine whose requests end in a way that a test chooses."""

    def __init__(self, submit):
        super().__init__(model(), EngineOptions(slots=3, max_length=64, buckets=(64,)))
        self._submit = submit

    def submit(self, request, on_event=None):
        return self._submit(Handle(on_event))


def failing(error):
    def submit(handle):
        if error is not None:
            raise error
        handle.send(Failed(RuntimeError("secret of the device")))
        return handle

    return submit


def metrics(server):
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_models_health_and_metrics(server):
    assert [one.id for one in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "janus_jax"
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/ready").status_code == 200
    before = metrics(server)
    answer = server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
    after = metrics(server)
    assert after["janus_tokens_total", "text"] - before["janus_tokens_total", "text"] >= answer.usage.completion_tokens
    assert after["janus_requests_total", "finished"] - before["janus_requests_total", "finished"] == 1
    times = "janus_request_seconds_count", "chat"
    assert after[times] - before.get(times, 0) == 1
    assert after["janus_queue",] == 0
    assert after["janus_slots",] == 6


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "chat/completions", "POST"),
        ("PUT", "images/generations", "POST"),
        ("HEAD", "images/edits", "POST"),
        ("POST", "models", "GET"),
        ("DELETE", "models/tiny", "GET"),
        ("POST", "embeddings", None),
    ],
)
def test_wrong_methods_and_unknown_routes_are_errors_of_openai(server, method, path, allowed):
    response = httpx.request(method, f"{server.url}/v1/{path}", headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code == (404 if allowed is None else 405)
    assert response.headers.get("allow") == allowed
    if method != "HEAD":
        code = "not_found" if allowed is None else "method_not_allowed"
        assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("8 requests wait or run."), 429, "queue_full"),
        (EngineClosed("closed"), 503, "not_ready"),
        (JanusError("The prompt is too long."), 400, None),
        (ZeroDivisionError("secret"), 500, "internal_error"),
        (None, 500, "model_error"),
    ],
)
def test_errors_of_the_engine_reach_the_client(error, status, code):
    with running(FakeEngine(failing(error))) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            server.client.chat.completions.create(model="tiny", messages=HELLO)
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert "secret" not in caught.value.message
        if status == 429:
            assert int(caught.value.response.headers["retry-after"]) > 0
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_request_that_takes_too_long_is_cancelled():
    handles = []
    with running(FakeEngine(lambda handle: handles.append(handle) or handle), ServerOptions(timeout=0.2)) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            server.client.chat.completions.create(model="tiny", messages=HELLO)
        assert caught.value.status_code == 504
        assert handles[0].is_cancelled
        assert httpx.get(f"{server.url}/ready").status_code == 503


def test_a_client_that_disconnects_before_the_stream_starts_ends_its_request():
    engine = FakeEngine(lambda handle: handle)

    async def respond():
        stream = await submit(engine, None, 60, Metrics(engine).timer("chat"))
        chunks = stream.events()  # Not started when the client has gone.

        async def send(_):
            raise OSError("The client has gone.")

        async def receive():
            return {"type": "http.disconnect"}

        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}}
        with pytest.raises(ClientDisconnect):
            await EventResponse(chunks, stream)(scope, receive, send)
        return stream.handle

    assert asyncio.run(respond()).is_cancelled


def test_a_caller_that_is_cancelled_while_it_submits_cancels_the_request():
    begun, goes_on, handles = threading.Event(), threading.Event(), []

    def slow(handle):
        handles.append(handle)
        begun.set()
        goes_on.wait(60)
        return handle

    engine = FakeEngine(slow)

    async def cancel():
        task = asyncio.ensure_future(submit(engine, None, 60, Metrics(engine).timer("chat")))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not handles[0].is_cancelled
        goes_on.set()
        while not handles[0].is_cancelled:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(cancel(), 60))


def test_web_pages_of_other_origins_are_refused_by_default(server):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    response = httpx.options(f"{server.url}/v1/chat/completions", headers=headers)
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "fe80::1%eth0", "::ffff:10.0.0.1", "0.0.0.0"],
)
def test_private_addresses_are_not_public(address):
    assert not _is_public(address)
    assert _is_public("8.8.8.8")


def test_images_of_private_addresses_are_refused(server):
    with pytest.raises(ApiError, match="cannot be downloaded"):
        download(f"{server.url}/health", ServerOptions(allow_remote_images=True), "image")


def test_api_keys_are_read_from_file_and_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JANUS_API_KEYS", "a, b")
    (tmp_path / "keys").write_text("# ours\nc\n\na\n")
    assert read_api_keys(str(tmp_path / "keys")) == ("a", "b", "c")
    (tmp_path / "empty").write_text("# none\n")
    with pytest.raises(JanusError, match="has no API key"):
        read_api_keys(str(tmp_path / "empty"))
