"""Runs benchmarks from a checkout: `python -m launch.evaluate` is `janus-evaluate`."""

from janus_jax.commands import cli
from janus_jax.commands.evaluate import main

if __name__ == "__main__":
    cli.run(main)
