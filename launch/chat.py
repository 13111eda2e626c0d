"""Runs `janus-chat` from a checkout: `python -m launch.chat`."""

from janus_jax.commands.chat import run

if __name__ == "__main__":
    run()
