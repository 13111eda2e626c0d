"""Runs `janus-generate` from a checkout: `python -m launch.generate`."""

from janus_jax.commands.generate import run

if __name__ == "__main__":
    run()
