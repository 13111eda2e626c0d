"""Compiles a recipe for hardware that is not attached, and reports memory, traffic and step time.

    janus-compile --config janus_pro_7b --config.stage=2 --topology v5p:8x8x8 \\
        --config.resources.attention=splash

A topology is a TPU slice, given by the sides of its torus (v4, v5e, v5p, v6e, tpu7x), or a number of nodes times the
GPUs per node (h100:4x8, h200:1x8, l4:1x1, a100:16x8 with 40 GB, a100-80:16x8 with 80 GB). Two TPU slices are
2xv5e:16x16, or --slices 2. TPUs need the package jax[tpu] ('.[tpu]') and GPUs jax[cuda13] ('.[cuda]'), but no device.
The last line of the output says whether the recipe fits; the exit code is 0 in both cases. See docs/scaling.md.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.config import Quantization
from janus_jax.training.config_dicts import from_config

if TYPE_CHECKING:
    from janus_jax.aot.report import Workload

_CONFIG = define_recipe_flag()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "hardware to compile for, such as v5p:8x8x8 or h100:4x8", required=True
)
_SLICES = flags.DEFINE_integer("slices", 1, "number of TPU slices", lower_bound=1)
_WORKLOAD = flags.DEFINE_enum("workload", "train", ["train", "generate", "chat", "evaluate"], "program to compile")
_QUANTIZATION = flags.DEFINE_enum(
    "quantization", "none", get_args(Quantization), "weights of 8 bits, for workloads of sampling"
)
_JSON = flags.DEFINE_string("json", None, "file for the report as JSON; - prints JSON instead of text")


def main(_: Sequence[str]) -> None:
    """Compiles the program and prints the report."""
    values = _CONFIG.value

    from janus_jax.aot.report import compile_report, report_text
    from janus_jax.aot.topologies import find_topology
    from janus_jax.training.recipe import Recipe

    cli.use_cpu()
    topology = find_topology(_TOPOLOGY.value, _SLICES.value)
    report = compile_report(
        from_config(Recipe, values),
        topology,
        cast("Workload", _WORKLOAD.value),
        quantization=cast(Quantization, _QUANTIZATION.value),
    )
    as_json = json.dumps(report, indent=2)
    if _JSON.value == "-":
        print(as_json)
        return
    if _JSON.value:
        Path(_JSON.value).write_text(as_json + "\n", encoding="utf-8")
    print(report_text(report))


def run() -> None:
    """Runs `janus-compile`."""
    cli.run(main, name="janus-compile")
