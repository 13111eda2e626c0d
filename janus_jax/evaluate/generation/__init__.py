"""Benchmarks of generation: a prompt, pictures of it, and what they are worth."""

from typing import Any

from janus_jax.evaluate.benchmark import Benchmark
from janus_jax.evaluate.generation import coco, dpg, geneval, mjhq, shapes

BENCHMARKS: tuple[Benchmark[Any], ...] = tuple(module.BENCHMARK for module in (geneval, dpg, coco, mjhq, shapes))
"""In the order of the papers' tables; the embedded world last."""
