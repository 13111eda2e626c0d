"""Benchmarks of generation: a prompt, pictures of it, and what they are worth."""

from typing import Any

from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.generation import coco, dpg, geneval, mjhq

BENCHMARKS: tuple[Benchmark[Any], ...] = tuple(module.BENCHMARK for module in (geneval, dpg, coco, mjhq))
"""In the order of the papers' tables."""
