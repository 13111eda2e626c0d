"""All benchmarks by name. A new one is a file of its own, and its name in its room's `BENCHMARKS`."""

from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluate.benchmark import Benchmark
from janus_jax.evaluate.generation import BENCHMARKS as GENERATION
from janus_jax.evaluate.understanding import BENCHMARKS as UNDERSTANDING

REGISTRY: dict[str, Benchmark[Any]] = {benchmark.name: benchmark for benchmark in (*UNDERSTANDING, *GENERATION)}


def benchmark(name: str) -> Benchmark[Any]:
    """The benchmark of that name.

    Raises:
      JanusError: there is none.
    """
    if name not in REGISTRY:
        raise JanusError(f"There is no benchmark {name!r}; there are {', '.join(REGISTRY)}.")
    return REGISTRY[name]
