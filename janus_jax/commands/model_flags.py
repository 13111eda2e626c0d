"""Flags that select a model, its dtype and its devices, and functions that load this model."""

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

from absl import flags

from checkpoints_convert import Checkpoint, open_checkpoint
from janus_jax import devices
from janus_jax.commands import cli
from janus_jax.config import AttentionKernel, ConversationStyle, Dtype, ModelConfig, Quantization
from janus_jax.errors import JanusError
from janus_jax.processing import Processor

if TYPE_CHECKING:
    from janus_jax import Pretrained

MODEL = flags.DEFINE_string(
    "model",
    None,
    "checkpoint folder, in the released, transformers' or converted layout, or hub id: OWNER/NAME[@REVISION]",
    required=True,
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", *get_args(Dtype)],
    "dtype of parameters and computation; auto: float32 on a CPU, where bfloat16 is many times slower, else bfloat16",
)
VAE = flags.DEFINE_string(
    "vae",
    None,
    "folder or hub id of a released JanusFlow's VAE (default: vae/ in the model's folder; for hub ids, SDXL's)",
)
ADAPTER = flags.DEFINE_string("adapter", None, "folder or hub id of a LoRA adapter in peft's layout")
MERGE_ADAPTER = flags.DEFINE_bool(
    "merge_adapter", True, "add the adapter to its matrices, in float32; otherwise it is computed next to them"
)
MESH = flags.DEFINE_string(
    "mesh", None, "sizes of the mesh axes DATA,FSDP,TENSOR; -1: all remaining devices (default: one device)"
)
CONVERSATION = flags.DEFINE_enum(
    "conversation", None, get_args(ConversationStyle), "conversation template (default: that of the folder's release)"
)
ATTENTION = flags.DEFINE_enum(
    "attention",
    "auto",
    get_args(AttentionKernel),
    "attention kernel; auto: cudnn on NVIDIA GPUs, splash on TPUs, xla elsewhere",
)
QUANTIZATION = flags.DEFINE_enum(
    "quantization",
    "none",
    get_args(Quantization),
    "weights of 8 bits, which need about half of the memory; int8_dynamic also multiplies in integers of 8 bits; none: "
    "as the folder stores them",
)
TOP_K = flags.DEFINE_integer(
    "top_k", 0, "sample from the k most likely tokens; 0: from all", lower_bound=0, upper_bound=2**31 - 1
)
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the fewest tokens that have a total probability of p")
SEED = flags.DEFINE_integer("seed", 0, "random seed of sampling", lower_bound=0, upper_bound=2**32 - 1)

_MODEL_FLAGS = (MODEL, DTYPE, VAE, ADAPTER, MERGE_ADAPTER, MESH, CONVERSATION, ATTENTION, QUANTIZATION)
cli.flag_group("Model", *_MODEL_FLAGS)
cli.flag_group("Sampling", TOP_K, TOP_P, SEED)

flags.register_validator("top_p", lambda p: 0 < p <= 1, "it must be above 0 and at most 1")
flags.register_validator("mesh", lambda text: text is None or _sizes(text), "it must be three numbers, such as 1,1,8")


class OpenedModel(NamedTuple):
    """An opened checkpoint folder. Its files have been checked, but its parameters have not been read."""

    checkpoint: Checkpoint
    processor: Processor

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.model_config


def define_scale(name: str, default: float | None, text: str) -> "flags.FlagHolder[Any]":
    """Defines a float flag and returns its holder. The flag accepts 0 and numbers from 1e-6 to 1e6."""
    holder = flags.DEFINE_float(name, default, text)
    flags.register_validator(
        name, lambda value: value is None or value == 0 or 1e-6 <= value <= 1e6, "it must be 0, or from 1e-6 to 1e6"
    )
    return holder


def define_parallel_window() -> "flags.FlagHolder[Any]":
    """Defines `--parallel_window` and returns its holder. `window_setting` returns its value."""
    holder = flags.DEFINE_string(
        "parallel_window",
        None,
        "Janus: token positions per pass of the model, or auto for a number that suits device and batch; it changes "
        "images by rounding only (default: 0, one token per pass)",
    )
    flags.register_validator(
        "parallel_window",
        lambda text: text is None or text == "auto" or text.isdecimal(),
        "it must be auto or a whole number",
    )
    return holder


def window_setting(holder: "flags.FlagHolder[Any]") -> dict[str, Any]:
    """Returns the setting of the image sampler that `--parallel_window` gives; empty without the flag."""
    text = holder.value
    return {} if text is None else {"parallel_window": text if text == "auto" else int(text)}


def quantization_setting(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the quantization of the model that `load_model` returns, by its name; empty without quantization."""
    quantization = checkpoint.sampling_quantization(cast(Quantization, QUANTIZATION.value))
    return {} if quantization == "none" else {"quantization": quantization}


def open_model() -> OpenedModel:
    """Opens the checkpoint folder given by the flags. Does not import jax.

    Raises:
      JanusError: The folder is missing, damaged or in an unknown layout, or has weights of 8 bits in another format
        than `--quantization` requests.
    """
    checkpoint = open_checkpoint(
        MODEL.value, cast(ConversationStyle | None, CONVERSATION.value), VAE.value, adapter=ADAPTER.value
    )
    checkpoint.sampling_quantization(cast(Quantization, QUANTIZATION.value))
    return OpenedModel(checkpoint, Processor.from_directory(checkpoint.folder, checkpoint.model_config))


def load_model(opened: OpenedModel) -> "Pretrained":
    """Loads an opened model with the dtype, mesh and attention kernel given by the flags. See `janus_jax.load`."""
    import jax

    from janus_jax.pretrained import load_checkpoint
    from janus_jax.sharding import make_mesh

    cli.enable_compilation_cache()
    platform = initialize_devices()
    dtype, begin = resolve_dtype(DTYPE.value), time.monotonic()
    _print_progress(f"Loading {MODEL.value} as {dtype}, {platform} ...")
    mesh = None
    if MESH.value is not None:
        data, fsdp, tensor = _sizes(MESH.value)
        # In a run of several processes, each process has its own copy of the model.
        mesh = make_mesh(data, fsdp, tensor, jax.local_devices())
    attention = cast(AttentionKernel, ATTENTION.value)
    model = load_checkpoint(
        opened.checkpoint,
        opened.processor,
        dtype,
        mesh,
        attention=attention,
        quantization=cast(Quantization, QUANTIZATION.value),
        merge_adapter=MERGE_ADAPTER.value,
    )
    jax.block_until_ready(model.params)
    _print_progress(f" {time.monotonic() - begin:.1f} s\n")
    return model


def image_metadata(opened: OpenedModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metadata of an image file: the seed, the model and all settings of sampling."""
    everything = dict(settings) | {"dtype": resolve_dtype(DTYPE.value)} | quantization_setting(opened.checkpoint)
    return {
        "seed": SEED.value,
        "model": f"{opened.config.name} ({MODEL.value})",
        "settings": json.dumps(everything),
        "Software": "janus_jax",
    }


def initialize_devices() -> str:
    """Initializes the devices, and checks `--attention`. See `janus_jax.devices.initialize_devices`."""
    return devices.initialize_devices(cast(AttentionKernel, ATTENTION.value), "--attention")


def resolve_dtype(name: str) -> Dtype:
    """Returns the dtype for a value of `--dtype`. "auto" depends on the default device."""
    if name != "auto":
        return cast(Dtype, name)
    return "float32" if initialize_devices() == "cpu" else "bfloat16"


def _sizes(text: str) -> tuple[int, ...]:
    """Returns the three sizes in a text such as "1,1,8", or an empty tuple if the text is malformed."""
    try:
        sizes = tuple(map(int, text.split(",")))
    except ValueError:
        return ()
    return sizes if len(sizes) == 3 else ()


def _print_progress(text: str) -> None:
    # Printed on terminals only: in a log, an error while loading must be the only line.
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def require_text(text: str, flag: str) -> str:
    """Returns the text of a flag, after a check that it is not empty.

    Raises:
      JanusError: The text is empty.
    """
    if not text.strip():
        raise JanusError(f"{flag} is empty; give some text.")
    return text
