"""Runs `janus-convert` from a checkout: `python -m launch.convert`."""

from janus_jax.commands.convert import run

if __name__ == "__main__":
    run()
