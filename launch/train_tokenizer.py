"""Trains an image tokenizer from a checkout: `python -m launch.train_tokenizer` is `janus-train-tokenizer`."""

from janus_jax.commands import cli
from janus_jax.commands.train_tokenizer import main

if __name__ == "__main__":
    cli.run(main)
