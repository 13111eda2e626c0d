"""Runs `janus-export` from a checkout: `python -m launch.export`."""

from janus_jax.commands.export import run

if __name__ == "__main__":
    run()
