"""Computes the speed of image generation on accelerators that are not attached, from data sheets.

    python -m benchmarks.roofline

A pass of the model reads the weights and the KV cache from memory and computes the products. Its time is that of the
slower of the two, each at `EFFICIENCY` of the data sheet's value. The VQ decoder counts with its FLOPs. The benchmark
prints two tables in Markdown, for one device and bfloat16: pictures per hour with one token per pass, and the time of a
pass over a window of positions relative to a pass over one. Nothing is measured; docs/performance.md marks the tables.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.shared import bytes_per_token, markdown_table
from janus_jax.accelerators import ACCELERATORS, Accelerator, peak_flops
from janus_jax.commands import cli
from janus_jax.config import Execution, JanusConfig, janus_preset
from janus_jax.generation.padding import CACHE_STEP, round_up
from janus_jax.models.factory import abstract_params
from janus_jax.models.janus import Janus
from janus_jax.models.vq import VQTokenizer

EFFICIENCY = 0.8
PROMPT_LENGTH = 64
PRESETS = ("janus_pro_1b", "janus_pro_7b")
CHIPS = ("v5e", "v6e", "v5p", "a100-80", "h100", "h200")
BATCHES = (1, 8, 32, 128)
WINDOWS = (4, 8, 16, 32)
EXECUTION = Execution("bfloat16", "bfloat16", layers="unrolled")


def pass_seconds(config: JanusConfig, chip: Accelerator, images: int, window: int, slots: int) -> float:
    """Returns the time of a pass over `window` positions of `images` images and their unconditional sequences."""
    llm, sequences = config.llm, 2 * images
    weights = _weight_bytes(config)
    cache = sequences * slots * llm.depth * 2 * llm.num_kv_heads * llm.head_dim * 2
    rows = sequences * window
    # Two FLOPs per weight of two bytes and row; scores and weighted values.
    flops = rows * (weights + 4 * llm.depth * llm.num_heads * llm.head_dim * slots)
    return max((weights + cache) / chip.memory_bandwidth, flops / _peak(chip)) / EFFICIENCY


def picture_seconds(config: JanusConfig, chip: Accelerator, images: int) -> float:
    """Returns the time of a batch of images with one token per pass, from the prompt to pixels."""
    slots = [min(round_up(length, CACHE_STEP), _max_slots(config)) for length in _lengths(config)]
    times = {size: pass_seconds(config, chip, images, 1, size) for size in set(slots)}
    decoder = images * decoder_flops(config) / (EFFICIENCY * _peak(chip))
    return sum(times[size] for size in slots) + pass_seconds(config, chip, 1, PROMPT_LENGTH, 0) + decoder


def memory(config: JanusConfig, images: int) -> int:
    """Returns the bytes of all parameters and of the cache at its largest."""
    llm = config.llm
    cache = 2 * images * _max_slots(config) * llm.depth * 2 * llm.num_kv_heads * llm.head_dim * 2
    return cache + _param_bytes(config)


@functools.cache
def _weight_bytes(config: JanusConfig) -> int:
    return bytes_per_token(config, EXECUTION)


@functools.cache
def _param_bytes(config: JanusConfig) -> int:
    params = jax.tree.leaves(abstract_params(Janus(config, EXECUTION)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in params)


@functools.cache
def decoder_flops(config: JanusConfig) -> float:
    """Returns the FLOPs of the VQ decoder for one image."""
    tokenizer = VQTokenizer(config.gen_encoder, EXECUTION)
    tokens = jax.ShapeDtypeStruct((1, config.num_gen_tokens), jnp.int32)
    params = jax.eval_shape(functools.partial(tokenizer.init, method=VQTokenizer.decode), jax.random.key(0), tokens)
    decode = jax.jit(functools.partial(tokenizer.apply, method=VQTokenizer.decode))
    costs: Any = decode.lower(params, tokens).cost_analysis()
    return float(costs["flops"])


def _peak(chip: Accelerator) -> float:
    peak = peak_flops(chip.kind, "bfloat16")
    assert peak is not None
    return peak


def _lengths(config: JanusConfig) -> range:
    """Returns the number of used slots at each pass."""
    return range(PROMPT_LENGTH + 1, PROMPT_LENGTH + config.num_gen_tokens)


def _max_slots(config: JanusConfig) -> int:
    return PROMPT_LENGTH + config.num_gen_tokens - 1


def pictures_per_hour() -> Iterator[Sequence[str]]:
    """Yields the rows of the table of pictures per hour."""
    for preset in PRESETS:
        config = janus_preset(preset)
        for name in CHIPS:
            chip = ACCELERATORS[name]
            fits = [memory(config, images) < chip.usable_memory for images in BATCHES]
            counts = [3600 * images / picture_seconds(config, chip, images) for images in BATCHES]
            yield config.name, name, *(f"{n:,.0f}" if ok else "-" for n, ok in zip(counts, fits, strict=True))


def window_costs() -> Iterator[Sequence[str]]:
    """Yields the rows of the table of windows."""
    for preset in PRESETS:
        config = janus_preset(preset)
        for name in ("v5e", "h200"):
            chip = ACCELERATORS[name]
            for images in (1, 4, 8, 16, 32):
                if memory(config, images) < chip.usable_memory:
                    times = [pass_seconds(config, chip, images, window, 640) for window in (1, *WINDOWS)]
                    yield config.name, name, str(images), *(f"{time / times[0]:.2f}" for time in times[1:])


def main(_: Sequence[str]) -> None:
    """Prints the tables."""
    batches = [f"batch {images}" for images in BATCHES]
    print(markdown_table(["model", "chip", *batches], pictures_per_hour()))
    print()
    print(markdown_table(["model", "chip", "images", *(f"window {window}" for window in WINDOWS)], window_costs()))


if __name__ == "__main__":
    cli.run(main)
