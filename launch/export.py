"""Exports a trained model from a checkout: `python -m launch.export` is `janus-export`."""

from janus_jax.commands import cli
from janus_jax.commands.export import main

if __name__ == "__main__":
    cli.run(main)
