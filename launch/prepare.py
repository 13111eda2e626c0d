"""Prepares a data set from a checkout: `python -m launch.prepare` is `janus-prepare`."""

from janus_jax.commands import cli
from janus_jax.commands.prepare import main

if __name__ == "__main__":
    cli.run(main)
