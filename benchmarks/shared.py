"""Helpers of the benchmarks: random weights for jax and PyTorch, timing, tables, and a description of the machine."""

import functools
import gc
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from checkpoints_convert.layout import Layout, MappedParameter
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.transformers_janus import LAYOUT
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, JanusConfig, LlamaConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.layers import WEIGHT_SCALE
from janus_jax.pretrained import load_params

SMALL = JanusConfig(
    name="12 layers of width 1024",
    llm=LlamaConfig(vocab_size=8192, width=1024, depth=12, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
    gen_head_width=1024,
)
"""Model of the benchmarks on a CPU."""

PROMPT_LENGTH = 32
BOS, PAD, BEGIN_OF_IMAGE = 0, 2, 3

_Result = TypeVar("_Result")


def weights(config: ModelConfig, layout: Layout = LAYOUT) -> Iterator[tuple[MappedParameter, np.ndarray]]:
    """Yields each parameter with deterministic random values, scaled so that activations keep their size."""
    for unit in layout.map(model_parameters(config)):
        random = np.random.default_rng(zlib.crc32(f"{unit.parameter.path} {unit.layer}".encode()))
        uniform = random.random(unit.parameter.shape, np.float32) * 2 - 1
        if unit.parameter.keys[-1] == "scale":
            yield unit, 1 + 0.1 * uniform
        elif unit.parameter.keys[-1] == "bias":
            yield unit, 0.02 * uniform
        elif unit.parameter.keys[-2:] == ("codebook", "embedding"):
            # transformers searches the nearest code without normalizing. Among unit vectors it finds the same code.
            yield unit, uniform / np.linalg.norm(uniform, axis=-1, keepdims=True)
        else:
            yield unit, uniform * np.float32(math.sqrt(3 / math.prod(unit.tensors[0].shape[1:])))


def load_weights(config: ModelConfig, execution: Execution, layout: Layout = LAYOUT) -> Params:
    """Returns the values of `weights` as a model's parameters on the device."""
    leaves = ((unit.parameter.keys, unit.layer, array) for unit, array in weights(config, layout))
    return load_params(leaves, config, execution, mesh=None)


def random_weights(config: ModelConfig, execution: Execution) -> Params:
    """Returns random parameters that are made on the device, which takes seconds for a model of any size."""
    abstract = nn.unbox(abstract_params(make_model(config, execution)))

    @functools.partial(jax.jit, static_argnums=(1, 2, 3))
    def sample(key: jax.Array, shape: tuple[int, ...], dtype: Any, scale: float) -> jax.Array:
        return (scale * jax.random.normal(key, shape)).astype(dtype)

    def make(path: Any, leaf: Any) -> jax.Array:
        names = [entry.key for entry in path]
        if names[-1] in ("scale", "bias"):
            return jnp.full(leaf.shape, names[-1] == "scale", leaf.dtype)
        inputs = leaf.shape[:-1] if names[-1] == "kernel" else leaf.shape[-2 if names[-2] == "out" else -1 :]
        if names[-1] == WEIGHT_SCALE:
            return jnp.full(leaf.shape, 1 / (32 * math.sqrt(config.llm.width)), leaf.dtype)
        # The standard deviation of 32 of a weight of 8 bits belongs to its scale.
        quantized = leaf.dtype.itemsize == 1
        key = jax.random.key(zlib.crc32("/".join(names).encode()))
        return sample(key, leaf.shape, leaf.dtype, 32.0 if quantized else 1 / math.sqrt(math.prod(inputs)))

    params: Params = jax.tree_util.tree_map_with_path(make, abstract)
    return params


def bytes_per_token(config: JanusConfig, execution: Execution) -> int:
    """Returns the size of the weights that a decode step of image generation reads."""
    params = nn.unbox(abstract_params(make_model(config, execution)))
    layers = [block for name, block in params["llm"].items() if name.startswith("layers")]
    leaves = jax.tree.leaves([layers, params["gen_adaptor"], params["gen_head"]])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def copy_weights(module: Any, config: ModelConfig, layout: Layout = LAYOUT) -> None:
    """Copies the values of `weights` to a PyTorch module whose parameters have the names of the layout."""
    import torch

    state = module.state_dict()
    for unit, array in weights(config, layout):
        for name, part in unit.write(array):
            if name in state:
                state[name].copy_(torch.from_numpy(np.ascontiguousarray(part)))


def prompt_batch(tokens: np.ndarray) -> Batch:
    """Returns a batch of prompts of equal length without images."""
    no_image, no_images = np.full_like(tokens, NO_IMAGE), np.zeros((len(tokens), 0, 16, 16, 3), np.uint8)
    return Batch(
        tokens=tokens,
        segment_ids=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
        und_patch_index=no_image,
        gen_token_index=no_image,
        und_images=no_images,
        gen_images=no_images,
    )


def random_prompt(random: np.random.Generator, config: JanusConfig) -> np.ndarray:
    """Returns a prompt of random text tokens that ends with begin-of-image."""
    prompt = random.integers(8, config.llm.vocab_size, (1, PROMPT_LENGTH), np.int32)
    prompt[0, 0], prompt[0, -1] = BOS, BEGIN_OF_IMAGE
    return prompt


def guided_batch(prompt: np.ndarray) -> Batch:
    """Returns a batch of a prompt and its unconditional sequence."""
    unconditional = np.where((prompt == BOS) | (prompt == BEGIN_OF_IMAGE), prompt, PAD)
    return prompt_batch(np.concatenate([prompt, unconditional]))


def timed(run: Callable[[], _Result]) -> tuple[float, _Result]:
    """Returns the seconds that a call takes, and its result."""
    gc.collect()
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def alternate(
    run: Callable[[], Any], reference: Callable[[], Any] | None, pairs: int
) -> tuple[list[float], list[float]]:
    """Runs two functions alternately, so that other load on the machine affects both.

    Returns:
      The seconds of each run of `run` and of `reference`; the second list is empty without a reference.
    """
    seconds: list[float] = []
    reference_seconds: list[float] = []
    for _ in range(pairs):
        seconds.append(timed(run)[0])
        if reference is not None:
            reference_seconds.append(timed(reference)[0])
    return seconds, reference_seconds


def median_ratio(seconds: Sequence[float], reference_seconds: Sequence[float]) -> float:
    """Returns the median ratio of the paired runs of `alternate`."""
    return median(one / other for one, other in zip(seconds, reference_seconds, strict=True))


def has_torch() -> bool:
    """Returns whether torch and transformers are installed."""
    return bool(find_spec("torch") and find_spec("transformers"))


def use_cores(cores: int) -> int:
    """Restricts the process to at most `cores` cores. It must be called before jax starts its threads.

    Returns:
      The number of cores.
    """
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    return min(cores, len(available))


def machine(*packages: str) -> dict[str, Any]:
    """Returns the kind of the device and the versions of jax, flax and the given packages."""
    device = jax.devices()[0]
    return {
        "device": platform.processor() or platform.machine() if device.platform == "cpu" else device.device_kind,
        "versions": {name: version(name) for name in ("jax", "flax", *packages)},
    }


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table in Markdown."""
    head, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (columns, *rows))
    return "\n".join([head, "|---" * len(columns) + "|", *lines])


def insert_table(page: str, marker: str, table: str) -> str:
    """Returns the page with the table between the comment `<!-- marker -->` and the next `<!-- end -->`.

    Raises:
      JanusError: The page does not contain these comments.
    """
    begin, end = f"<!-- {marker} -->", "<!-- end -->"
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise JanusError(f"The page has no place for a table: it must contain {begin} and, after it, {end}.")
    return f"{before}{begin}\n{table}\n{end}{after}"
