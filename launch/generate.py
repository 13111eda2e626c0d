"""Generates images from a checkout: `python -m launch.generate` is `janus-generate`."""

from janus_jax.commands import cli
from janus_jax.commands.generate import main

if __name__ == "__main__":
    cli.run(main)
