"""Converts a checkpoint from PyTorch's world into a folder that this project trains from and runs.

    python -m checkpoints_convert.from_pytorch SRC DST [--dtype bfloat16]

SRC is a released Janus, Janus-Pro or JanusFlow folder, transformers' Janus, or a part that training starts from
(DeepSeek-LLM, SigLIP, LlamaGen's VQ-16, SDXL's VAE). DST is made; it appears when it is complete.
"""

from collections.abc import Sequence
from typing import cast, get_args

from absl import flags

from checkpoints_convert.commands import meter
from checkpoints_convert.convert import StoredDtype, convert
from janus_jax.commands import cli
from janus_jax.config import ConversationStyle

_DTYPE = flags.DEFINE_enum(
    "dtype", "keep", get_args(StoredDtype), "what parameters are stored as; keep: as every tensor came"
)
_CONVERSATION = flags.DEFINE_enum(
    "conversation", None, get_args(ConversationStyle), "role strings of the model (default: told from SRC)"
)
_VAE = flags.DEFINE_string("vae", None, "folder of a JanusFlow's VAE, in diffusers' layout (default: vae/ in SRC)")


def main(arguments: Sequence[str]) -> None:
    """Converts SRC into DST and prints a summary."""
    source, target = arguments
    dtype = cast(StoredDtype, _DTYPE.value)
    conversation = cast(ConversationStyle | None, _CONVERSATION.value)
    summary = convert(source, target, dtype, conversation, meter, _VAE.value)
    print(f"{target}: from the {summary}")


if __name__ == "__main__":
    cli.run(main, positional=("SRC", "DST"))
