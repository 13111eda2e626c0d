"""All benchmarks by name. A new one is a file of its own, and its name in its room's `BENCHMARKS`."""

import importlib
from typing import Any

from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.generation import BENCHMARKS as GENERATION
from janus_jax.evaluation.understanding import BENCHMARKS as UNDERSTANDING

REGISTRY: dict[str, Benchmark[Any]] = {benchmark.name: benchmark for benchmark in (*UNDERSTANDING, *GENERATION)}


def benchmark(name: str) -> Benchmark[Any]:
    """Finds a benchmark by its registered name, or as `MODULE:ATTRIBUTE`.

    Raises:
      JanusError: No such benchmark is registered, or the module or attribute cannot be imported.
    """
    module, _, attribute = name.rpartition(":")
    if module:
        try:
            found: Benchmark[Any] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise JanusError(f"--benchmark {name}: {error}; give MODULE:ATTRIBUTE of a Benchmark.") from error
        return found
    if name not in REGISTRY:
        raise JanusError(f"There is no benchmark {name!r}; there are {', '.join(REGISTRY)}.")
    return REGISTRY[name]
