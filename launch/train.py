"""Runs `janus-train` from a checkout: `python -m launch.train`."""

from janus_jax.commands.train import run

if __name__ == "__main__":
    run()
