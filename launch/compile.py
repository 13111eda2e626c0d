"""Runs `janus-compile` from a checkout: `python -m launch.compile`."""

from janus_jax.commands.compile import run

if __name__ == "__main__":
    run()
