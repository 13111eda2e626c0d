"""Trains one stage of a recipe from a checkout: `python -m launch.train` is `janus-train`."""

from janus_jax.commands import cli
from janus_jax.commands.train import main

if __name__ == "__main__":
    cli.run(main)
