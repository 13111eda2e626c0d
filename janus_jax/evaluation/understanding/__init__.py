"""Benchmarks of understanding: a picture, a question, and what the answer is worth."""

from typing import Any

from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.understanding import gqa, mmbench, mme, mmmu, mmvet, pope, seed, vqav2

BENCHMARKS: tuple[Benchmark[Any], ...] = tuple(
    module.BENCHMARK for module in (pope, mme, gqa, vqav2, mmbench, seed, mmmu, mmvet)
)
"""In the order of the papers' table."""
