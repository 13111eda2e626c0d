"""Benchmarks by name: the built-in ones and those that users register."""

import importlib
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.generation import coco, dpg, geneval, mjhq
from janus_jax.evaluation.understanding import gqa, mmbench, mme, mmmu, mmvet, pope, seed, vqav2

BENCHMARKS: dict[str, Benchmark[Any]] = {}
"""All registered benchmarks by name; the built-in ones in the order of the papers' tables."""


def register_benchmark(benchmark: Benchmark[Any]) -> Benchmark[Any]:
    """Adds a benchmark, so that commands and recipes find it by its name.

    Raises:
      JanusError: Another benchmark has this name.
    """
    if benchmark.name in BENCHMARKS:
        raise JanusError(f"A benchmark named {benchmark.name} is registered already; choose another name.")
    BENCHMARKS[benchmark.name] = benchmark
    return benchmark


def find_benchmark(name: str) -> Benchmark[Any]:
    """Returns a benchmark by its name. `MODULE:NAME` imports the module first, which then registers the benchmark.

    Raises:
      JanusError: The module cannot be imported, or no benchmark with this name is registered.
    """
    module, _, name = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise JanusError(f"--benchmark {module}:{name}: {error}; give an importable module.") from error
    if name not in BENCHMARKS:
        raise JanusError(f"There is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}, or give MODULE:NAME.")
    return BENCHMARKS[name]


for _module in (pope, mme, gqa, vqav2, mmbench, seed, mmmu, mmvet, geneval, dpg, coco, mjhq):
    register_benchmark(_module.BENCHMARK)
