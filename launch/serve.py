"""Runs `janus-serve` from a checkout: `python -m launch.serve`."""

from janus_jax.commands.serve import run

if __name__ == "__main__":
    run()
