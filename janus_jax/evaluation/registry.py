"""Built-in benchmarks and benchmarks that users register, by name."""

from typing import Any

from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.generation import coco, dpg, gedit, geneval, imgedit, mjhq
from janus_jax.evaluation.understanding import gqa, mmbench, mme, mmmu, mmvet, pope, seed, vqav2
from janus_jax.registries import find_registered, register

BENCHMARKS: dict[str, Benchmark[Any]] = {}
"""All registered benchmarks by name. Built-in benchmarks are in the order of the papers' tables."""


def register_benchmark(benchmark: Benchmark[Any]) -> Benchmark[Any]:
    """Registers a benchmark, so that commands and recipes find it by its name, and returns it.

    Raises:
      JanusError: A benchmark of this name is registered already.
    """
    register(BENCHMARKS, benchmark.name, benchmark, "benchmark")
    return benchmark


def find_benchmark(name: str, field: str = "--benchmark") -> Benchmark[Any]:
    """Returns a registered benchmark. See `find_registered`."""
    return find_registered(BENCHMARKS, name, field)


for _module in (pope, mme, gqa, vqav2, mmbench, seed, mmmu, mmvet, geneval, dpg, coco, mjhq, imgedit, gedit):
    register_benchmark(_module.BENCHMARK)
