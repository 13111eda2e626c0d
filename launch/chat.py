"""Chats with a model from a checkout: `python -m launch.chat` is `janus-chat`."""

from janus_jax.commands import cli
from janus_jax.commands.chat import main

if __name__ == "__main__":
    cli.run(main)
