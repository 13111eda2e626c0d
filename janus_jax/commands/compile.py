"""Compiles a recipe for a machine that is not here, and says whether it fits and how fast it may be.

    python -m launch.compile --config configs/janus_pro_7b.py --config.stage=2 --topology v5p:8x8x8 \\
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
from ml_collections import config_flags

from janus_jax.commands.config_flag import read_config
from janus_jax.training.config_dicts import from_config

if TYPE_CHECKING:
    from janus_jax.aot.report import Job

_CONFIG = config_flags.DEFINE_config_file("config", None, "file of the recipe, such as configs/janus_pro_7b.py")
_TOPOLOGY = flags.DEFINE_string("topology", None, "of what machine, such as v5p:8x8x8 or h100:4x8", required=True)
_SLICES = flags.DEFINE_integer("slices", 1, "how many TPU slices", lower_bound=1)
_JOB = flags.DEFINE_enum("job", "train", ["train", "generate", "chat", "evaluate"], "what is compiled")
_JSON = flags.DEFINE_string("json", None, "file to write all of it to; - prints it in place of the text")
flags.mark_flag_as_required("config")


def main(_: Sequence[str]) -> None:
    """Compiles, and tells."""
    values = read_config(_CONFIG, "configs/janus_pro_7b.py")

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
