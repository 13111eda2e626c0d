"""A converted folder back into a layout of PyTorch's world."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from checkpoints_convert import released, released_flow, sidecars, transformers_janus
from checkpoints_convert.convert import (
    AGAIN,
    UNUSED,
    Converted,
    Meter,
    Summary,
    main_dtype,
    no_meter,
    numpy_dtype,
    open_converted,
)
from checkpoints_convert.diffusers_vae import WEIGHTS_STEM, write_vae_config
from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Layout
from checkpoints_convert.readers import open_tensors
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from checkpoints_convert.sources import StrPath
from checkpoints_convert.tree import Shape, leaves
from janus_jax.config import JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.files import naming, reading
from janus_jax.storage import atomic_folder, write_json

WholeLayout = Literal["released", "transformers"]

_IMAGE_TOKEN_ID = 100581
"""The image placeholder's id in Janus-Pro-1B, where neither tokenizer nor source tells it."""


def export(
    source: StrPath,
    target: StrPath,
    layout: WholeLayout,
    meter: Meter = no_meter,
    shard_bytes: int = 5_000_000_000,
) -> Summary:
    """A converted folder -> a folder in the released or transformers' layout, as safetensors with its json files.

    Raises:
      JanusError: the source is no converted folder of a whole model, the layout cannot say what the model is, or
        the target exists or cannot be written.
    """
    from checkpoints_convert.orbax_params import StoredParams

    begin = time.monotonic()
    if layout not in get_args(WholeLayout):
        raise JanusError(f"--layout is {layout!r}; it must be one of {', '.join(get_args(WholeLayout))}.")
    converted = open_converted(source)
    config = converted.config
    if not isinstance(config, ModelConfig):
        raise JanusError(f"{source} holds one part of a model; only a whole one can be written as {layout}.")
    all_leaves = leaves(config)
    units = _layout_of(config, layout).units(all_leaves)
    file = converted.path / "config.json"
    origin = Section(converted.provenance, f"{file}: source")
    image_token_id = sidecars.token_ids(converted.path).get(
        sidecars.IMAGE, origin.get("image_token_id", _IMAGE_TOKEN_ID)
    )
    stored = StoredParams(converted.params_path, all_leaves)
    # A folder whose parameters were kept as they came knows the dtypes of tensors that shared a stack with wider ones.
    with reading(file, AGAIN), naming(file):
        own = {name: numpy_dtype(kind) for name, kind in origin.section("dtypes").values.items()}
    announced = {
        piece.name: (piece.shape, own.get(piece.name, stored.dtype(unit.leaf)))
        for unit in units
        for piece in unit.pieces
    }
    main = main_dtype({leaf.path: stored.dtype(leaf) for leaf in all_leaves}, all_leaves)
    unused, notes = _unused(converted, config, layout, numpy_dtype(main))
    announced |= {name: (tensor.shape, tensor.dtype) for name, tensor in unused.items()}
    if isinstance(config, JanusFlowConfig):
        json_config = released_flow.write_config(config, main)
    elif layout == "released":
        json_config = released.write_config(config, main)
    else:
        json_config = transformers_janus.write_config(config, main, image_token_id)
        if not sidecars.token_ids(converted.path):
            notes.append(f"There is no tokenizer.json to look the image placeholder up in; its id is {image_token_id}.")
    total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in announced.values())
    progress = meter(total)
    with atomic_folder(Path(target)) as folder:
        with _writing(folder, announced, shard_bytes, config) as write:
            for unit in units:
                for name, array in unit.write(stored.read(unit.leaf, unit.layer)):
                    write(name, array)
                    progress(array.size * announced[name][1].itemsize)
            for name, tensor in unused.items():
                write(name, tensor)
                progress(tensor.nbytes)
        write_json(folder / "config.json", json_config)
        if converted.provenance.get("layout") == layout:
            sidecars.copy_sidecars(converted.path, folder)
        else:
            sidecars.copy_sidecars(converted.path, folder, sidecars.TOKENIZER_FILES)
            make = {"released": sidecars.write_released_sidecars, "transformers": sidecars.write_transformers_sidecars}
            make[layout](folder, config)
            sidecars.copy_system_prompt(converted.path, folder)
    return Summary(layout, len(announced), config.num_params, total, tuple(notes), time.monotonic() - begin)


def _layout_of(config: ModelConfig, layout: WholeLayout) -> Layout:
    if isinstance(config, JanusConfig):
        return {"released": released.LAYOUT, "transformers": transformers_janus.LAYOUT}[layout]
    if layout != "released":
        raise JanusError(f"transformers has no JanusFlow, which {config.name} is; write it with --layout released.")
    return released_flow.LAYOUT


@contextlib.contextmanager
def _writing(
    folder: Path, announced: Mapping[str, tuple[Shape, np.dtype]], shard_bytes: int, config: ModelConfig
) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Writes each tensor of a whole model to the file that it belongs to: a JanusFlow's VAE has a folder of its own."""
    vae = config.vae if isinstance(config, JanusFlowConfig) else None
    prefix = released_flow.VAE_PREFIX
    latents = {} if vae is None else {n.removeprefix(prefix): a for n, a in announced.items() if n.startswith(prefix)}
    others = {name: kind for name, kind in announced.items() if name.removeprefix(prefix) not in latents}
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(SafetensorsWriter(folder, others, shard_bytes))
        if vae is None:
            yield writer.write
            return
        within = folder / released_flow.VAE_FOLDER
        within.mkdir()
        write_json(within / "config.json", write_vae_config(vae, config.gen_image_size))
        vae_writer = stack.enter_context(SafetensorsWriter(within, latents, shard_bytes, WEIGHTS_STEM))

        def write(name: str, array: np.ndarray) -> None:
            if name in others:
                writer.write(name, array)
            else:
                vae_writer.write(name.removeprefix(prefix), array)

        yield write


def _unused(
    converted: Converted, config: ModelConfig, layout: str, dtype: np.dtype
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors that only the file wants, and what to say of them."""
    file = converted.path / f"{UNUSED}.safetensors"
    if converted.provenance.get("layout") == layout and file.is_file():
        return open_tensors(file), []
    if layout != "released":
        return {}, []
    if isinstance(config, JanusConfig):
        wanted, what = released.unused(config), "attention pool, counter"
    else:
        wanted, what = released_flow.unused(config), "attention pool"
    zeros = {name: np.zeros(shape, dtype) for name, shape in wanted.items()}
    return zeros, [
        f"{len(zeros)} tensors that released files hold and no network uses ({what}) are zeros: this model has none."
    ]
