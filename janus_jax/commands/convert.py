"""Converts a checkpoint folder to another layout.

    janus-convert SRC DST [--layout orbax|released|transformers] [--dtype keep|bfloat16|float32]
    janus-convert SRC DST --quantization int8|fp8

SRC is a released Janus, Janus-Pro or JanusFlow, transformers' Janus, a folder that this command or janus-export wrote,
or a part that training starts from (DeepSeek-LLM, SigLIP, LlamaGen's VQ-16, SDXL's VAE); or the hub id of one of them,
OWNER/NAME[@REVISION]. DST is created and appears
when it is complete. The layout orbax is for training; released and transformers are for PyTorch. Weights of 8 bits are
for sampling with janus_jax only.
"""

import math
from collections.abc import Sequence
from typing import cast, get_args

from absl import flags

from checkpoints_convert.convert import SHARD_BYTES, LayoutName, StoredDtype, convert, default_layout
from janus_jax.commands import cli
from janus_jax.config import ConversationStyle, StoredQuantization

_LAYOUT = flags.DEFINE_enum(
    "layout", None, get_args(LayoutName), "layout of DST (default: orbax, or released with --quantization)"
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "keep", get_args(StoredDtype), "dtype of the stored parameters; keep: the dtype of each tensor in SRC"
)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization",
    "none",
    get_args(StoredQuantization),
    "store the matrices of the language model and SigLIP in 8 bits, for sampling",
)
_CONVERSATION = flags.DEFINE_enum(
    "conversation", None, get_args(ConversationStyle), "role strings of the model (default: detected from SRC)"
)
_VAE = flags.DEFINE_string("vae", None, "folder or hub id of a JanusFlow's VAE (default: vae/ in SRC)")
_SHARD = flags.DEFINE_float("shard_gb", SHARD_BYTES / 1e9, "largest size of one file of weights, in GB")
flags.register_validator("shard_gb", lambda size: 0.001 <= size < math.inf, "must be a number of at least 0.001")


def main(arguments: Sequence[str]) -> None:
    """Converts SRC to DST and prints a summary."""
    source, target = arguments
    cli.use_cpu()
    quantization = cast(StoredQuantization, _QUANTIZATION.value)
    layout = cast(LayoutName, _LAYOUT.value or default_layout(quantization))
    summary = convert(
        source,
        target,
        layout,
        quantization=quantization,
        dtype=cast(StoredDtype, _DTYPE.value),
        conversation=cast(ConversationStyle | None, _CONVERSATION.value),
        vae=_VAE.value,
        shard_bytes=int(_SHARD.value * 1e9),
        progress=True,
    )
    print(f"{target}: {'from' if layout == 'orbax' else 'in'} the {summary}")


def run() -> None:
    """Runs `janus-convert`."""
    cli.run(main, name="janus-convert", positional=("SRC", "DST"))
