"""Serves a reward over HTTP, for RL and best of N on other machines.

    janus-rewards --reward MODULE:FUNCTION --port 8000

The reward is a function of prompts, images and metadata, or a registered reward. Clients name the address:
`--judge http --judge_option urls=http://HOST:8000`. Needs the extra `serve`.
"""

import socket
from collections.abc import Sequence

from absl import flags

from janus_jax.commands import cli
from janus_jax.errors import JanusError
from janus_jax.extras import require
from janus_jax.rewards import make_reward

_REWARD = flags.DEFINE_string("reward", None, "the reward, as NAME, MODULE:NAME or MODULE:FUNCTION", required=True)
_REWARD_OPTION = flags.DEFINE_multi_string("reward_option", [], "NAME=VALUE, an option of the reward; can be repeated")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 accepts other machines")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen on; 0 takes a free one", lower_bound=0, upper_bound=65535)


def main(_: Sequence[str]) -> None:
    """Serves the reward until the process is stopped."""
    require("janus-rewards", "fastapi", "uvicorn")
    reward = make_reward(_REWARD.value, _REWARD_OPTION.value, "--reward")
    try:
        listener = socket.create_server((_HOST.value, _PORT.value))
    except OSError as error:
        raise JanusError(f"--host {_HOST.value} --port {_PORT.value} cannot be used ({error}).") from error
    import uvicorn

    from janus_jax.rewards.server import make_app

    with listener:
        host, port = listener.getsockname()[:2]
        print(f"Serving the reward {_REWARD.value} at http://{host}:{port}", flush=True)
        server = uvicorn.Server(uvicorn.Config(make_app(reward, _REWARD.value), log_level="warning"))
        server.run(sockets=[listener])


def run() -> None:
    """Entry point of `janus-rewards`."""
    cli.run(main, name="janus-rewards")
