"""Converts a checkpoint from a checkout: `python -m launch.convert` is `janus-convert`."""

from janus_jax.commands import cli
from janus_jax.commands.convert import POSITIONAL, main

if __name__ == "__main__":
    cli.run(main, positional=POSITIONAL)
