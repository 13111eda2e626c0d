"""The flags that say which model a command runs, in which numbers and on which devices, and the loading of it."""

import sys
import time
from typing import TYPE_CHECKING, Any, cast, get_args

from absl import flags

import janus_jax
from checkpoints_convert import open_checkpoint
from janus_jax.commands import cli
from janus_jax.config import AttentionKernel, ConversationStyle, Dtype, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from janus_jax import Pretrained

MODEL = flags.DEFINE_string("model", None, "folder of a released, transformers' or converted checkpoint", required=True)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", *get_args(Dtype)],
    "of parameters and computation; auto: float32 on a CPU (bfloat16 is many times slower there), bfloat16 elsewhere",
)
VAE = flags.DEFINE_string("vae", None, "folder of a released JanusFlow's VAE, in diffusers' layout (default: its vae/)")
MESH = flags.DEFINE_string(
    "mesh",
    None,
    "sizes DATA,FSDP,TENSOR of the mesh of all devices, one of them may be -1 for what is left (default: one device)",
)
CONVERSATION = flags.DEFINE_enum(
    "conversation", None, get_args(ConversationStyle), "role strings of the model (default: told from the folder)"
)
ATTENTION = flags.DEFINE_enum(
    "attention", "xla", get_args(AttentionKernel), "kernel: cudnn on NVIDIA GPUs, splash on TPUs, xla anywhere"
)
TOP_K = flags.DEFINE_integer(
    "top_k", 0, "draw from the k likeliest ids alone; 0: from all", lower_bound=0, upper_bound=2**31 - 1
)
TOP_P = flags.DEFINE_float("top_p", 1.0, "draw from the fewest ids whose probabilities add up to p")
SEED = flags.DEFINE_integer("seed", 0, "of what is drawn", lower_bound=0, upper_bound=2**32 - 1)

flags.register_validator("top_p", lambda p: 0 < p <= 1, "it must be above 0 and at most 1")
flags.register_validator("mesh", lambda text: text is None or _sizes(text), "it must be three numbers, such as 1,1,8")


def define_amount(name: str, default: float | None, text: str) -> "flags.FlagHolder[Any]":
    """Defines a flag that is 0 or a positive number of a scale that float32 can compute with."""
    holder = flags.DEFINE_float(name, default, text)
    flags.register_validator(
        name, lambda value: value is None or value == 0 or 1e-6 <= value <= 1e6, "it must be 0, or from 1e-6 to 1e6"
    )
    return holder


def model_config() -> ModelConfig:
    """The config of the model that the flags name.

    Raises:
      JanusError: see `checkpoints_convert.open_checkpoint`.
    """
    conversation = cast(ConversationStyle | None, CONVERSATION.value)
    return open_checkpoint(MODEL.value, conversation, VAE.value).model_config


def load_model() -> "Pretrained":
    """The model that the flags name.

    Raises:
      JanusError: see `janus_jax.load`; for a folder that will not do, before jax looks for devices.
    """
    config = model_config()
    Processor.from_directory(MODEL.value, config)

    import jax

    cli.enable_compilation_cache()
    dtype = resolve_dtype(DTYPE.value)
    begin = time.monotonic()
    _tell(f"Loading {MODEL.value} as {dtype}, {jax.default_backend()} ...")
    model = janus_jax.load(
        MODEL.value,
        dtype,
        _mesh(MESH.value),
        attention=cast(AttentionKernel, ATTENTION.value),
        conversation=config.conversation,
        vae=VAE.value,
    )
    jax.block_until_ready(model.params)
    _tell(f" {time.monotonic() - begin:.1f} s\n")
    return model


def resolve_dtype(name: str) -> Dtype:
    """The dtype that a `--dtype` means on the default device."""
    import jax

    if name != "auto":
        return cast(Dtype, name)
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _mesh(text: str | None) -> "Mesh | None":
    import jax

    from janus_jax.sharding import make_mesh

    if text is None:
        return None
    data, fsdp, tensor = _sizes(text)
    # Processes that share the work have a copy of the model each.
    return make_mesh(data, fsdp, tensor, jax.local_devices())


def _sizes(text: str) -> tuple[int, ...]:
    """Three sizes; none where the text says something else."""
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        return ()
    return sizes if len(sizes) == 3 else ()


def _tell(text: str) -> None:
    # For a person who waits; a mistake found while loading is to be the only line of a log.
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def some_text(text: str, flag: str) -> str:
    """The text of a flag.

    Raises:
      JanusError: it is empty.
    """
    if not text.strip():
        raise JanusError(f"{flag} is empty; give some text.")
    return text
