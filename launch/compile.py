"""Compiles a recipe for other hardware from a checkout: `python -m launch.compile` is `janus-compile`."""

from janus_jax.commands import cli
from janus_jax.commands.compile import main

if __name__ == "__main__":
    cli.run(main)
