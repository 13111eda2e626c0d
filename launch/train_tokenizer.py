"""Runs `janus-train-tokenizer` from a checkout: `python -m launch.train_tokenizer`."""

from janus_jax.commands.train_tokenizer import run

if __name__ == "__main__":
    run()
