"""A server with the tiny model on a real socket."""

import base64
import contextlib
import functools
import io
import socket
import threading
import time
from types import SimpleNamespace

import openai
import pytest
import uvicorn
from PIL import Image

from janus_jax.generation.engine import Engine, EngineOptions
from janus_jax.serving.app import make_app
from janus_jax.serving.options import ServerOptions
from tests import tiny

KEY = "sk-test"
model = functools.cache(tiny.pretrained)
OPTIONS = ServerOptions(api_keys=("sk-other", KEY), max_body_bytes=2**20, max_images=4, max_pixels=10_000)


@contextlib.contextmanager
def running(engine, options=OPTIONS):
    """Serves an engine on a free port."""
    app = make_app(engine, "tiny", tiny.CONFIG.gen_image_size, options)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=300)
        yield SimpleNamespace(engine=engine, url=url, client=client, model=model())
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def server():
    engine = Engine(model(), EngineOptions(slots=6, max_length=384, buckets=(64, 256), max_queue=8))
    engine.start(warm_up=False)
    with running(engine) as found:
        yield found
    engine.stop()


def data_url(image, kind="png"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def picture(b64):
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def until(condition, seconds=60):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.02)
