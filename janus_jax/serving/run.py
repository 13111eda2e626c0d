"""Runs a server: starts the engine while health checks are answered, and drains it at the end."""

import socket
import threading
import time

import fastapi
import uvicorn
from absl import logging

from janus_jax.generation.engine import Engine
from janus_jax.serving.options import ServerOptions


def serve(app: fastapi.FastAPI, engine: Engine, listener: socket.socket, options: ServerOptions, greeting: str) -> None:
    """Serves an app until SIGTERM or SIGINT.

    /health answers at once; requests are accepted when the engine has compiled its programs. After a signal, no
    connection is accepted, and running requests have `options.drain_seconds` to finish.

    Args:
      app: The application.
      engine: Its engine, not started.
      listener: Socket that listens.
      options: Options of the server.
      greeting: Printed when requests are accepted.

    Raises:
      Exception: The engine cannot start.
    """
    drain = int(options.drain_seconds)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=drain
    )
    server = uvicorn.Server(config)
    errors: list[Exception] = []

    def start() -> None:
        begin = time.monotonic()
        try:
            engine.start()
        except Exception as error:
            errors.append(error)
            server.should_exit = True
            return
        logging.info("The engine has started in %.1f s.", time.monotonic() - begin)
        print(greeting, flush=True)

    starter = threading.Thread(target=start, name="engine-start", daemon=True)
    starter.start()
    try:
        server.run(sockets=[listener])
    finally:
        if engine.is_ready:
            engine.drain(timeout=1.0)
            engine.stop()
    if errors:
        raise errors[0]
