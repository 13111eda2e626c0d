"""Converts whole checkpoint folders.

A converted folder (layout "orbax") holds `config.json` (`{"format": "janus_jax", "part": …, "model": …, "dtype": …,
"source": …}`), the Orbax checkpoint `params/`, the tokenizer and processor files of the source, and
`unused.safetensors`: the tensors of the source that janus_jax does not use. Converting back restores them.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from checkpoints_convert import released, released_flow, sidecars, transformers_janus
from checkpoints_convert.checkpoint import (
    FORMAT,
    KINDS,
    ORBAX,
    PARAMS_FOLDER,
    REMEDY,
    UNUSED_STEM,
    Checkpoint,
    StrPath,
    TorchCheckpoint,
    numpy_dtype,
    open_checkpoint,
)
from checkpoints_convert.diffusers_vae import WEIGHTS_STEM, vae_to_json
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, MappedParameter
from checkpoints_convert.parameters import Config, Parameter, Shape, model_parameters
from checkpoints_convert.quantized import quantization_entry, quantized
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from janus_jax.buckets import as_path
from janus_jax.config import (
    ConversationStyle,
    JanusConfig,
    JanusFlowConfig,
    ModelConfig,
    SiglipConfig,
    StoredQuantization,
)
from janus_jax.errors import JanusError
from janus_jax.files import prefix_errors, reading
from janus_jax.progress import progress_bar
from janus_jax.storage import atomic_folder, write_json

LayoutName = Literal["orbax", "released", "transformers"]
StoredDtype = Literal["keep", "bfloat16", "float32"]

SHARD_BYTES = 5_000_000_000

_WRITTEN: dict[tuple[str, type[ModelConfig]], Layout] = {
    ("released", JanusConfig): released.LAYOUT,
    ("released", JanusFlowConfig): released_flow.LAYOUT,
    ("transformers", JanusConfig): transformers_janus.LAYOUT,
}
_WRITE_SIDECARS = {
    "released": sidecars.write_released_sidecars,
    "transformers": sidecars.write_transformers_sidecars,
}
_EMBEDDING, _HEAD = "llm/embed/embedding", "llm/head/weight"
_IMAGE_TOKEN_ID = 100581
"""Id of the image placeholder in Janus-Pro-1B, used if neither the tokenizer nor the source states it."""


@dataclass(frozen=True)
class Summary:
    """Result of a conversion.

    Attributes:
      layout: Layout of the source if the target has the layout "orbax", else layout of the target.
      tensors: Number of tensors converted.
      parameters: Number of parameters converted.
      num_bytes: Bytes written.
      notes: Sentences for the user, such as which tensors were left out or filled with zeros.
      seconds: Duration.
    """

    layout: str
    tensors: int
    parameters: int
    num_bytes: int
    notes: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        head = (
            f"{self.layout} layout, {self.tensors} tensors, {self.parameters:,} parameters, "
            f"{self.num_bytes / 1e9:.2f} GB, {self.seconds:.1f} s"
        )
        return "\n".join([head, *self.notes])


def convert(
    source: StrPath,
    target: StrPath,
    layout: LayoutName | None = None,
    *,
    dtype: StoredDtype = "keep",
    quantization: StoredQuantization = "none",
    conversation: ConversationStyle | None = None,
    vae: StrPath | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> Summary:
    """Converts a checkpoint folder to another layout.

    Args:
      source: Folder in any layout. A single part of a model can only be converted to "orbax".
      target: Folder to create. It exists only when it is complete.
      layout: Layout of the target. None: "orbax", or "released" with quantization.
      dtype: Dtype of the stored parameters. "keep" keeps the dtype of every tensor, so that converting back is exact.
      quantization: Stores the matrices of the language model, its text head and SigLIP in 8 bits
        (`Execution.quantization`). The target is for sampling only. It has one of PyTorch's layouts.
      conversation: See `open_checkpoint`.
      vae: See `open_checkpoint`.
      shard_bytes: Largest size of one weight file in bytes.
      progress: Whether to show a progress bar on stderr.

    Raises:
      JanusError: See `open_checkpoint`; or the layout cannot describe the model, the target exists or cannot be
        written, or an option has an invalid value.
    """
    start = time.monotonic()
    layout = default_layout(quantization) if layout is None else layout
    options = {
        "dtype": (dtype, StoredDtype),
        "layout": (layout, LayoutName),
        "quantization": (quantization, StoredQuantization),
    }
    for flag, (value, allowed) in options.items():
        if value not in get_args(allowed):
            raise JanusError(f"--{flag} is {value!r}; it must be one of {', '.join(get_args(allowed))}.")
    if quantization != "none" and layout == ORBAX:
        raise JanusError("Weights of 8 bits are not stored in the layout orbax; use --layout released or transformers.")
    checkpoint = open_checkpoint(source, conversation, vae)
    checkpoint.check_unquantized("conversion")
    wanted = None if dtype == "keep" else numpy_dtype(dtype)
    if layout == ORBAX:
        if not isinstance(checkpoint, TorchCheckpoint):
            raise JanusError(f"{source} is converted already; give the checkpoint that it was converted from.")
        summary = _to_orbax(checkpoint, as_path(target), wanted, progress)
    else:
        summary = _to_torch(
            checkpoint,
            as_path(target),
            layout,
            wanted,
            quantization=quantization,
            shard_bytes=shard_bytes,
            progress=progress,
        )
    return Summary(*summary, time.monotonic() - start)


def default_layout(quantization: StoredQuantization) -> LayoutName:
    """Returns the layout that `convert` writes by default."""
    return "orbax" if quantization == "none" else "released"


def save_checkpoint(
    target: StrPath,
    params: Mapping[str, Any],
    config: Config,
    *,
    sidecars_from: StrPath | None = None,
    processor_fields: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> None:
    """Writes a parameter tree to a folder in the Orbax layout.

    Args:
      target: Folder to create. It exists only when it is complete.
      params: Nested dicts of numpy arrays or fully addressable jax arrays, with stacked blocks.
      config: Config of the model, or of the only part in `params`.
      sidecars_from: Folder to copy tokenizer and processor files from.
      processor_fields: Fields of processor_config.json that replace those of the copied file.
      progress: Whether to show a progress bar on stderr.

    Raises:
      JanusError: The arrays do not match the config, or the target exists or cannot be written.
    """
    from flax.traverse_util import flatten_dict

    from checkpoints_convert.orbax_params import check_shapes

    parameters, arrays = model_parameters(config), flatten_dict(params, sep="/")
    check_shapes({path: tuple(array.shape) for path, array in arrays.items()}, parameters, "params")

    def read(parameter: Parameter, layer: int | None) -> np.ndarray:
        array = arrays[parameter.path]
        return np.asarray(array if layer is None else array[layer])

    dtypes = {path: np.dtype(array.dtype) for path, array in arrays.items()}
    with atomic_folder(as_path(target)) as folder:
        _write_params(folder, parameters, dtypes, read, progress=progress)
        copied = [] if sidecars_from is None else sidecars.copy_sidecars(as_path(sidecars_from), folder)
        if processor_fields:
            sidecars.set_processor_fields(folder, processor_fields)
            copied = [*dict.fromkeys([*copied, sidecars.PROCESSOR])]
        _write_config(folder, config, _main_dtype(dtypes, parameters), {"files": copied})


def _to_orbax(
    checkpoint: TorchCheckpoint, target: Path, dtype: np.dtype | None, progress: bool
) -> tuple[str, int, int, int, tuple[str, ...]]:
    parameters, is_model = checkpoint.parameters, isinstance(checkpoint.config, ModelConfig)
    dtypes = checkpoint.dtypes() if dtype is None else {one.path: dtype for one in parameters}
    unused = checkpoint.unused()
    with atomic_folder(target) as folder:
        num_bytes = _write_params(folder, parameters, dtypes, checkpoint.read, progress=progress)
        if unused and is_model:
            specs = {name: (tensor.shape, tensor.dtype) for name, tensor in unused.items()}
            with SafetensorsWriter(folder, specs, shard_bytes=1 << 62, stem=UNUSED_STEM) as writer:
                for name, tensor in unused.items():
                    writer.write(name, tensor)
        copied = sidecars.copy_sidecars(checkpoint.folder, folder) if is_model else []
        metadata = {**checkpoint.metadata, "files": copied}
        if dtype is not None:
            del metadata["dtypes"]
        _write_config(folder, checkpoint.config, _main_dtype(dtypes, parameters), metadata)
    tensors = sum(len(mapped.tensors) for mapped in checkpoint.mapped)
    notes = tuple(_notes(checkpoint.config, sorted(unused)))
    return checkpoint.layout, tensors, sum(one.size for one in parameters), num_bytes, notes


def _write_params(
    folder: Path,
    parameters: Iterable[Parameter],
    dtypes: Mapping[str, np.dtype],
    read: Callable[[Parameter, int | None], np.ndarray],
    *,
    progress: bool,
) -> int:
    """Writes `params/` and returns its size in bytes."""
    from checkpoints_convert.orbax_params import DeferredParameter, write_params  # Orbax takes seconds to import.

    total = sum(parameter.size * dtypes[parameter.path].itemsize for parameter in parameters)
    with _progress_bar(total, progress) as report:
        deferred = [DeferredParameter(one, dtypes[one.path], partial(read, one), report) for one in parameters]
        write_params(folder / PARAMS_FOLDER, deferred)
    return total


@contextlib.contextmanager
def _progress_bar(num_bytes: int, show: bool) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar. Yields a thread-safe function that adds a number of written bytes to it."""
    with progress_bar(
        total=num_bytes, unit="B", unit_scale=True, unit_divisor=1000, smoothing=0.1, disable=not show
    ) as bar:

        def report(count: int) -> None:
            with bar.get_lock():
                bar.update(count)

        yield report


def _write_config(folder: Path, config: Config, dtype: str, source: Mapping[str, Any]) -> None:
    """Writes the config.json of a converted folder.

    Args:
      dtype: Dtype of most parameters.
      source: `Checkpoint.metadata` of the source.
    """
    part = next(name for name, kind in KINDS.items() if isinstance(config, kind))
    content = {"format": FORMAT, "part": part, "model": asdict(config), "dtype": dtype, "source": source}
    write_json(folder / "config.json", content)


def _main_dtype(dtypes: Mapping[str, np.dtype], parameters: Iterable[Parameter]) -> str:
    sizes: Counter[str] = Counter()
    for parameter in parameters:
        sizes[dtypes[parameter.path].name] += parameter.size
    return sizes.most_common(1)[0][0]


def _notes(config: Config, unused: list[str]) -> Iterator[str]:
    if unused:
        is_model = isinstance(config, ModelConfig)
        kept = f" {UNUSED_STEM}.safetensors keeps them; converting back restores them." if is_model else ""
        names = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        yield f"Left out {len(unused)} tensors that janus_jax does not use ({names}).{kept}"
    if isinstance(config, SiglipConfig):
        yield f"The encoder's GELU is {config.gelu!r}. SigLIP was trained with 'tanh', Janus with 'exact'."
    if isinstance(config, JanusFlowConfig) and config.vae is None:
        yield (
            "There is no VAE, so this model cannot generate images; put SDXL's VAE into the source as vae/, or name "
            "its folder with --vae, and convert again."
        )


def _to_torch(
    checkpoint: Checkpoint,
    target: Path,
    layout_name: str,
    dtype: np.dtype | None,
    *,
    quantization: StoredQuantization,
    shard_bytes: int,
    progress: bool,
) -> tuple[str, int, int, int, tuple[str, ...]]:
    config = checkpoint.model_config
    layout = _WRITTEN.get((layout_name, type(config)))
    if layout is None or layout.write_config is None:
        raise JanusError(
            f"The {layout_name} layout does not support {type(config).__name__.removesuffix('Config')} models such as "
            f"{config.name}; use --layout released."
        )
    mapped, dtypes = layout.map(model_parameters(config, quantization)), checkpoint.dtypes()
    main = _main_dtype(dtypes, checkpoint.parameters) if dtype is None else dtype.name
    specs = _tensor_specs(checkpoint, mapped, dtypes, dtype)
    same_layout = checkpoint.metadata.get("layout") == layout_name
    unused, notes = checkpoint.unused() if same_layout else {}, []
    if not unused and (shapes := layout.unused_shapes(config)):
        unused = {name: np.zeros(shape, numpy_dtype(main)) for name, shape in shapes.items()}
        notes.append(f"{len(unused)} tensors that released files hold, but that no network uses, are zeros.")
    specs |= {name: (tensor.shape, tensor.dtype) for name, tensor in unused.items()}
    json = layout.write_config(config, main, _image_token_id(checkpoint)) | quantization_entry(quantization)
    # The head is quantized, the embedding table is not.
    if quantization == "none" and _is_tied(checkpoint):
        mapped = [one for one in mapped if one.parameter.path != _HEAD]
        specs = {name: spec for name, spec in specs.items() if name not in layout.tied}
        for part in (json, *(json[name] for name in ("language_config", "text_config") if name in json)):
            part["tie_word_embeddings"] = True
    if "image_token_id" in json and not sidecars.token_ids(checkpoint.folder):
        notes.append(f"There is no tokenizer.json, so the image placeholder's id is {json['image_token_id']}.")
    num_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())
    with atomic_folder(target) as folder, _progress_bar(num_bytes, progress) as report:
        with _tensor_writer(folder, specs, shard_bytes, config) as write:

            def write_all(tensors: Iterable[tuple[str, np.ndarray]]) -> None:
                for name, array in tensors:
                    write(name, array)
                    report(array.size * specs[name][1].itemsize)

            for one, array in quantized(mapped, checkpoint.read):
                write_all(one.write(array))
                del array  # Freed before the next one is read.
            write_all(unused.items())
        write_json(folder / "config.json", json)
        if same_layout:
            sidecars.copy_sidecars(checkpoint.folder, folder)
        else:
            sidecars.copy_sidecars(checkpoint.folder, folder, sidecars.TOKENIZER_FILES)
            _WRITE_SIDECARS[layout_name](folder, config)
            sidecars.copy_own_fields(checkpoint.folder, folder)
    parameters = sum(parameter.size for parameter in checkpoint.parameters)
    return layout_name, len(specs), parameters, num_bytes, tuple(notes)


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Returns whether embeddings were tied in the original checkpoint, and have not been trained to differ since."""
    if not checkpoint.metadata.get("tied"):
        return False
    both = {one.path: checkpoint.read(one, None) for one in checkpoint.parameters if one.path in (_EMBEDDING, _HEAD)}
    return np.array_equal(both[_EMBEDDING], both[_HEAD])


def _tensor_specs(
    checkpoint: Checkpoint,
    mapped: Iterable[MappedParameter],
    dtypes: Mapping[str, np.dtype],
    dtype: np.dtype | None,
) -> dict[str, tuple[Shape, np.dtype]]:
    """Returns shape and dtype of every tensor to write, by name."""
    file = checkpoint.folder / "config.json"
    with reading(file, REMEDY), prefix_errors(file):
        narrower = JsonObject(checkpoint.metadata, "source").object("dtypes").values
        kept = {name: numpy_dtype(kind) for name, kind in narrower.items()}
    return {
        tensor.name: (
            tensor.shape,
            one.parameter.dtype or dtype or kept.get(tensor.name) or dtypes[one.parameter.path],
        )
        for one in mapped
        for tensor in one.tensors
    }


def _image_token_id(checkpoint: Checkpoint) -> int:
    metadata = JsonObject(checkpoint.metadata, f"{checkpoint.folder / 'config.json'}: source")
    stated = metadata.get("image_token_id", _IMAGE_TOKEN_ID)
    return sidecars.token_ids(checkpoint.folder).get(sidecars.IMAGE, stated)


@contextlib.contextmanager
def _tensor_writer(
    folder: Path, specs: Mapping[str, tuple[Shape, np.dtype]], shard_bytes: int, config: ModelConfig
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yields a function that writes a tensor to its file. JanusFlow's VAE has its own files, in a subfolder."""
    vae = config.vae if isinstance(config, JanusFlowConfig) else None
    prefix = released_flow.VAE_PREFIX
    in_vae = {} if vae is None else {name: kind for name, kind in specs.items() if name.startswith(prefix)}
    others = {name: kind for name, kind in specs.items() if name not in in_vae}
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(SafetensorsWriter(folder, others, shard_bytes))
        if vae is None:
            yield writer.write
            return
        vae_folder = folder / released_flow.VAE_FOLDER
        vae_folder.mkdir()
        write_json(vae_folder / "config.json", vae_to_json(vae, config.gen_image_size))
        in_vae = {name.removeprefix(prefix): kind for name, kind in in_vae.items()}
        vae_writer = stack.enter_context(SafetensorsWriter(vae_folder, in_vae, shard_bytes, WEIGHTS_STEM))

        def write(name: str, array: np.ndarray) -> None:
            if name in others:
                writer.write(name, array)
            else:
                vae_writer.write(name.removeprefix(prefix), array)

        yield write
