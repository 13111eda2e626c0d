"""Serves a model over HTTP with OpenAI's API.

    janus-serve --model DIR_OR_ID --port 8000

Clients of OpenAI's API use the base URL http://HOST:PORT/v1. A browser opens the page http://HOST:PORT/. API keys come
from --api_keys_file or the environment variable JANUS_API_KEYS. After SIGTERM the server refuses new requests and ends
when the others have finished. Needs the extra `serve`.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from janus_jax.commands import cli, model_flags
from janus_jax.errors import JanusError
from janus_jax.extras import require

_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 accepts other machines")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen on; 0 takes a free one", lower_bound=0, upper_bound=65535)
_NAME = flags.DEFINE_string("name", None, "name of the model for clients (default: the name of its folder, or its id)")
_KEYS = flags.DEFINE_string("api_keys_file", None, "file with API keys, one a line; JANUS_API_KEYS may hold more")
_ORIGIN = flags.DEFINE_multi_string("cors_origin", [], "origin of web pages that may call the server; may be repeated")
_REMOTE = flags.DEFINE_bool("allow_remote_images", False, "accept image URLs on the web; private addresses are refused")
_PAGE = flags.DEFINE_bool("page", True, "serve a web page at /; with API keys, the browser asks for one as a password")
_LOG_PROMPTS = flags.DEFINE_bool("log_prompts", False, "log the prompts of requests")
_SLOTS = flags.DEFINE_integer(
    "slots", 16, "sequences decoded together: an answer takes one, an image two, an edit up to three", lower_bound=3
)
_MAX_LENGTH = flags.DEFINE_integer(
    "max_length", 0, "tokens of a sequence, image included; 0: the model's context, at most 4096", lower_bound=0
)
_MAX_QUEUE = flags.DEFINE_integer("max_queue", 256, "requests that wait or run; more are refused", lower_bound=1)
_MAX_BODY = flags.DEFINE_integer("max_body_mb", 32, "megabytes of the body of a request", lower_bound=1)
_TIMEOUT = flags.DEFINE_integer("timeout", 600, "seconds from a request to its end", lower_bound=1)
_DRAIN = flags.DEFINE_integer("drain_seconds", 60, "seconds that running requests have after SIGTERM", lower_bound=1)
flags.adopt_module_key_flags(model_flags)
cli.flag_group("Server", _HOST, _PORT, _NAME, _KEYS, _ORIGIN, _REMOTE, _PAGE, _LOG_PROMPTS, _DRAIN)
cli.flag_group("Limits", _SLOTS, _MAX_LENGTH, _MAX_QUEUE, _MAX_BODY, _TIMEOUT)


def main(_: Sequence[str]) -> None:
    """Serves the model until the process is stopped."""
    require("janus-serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    if _PAGE.value:
        require("The page of janus-serve (--nopage omits it)", "gradio")
    from janus_jax.serving.options import ServerOptions, read_api_keys

    options = ServerOptions(
        api_keys=read_api_keys(_KEYS.value),
        max_body_bytes=_MAX_BODY.value * 2**20,
        timeout=_TIMEOUT.value,
        drain_seconds=_DRAIN.value,
        allow_remote_images=_REMOTE.value,
        cors_origins=tuple(_ORIGIN.value),
        log_prompts=_LOG_PROMPTS.value,
        page=_PAGE.value,
    )
    opened = model_flags.open_model()
    try:
        listener = socket.create_server((_HOST.value, _PORT.value))
    except OSError as error:
        raise JanusError(f"--host {_HOST.value} --port {_PORT.value} cannot be used ({error}).") from error
    with listener:
        from janus_jax.generation.engine import Engine, EngineOptions
        from janus_jax.serving.app import make_app
        from janus_jax.serving.run import serve

        sizes = EngineOptions(slots=_SLOTS.value, max_length=_MAX_LENGTH.value, max_queue=_MAX_QUEUE.value)
        engine = Engine(model_flags.load_model(opened), sizes)
        folder = Path(model_flags.MODEL.value)
        name = _NAME.value or (folder.resolve().name if folder.exists() else model_flags.MODEL.value)
        app = make_app(engine, name, opened.config.gen_image_size, options)
        host, port = listener.getsockname()[:2]
        serve(app, engine, listener, options, f"Serving {name} at http://{host}:{port}")


def run() -> None:
    """Entry point of `janus-serve`."""
    cli.run(main, name="janus-serve")
