"""Runs `janus-prepare` from a checkout: `python -m launch.prepare`."""

from janus_jax.commands.prepare import run

if __name__ == "__main__":
    run()
