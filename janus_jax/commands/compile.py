"""Compiles a recipe for a machine that is not here, and says whether it fits and how fast it may be.

    janus-compile --config janus_pro_7b --config.stage=2 --topology v5p:8x8x8 \\
        --config.resources.attention=splash

A topology is a TPU slice by the sides of its torus (v4, v5e, v5p, v6e, tpu7x), several as 2xv5e:16x16 or with --slices;
or nodes x GPUs, as in h100:4x8, a100:16x8 (40 GB; a100-80 has 80). TPUs need jax[tpu] ('.[tpu]'), GPUs jax[cuda13]
('.[cuda]'), and neither needs the device. docs/scaling.md tells more. Ends with 0 also where it does not fit: the last
line says so.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from absl import flags

from janus_jax.commands import cli
from janus_jax.commands.recipe_flag import define_recipe_flag
from janus_jax.training.config_dicts import from_config

if TYPE_CHECKING:
    from janus_jax.aot.report import Job

_CONFIG = define_recipe_flag()
_TOPOLOGY = flags.DEFINE_string("topology", None, "of what machine, such as v5p:8x8x8 or h100:4x8", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "how many TPU slices", lower_bound=1)
_JOB = flags.DEFINE_enum("job", "train", ["train", "generate", "chat", "evaluate"], "what is compiled")
_JSON = flags.DEFINE_string("json", None, "file to write all of it to; - prints it in place of the text")


def main(_: Sequence[str]) -> None:
    """Compiles, and tells."""
    values = _CONFIG.value

    import jax

    from janus_jax.aot.report import report
    from janus_jax.aot.topologies import find_topology
    from janus_jax.training.recipe import Recipe

    # What is compiled for is not here, and what is here is not to be asked for.
    jax.config.update("jax_platforms", "cpu")
    topology = find_topology(_TOPOLOGY.value, _SLICES.value)
    told = report(from_config(Recipe, values), topology, cast("Job", _JOB.value))
    if _JSON.value == "-":
        print(json.dumps(told.to_json(), indent=2))
        return
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(told.to_json(), indent=2) + "\n", encoding="utf-8")
    print(told.to_text())


def run() -> None:
    """Runs `janus-compile`."""
    cli.run(main, name="janus-compile")
