"""Whole folders from one layout to another.

A converted folder holds `config.json` (`{"format": "janus_jax", "model": …, "dtype": …, "source": …}`), the Orbax
checkpoint `params/`, the tokenizer's and processor's files as they came, and `unused.safetensors`: the tensors of the
source that no network here uses, for the way back.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np

from checkpoints_convert import sidecars
from checkpoints_convert.jsons import Section
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from checkpoints_convert.sources import Config, Source, StrPath, is_converted, open_source
from checkpoints_convert.tree import Leaf, layer_by_layer, leaves
from janus_jax.config import (
    ConversationStyle,
    JanusConfig,
    JanusFlowConfig,
    LlamaConfig,
    ModelConfig,
    SiglipConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.errors import JanusError
from janus_jax.files import naming, read_json, reading
from janus_jax.storage import atomic_folder, write_json

FORMAT = "janus_jax"
PARAMS = "params"
UNUSED = "unused"

StoredDtype = Literal["keep", "bfloat16", "float32"]
Progress = Callable[[int], None]
Meter = Callable[[int], Progress]
"""Given the bytes to come, gives what is told of those that have."""

_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
AGAIN = "convert it again"
_VAE_REMEDY = "put SDXL's into the source as vae/, or name its folder with --vae, and convert again"

_PARTS: dict[str, type[Config]] = {
    "janus": JanusConfig,
    "janusflow": JanusFlowConfig,
    "und_encoder": SiglipConfig,
    "gen_encoder": VQConfig,
    "vae": VAEConfig,
    "llm": LlamaConfig,
}


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
      layout: the layout found, or written.
      tensors: tensors in use.
      parameters: numbers in them.
      num_bytes: bytes that were written of them.
      notes: what a person should know: what was left out or made up.
      seconds: time taken.
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


def no_meter(total: int) -> Progress:
    """Tells nobody."""
    return lambda _: None


def numpy_dtype(name: str) -> np.dtype:
    """The dtype of that name.

    Raises:
      JanusError: parameters are of no such dtype.
    """
    if name not in _DTYPES:
        raise JanusError(f"dtype is {name!r}; it must be one of {', '.join(_DTYPES)}.")
    return np.dtype(_DTYPES[name])


def convert(
    source: StrPath,
    target: StrPath,
    dtype: StoredDtype = "keep",
    conversation: ConversationStyle | None = None,
    meter: Meter = no_meter,
    vae: StrPath | None = None,
) -> Summary:
    """A checkpoint in one of PyTorch's layouts -> a converted folder.

    Args:
      source: a released or transformers' folder, or one of the parts that training starts from.
      target: the folder to make. It appears when it is complete.
      dtype: that parameters are stored in; "keep" keeps every tensor's own, so that the way back is exact.
      conversation: the role strings; None to tell from the folder.
      meter: makes what is told of the bytes written.
      vae: see `open_source`.

    Raises:
      JanusError: see `open_source`; or the target exists or cannot be written, or there is no such dtype.
    """
    begin = time.monotonic()
    if dtype not in get_args(StoredDtype):
        raise JanusError(f"--dtype is {dtype!r}; it must be one of {', '.join(get_args(StoredDtype))}.")
    opened = open_source(source, conversation, vae)
    target = Path(target)
    with atomic_folder(target) as folder:
        num_bytes = _write_converted(folder, opened, dtype, meter)
    used = [piece for unit in opened.units for piece in unit.pieces]
    notes = [*_left_out(opened), *_gelu_note(opened.config), *_vae_note(opened.config)]
    return Summary(
        opened.layout.name,
        len(used),
        sum(leaf.size for leaf in opened.leaves),
        num_bytes,
        tuple(notes),
        time.monotonic() - begin,
    )


def _write_converted(folder: Path, source: Source, dtype: StoredDtype, meter: Meter) -> int:
    # Here, so that what only reads does not wait for jax.
    from checkpoints_convert.orbax_params import Promise, write_params

    own = source.dtypes()
    stored = own if dtype == "keep" else dict.fromkeys(own, numpy_dtype(dtype))
    units = {(unit.leaf.path, unit.layer): unit for unit in source.units}
    total = sum(leaf.size * stored[leaf.path].itemsize for leaf in source.leaves)
    progress = meter(total)

    def reader(leaf: Leaf) -> Callable[[int | None], np.ndarray]:
        return lambda layer: units[leaf.path, layer].read(source.tensors)

    write_params(
        folder / PARAMS,
        [Promise(leaf, stored[leaf.path], reader(leaf), progress) for leaf in source.leaves],
    )
    is_whole = isinstance(source.config, ModelConfig)
    if source.unused and is_whole:
        _write_tensors(folder, UNUSED, source.unused)
    origin = source.path if source.path.is_dir() else source.path.parent
    copied = sidecars.copy_sidecars(origin, folder) if is_whole else []
    provenance: dict[str, Any] = {"layout": source.layout.name, "name": source.path.resolve().name, "files": copied}
    if source.image_token_id is not None:
        provenance["image_token_id"] = source.image_token_id
    if dtype == "keep":
        provenance["dtypes"] = _odd_dtypes(source, stored)
    write_config(folder, source.config, main_dtype(stored, source.leaves), provenance)
    return total


def save_converted(
    target: StrPath,
    params: Mapping[str, Any],
    config: Config,
    beside: StrPath | None = None,
    meter: Meter = no_meter,
) -> None:
    """Writes a converted folder from a tree in memory.

    Args:
      target: the folder to make. It appears when it is complete.
      params: nested dicts of numpy or (wholly addressable) jax arrays, repeated blocks stacked.
      config: the model's, or that of the one part that there is.
      beside: a folder with the tokenizer's and processor's files, which are copied.
      meter: makes what is told of the bytes written.

    Raises:
      JanusError: the arrays are not those of the config, or the target exists or cannot be written.
    """
    from checkpoints_convert.orbax_params import Promise, check_arrays, flatten, write_params

    all_leaves, arrays = leaves(config), dict(flatten(params))
    check_arrays({path: tuple(array.shape) for path, array in arrays.items()}, all_leaves, "params")
    dtypes = {path: np.dtype(array.dtype) for path, array in arrays.items()}
    progress = meter(sum(leaf.size * dtypes[leaf.path].itemsize for leaf in all_leaves))

    def reader(array: Any) -> Callable[[int | None], np.ndarray]:
        return lambda layer: np.asarray(array if layer is None else array[layer])

    with atomic_folder(Path(target)) as folder:
        write_params(
            folder / PARAMS,
            [Promise(leaf, dtypes[leaf.path], reader(arrays[leaf.path]), progress) for leaf in all_leaves],
        )
        copied = [] if beside is None else sidecars.copy_sidecars(Path(beside), folder)
        write_config(folder, config, main_dtype(dtypes, all_leaves), {"files": copied})


def write_config(folder: Path, config: Config, dtype: str, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes the `config.json` of a converted folder.

    Args:
      folder: that holds `params/`.
      config: of the whole model or of one part.
      dtype: that most parameters are stored in.
      provenance: where the parameters are from.
    """
    part = next(name for name, kind in _PARTS.items() if isinstance(config, kind))
    model = asdict(config)
    content = {"format": FORMAT, "part": part, "model": model, "dtype": dtype, "source": dict(provenance or {})}
    write_json(folder / "config.json", content)


def _odd_dtypes(source: Source, stored: Mapping[str, np.dtype]) -> dict[str, str]:
    """By name in the file, the dtypes of tensors that share a stack with wider ones."""
    return {
        piece.name: source.tensors[piece.name].dtype.name
        for unit in source.units
        for piece in unit.pieces
        if source.tensors[piece.name].dtype != stored[unit.leaf.path]
    }


def main_dtype(dtypes: Mapping[str, np.dtype], all_leaves: list[Leaf]) -> str:
    """The dtype of most numbers, from that of each leaf by its path."""
    sizes: Counter[str] = Counter()
    for leaf in all_leaves:
        sizes[dtypes[leaf.path].name] += leaf.size
    return sizes.most_common(1)[0][0]


def _write_tensors(folder: Path, stem: str, tensors: Mapping[str, np.ndarray]) -> None:
    announced = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder, announced, shard_bytes=1 << 62, stem=stem) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _left_out(source: Source) -> list[str]:
    if not source.unused:
        return []
    whole = isinstance(source.config, ModelConfig)
    kept = f"kept in {UNUSED}.safetensors for the way back" if whole else "they take no part in Janus"
    names = sorted(source.unused)
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return [f"Left out: {len(names)} tensors that no network here uses ({shown}), {kept}."]


def _gelu_note(config: Config) -> list[str]:
    if not isinstance(config, SiglipConfig):
        return []
    return [f"The encoder's GELU is {config.gelu!r}; SigLIP was trained with the tanh one, Janus with the exact."]


def _vae_note(config: Config) -> list[str]:
    if not isinstance(config, JanusFlowConfig) or config.vae is not None:
        return []
    return [f"There is no VAE: this model reads and answers, and draws no picture; {_VAE_REMEDY}."]


@dataclass(frozen=True)
class Converted:
    """A converted folder, opened and checked, not read.

    Attributes:
      path: the folder.
      config: of the whole model, or of the one part it holds.
      provenance: where its parameters are from, as config.json says.
    """

    path: Path
    config: Config
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def params_path(self) -> Path:
        """The Orbax checkpoint."""
        return self.path / PARAMS

    def params(
        self, dtype: np.dtype | str | None = None, parts: Collection[str] | None = None
    ) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
        """As `Source.params`."""
        from checkpoints_convert.orbax_params import StoredParams

        all_leaves = leaves(self.config)
        stored = StoredParams(self.params_path, all_leaves)
        for leaf, layer in layer_by_layer(all_leaves):
            if parts is None or leaf.keys[0] in parts:
                array = stored.read(leaf, layer)
                yield leaf.keys, layer, array if dtype is None else array.astype(dtype, copy=False)


def open_converted(path: StrPath) -> Converted:
    """Reads the config of a converted folder.

    Raises:
      JanusError: it is none, or its config.json is damaged.
    """
    path = Path(path)
    file = path / "config.json"
    content = read_json(file, AGAIN)
    if content.get("format") != FORMAT or not (path / PARAMS).is_dir():
        raise JanusError(f"{path} is no converted folder with its {PARAMS}/; make one with from_pytorch.")
    with reading(file, AGAIN), naming(file):
        part, model = content.get("part", "janus"), content["model"]
        if part not in _PARTS:
            raise JanusError(f"part is {part!r}; it must be one of {', '.join(_PARTS)}.")
        kind = _PARTS[part]
        config = kind.from_dict(model) if issubclass(kind, ModelConfig) else kind(**_tuples(model))
    return Converted(path, config, Section(content, str(file)).section("source").values)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_config(
    path: StrPath, conversation: ConversationStyle | None = None, vae: StrPath | None = None
) -> ModelConfig:
    """The config of a whole model's checkpoint in any layout, converted folders included.

    Raises:
      JanusError: see `open_source` and `open_converted`; or the checkpoint holds one part of a model.
    """
    config = open_checkpoint(path, conversation, vae).config
    if not isinstance(config, ModelConfig):
        raise JanusError(f"{path} holds one part of a model ({type(config).__name__}); a whole Janus is needed.")
    return config


def read_params(
    path: StrPath,
    dtype: str | None = None,
    conversation: ConversationStyle | None = None,
    vae: StrPath | None = None,
) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
    """The parameters of a checkpoint in any layout, one array at a time.

    A stacked leaf comes layer by layer, and all leaves of one block before the next block's. What is not yet used is
    not yet read; arrays that need no cast and no transposition are views of the mapped files.

    Args:
      path: the checkpoint.
      dtype: "bfloat16", "float32" or "float16"; None for the checkpoint's own.
      conversation, vae: see `open_source`.

    Yields:
      (keys from the tree's root, layer of a stacked leaf or None, numbers).
    """
    yield from open_checkpoint(path, conversation, vae).params(None if dtype is None else numpy_dtype(dtype))


def open_checkpoint(
    path: StrPath, conversation: ConversationStyle | None = None, vae: StrPath | None = None
) -> Converted | Source:
    """A checkpoint in any layout, converted folders included: its config, and its `params` once they are wanted.

    Raises:
      JanusError: see `open_source` and `open_converted`.
    """
    path = Path(path)
    if not is_converted(path):
        return open_source(path, conversation, vae)
    if vae is not None:
        raise JanusError(f"{path} is converted, and holds the VAE that it came with; leave --vae out, or {AGAIN}.")
    return open_converted(path)
