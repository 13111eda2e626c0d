"""Runs `janus-rewards` from a checkout: `python -m launch.rewards`."""

from janus_jax.commands.rewards import run

if __name__ == "__main__":
    run()
