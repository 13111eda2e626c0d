"""Runs `janus-evaluate` from a checkout: `python -m launch.evaluate`."""

from janus_jax.commands.evaluate import run

if __name__ == "__main__":
    run()
