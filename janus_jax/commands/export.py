"""Exports a trained model as a model folder, which janus_jax.load and the other commands read.

    janus-export --workdir runs/janus_pro_1b --out mine

To convert the folder for PyTorch: janus-convert mine mine_released --layout released
"""

from collections.abc import Sequence
from typing import cast, get_args

from absl import flags

from janus_jax.buckets import as_path
from janus_jax.commands import cli
from janus_jax.config import Dtype

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of janus-train", required=True)
_OUT = flags.DEFINE_string("out", None, "model folder to create", required=True)
_STAGE = flags.DEFINE_integer("stage", None, "stage to export (default: the last with checkpoints)", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", get_args(Dtype), "dtype of the exported parameters")


def main(_: Sequence[str]) -> None:
    """Exports a stage and prints the step of its checkpoint."""
    from janus_jax.training.export import export, last_stage

    cli.use_cpu()
    workdir, out = as_path(_WORKDIR.value), as_path(_OUT.value)
    stage = _STAGE.value or last_stage(workdir)
    step = export(workdir, stage, out, cast(Dtype, _DTYPE.value), progress=True)
    print(f"{out}: stage {stage} at step {step}")


def run() -> None:
    """Runs `janus-export`."""
    cli.run(main, name="janus-export")
