"""What several benchmarks need: the same random weights for both sides, and the machine's name."""

import math
import os
import platform
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from checkpoints_convert.layout import Layout, MappedParameter
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.transformers_janus import LAYOUT
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import ModelConfig


def weights(config: ModelConfig, layout: Layout = LAYOUT) -> Iterator[tuple[MappedParameter, np.ndarray]]:
    """Random numbers for every unit of the tree, of the scale at which signals keep theirs; always the same."""
    for unit in layout.map(model_parameters(config)):
        random = np.random.default_rng(zlib.crc32(f"{unit.parameter.path} {unit.layer}".encode()))
        uniform = random.random(unit.parameter.shape, np.float32) * 2 - 1
        if unit.parameter.keys[-1] == "scale":
            yield unit, 1 + 0.1 * uniform
        elif unit.parameter.keys[-1] == "bias":
            yield unit, 0.02 * uniform
        elif unit.parameter.keys[-2:] == ("codebook", "embedding"):
            # transformers looks for the nearest code without normalising; so both find the same.
            yield unit, uniform / np.linalg.norm(uniform, axis=-1, keepdims=True)
        else:
            yield unit, uniform * np.float32(math.sqrt(3 / math.prod(unit.tensors[0].shape[1:])))


def prompt_batch(tokens: np.ndarray) -> Batch:
    """Prompts of one length, without images."""
    rows, length = tokens.shape
    no_image = np.full_like(tokens, NO_IMAGE)
    return Batch(
        tokens=tokens,
        segment_ids=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        und_patch_index=no_image,
        gen_token_index=no_image,
        und_images=np.zeros((rows, 0, 16, 16, 3), np.uint8),
        gen_images=np.zeros((rows, 0, 16, 16, 3), np.uint8),
    )


def use_cores(cores: int) -> int:
    """Keeps the process to so many cores, or to those there are; their number. To call before jax makes its threads."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    return min(cores, len(available))


def machine(*peers: str) -> dict[str, Any]:
    """What a report says of where it was made.

    Args:
      peers: packages that took part besides our own.
    """
    device = jax.devices()[0]
    return {
        "device": platform.processor() or platform.machine() if device.platform == "cpu" else device.device_kind,
        "versions": {name: version(name) for name in ("jax", "flax", *peers)},
    }
