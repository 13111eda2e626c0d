"""Shared by benchmarks: random weights for both sides, alternating timing, and a description of the machine."""

import gc
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any, TypeVar

import jax
import numpy as np

from checkpoints_convert.layout import Layout, MappedParameter
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.transformers_janus import LAYOUT
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import ModelConfig

_Result = TypeVar("_Result")


def weights(config: ModelConfig, layout: Layout = LAYOUT) -> Iterator[tuple[MappedParameter, np.ndarray]]:
    """Yields deterministic random values for each parameter, scaled to keep the size of activations."""
    for unit in layout.map(model_parameters(config)):
        random = np.random.default_rng(zlib.crc32(f"{unit.parameter.path} {unit.layer}".encode()))
        uniform = random.random(unit.parameter.shape, np.float32) * 2 - 1
        if unit.parameter.keys[-1] == "scale":
            yield unit, 1 + 0.1 * uniform
        elif unit.parameter.keys[-1] == "bias":
            yield unit, 0.02 * uniform
        elif unit.parameter.keys[-2:] == ("codebook", "embedding"):
            # transformers searches the nearest code without normalizing; on unit vectors both find the same code.
            yield unit, uniform / np.linalg.norm(uniform, axis=-1, keepdims=True)
        else:
            yield unit, uniform * np.float32(math.sqrt(3 / math.prod(unit.tensors[0].shape[1:])))


def prompt_batch(tokens: np.ndarray) -> Batch:
    """Batch of prompts of equal length without images."""
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


def timed(run: Callable[[], _Result]) -> tuple[float, _Result]:
    """Returns the seconds that a call takes, and its result."""
    gc.collect()
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def alternate(ours: Callable[[], Any], peer: Callable[[], Any] | None, pairs: int) -> tuple[list[float], list[float]]:
    """Times our computation and the peer's alternately, so that other load on the machine affects both."""
    seconds: list[float] = []
    peer_seconds: list[float] = []
    for _ in range(pairs):
        seconds.append(timed(ours)[0])
        if peer is not None:
            peer_seconds.append(timed(peer)[0])
    return seconds, peer_seconds


def median_ratio(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Returns the median of the ratios of neighboring runs."""
    return median(one / other for one, other in zip(ours, peer, strict=True))


def has_torch() -> bool:
    """Whether the packages of the peer are installed."""
    return bool(find_spec("torch") and find_spec("transformers"))


def use_cores(cores: int) -> int:
    """Restricts the process to some cores and returns their number. Call it before jax starts its threads."""
    available = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, available[:cores])
    return min(cores, len(available))


def machine(*peers: str) -> dict[str, Any]:
    """Returns the device and the versions of jax, flax and the peer's packages."""
    device = jax.devices()[0]
    return {
        "device": platform.processor() or platform.machine() if device.platform == "cpu" else device.device_kind,
        "versions": {name: version(name) for name in ("jax", "flax", *peers)},
    }
