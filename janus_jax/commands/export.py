"""Exports a trained model as a model folder, which janus_jax.load and the other commands read.

    janus-export --workdir runs/janus_pro_1b --out mine

To convert the folder for PyTorch: janus-convert mine mine_released --layout released

--push_to_hub OWNER/NAME also writes a model card and uploads the folder to the Hugging Face hub, with the token of
HF_TOKEN or of `hf auth login`. janus_jax.load("OWNER/NAME") then loads the model.
"""

from collections.abc import Sequence
from typing import cast, get_args

from absl import flags

from janus_jax.buckets import as_path, is_remote
from janus_jax.commands import cli
from janus_jax.config import Dtype
from janus_jax.errors import JanusError
from janus_jax.storage import write_bytes

_WORKDIR = flags.DEFINE_string("workdir", None, "workdir of janus-train", required=True)
_OUT = flags.DEFINE_string("out", None, "model folder to create", required=True)
_STAGE = flags.DEFINE_integer("stage", None, "stage to export (default: the last with checkpoints)", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", get_args(Dtype), "dtype of the exported parameters")
_ADAPTER = flags.DEFINE_bool(
    "adapter", False, "export only the LoRA adapters of a fine-tuning run, in float32 and in peft's layout"
)
_PUSH = flags.DEFINE_string("push_to_hub", None, "OWNER/NAME of a model on the hub to which the folder is uploaded")
_LICENSE = flags.DEFINE_string(
    "license", "other", "license on the model card, as an identifier of the hub; with --push_to_hub"
)
_PRIVATE = flags.DEFINE_bool("private", False, "make a new repository on the hub private; with --push_to_hub")


def main(_: Sequence[str]) -> None:
    """Exports a stage and prints the step of its checkpoint."""
    from checkpoints_convert import hub
    from janus_jax.training.export import export, export_adapter, last_stage
    from janus_jax.training.model_card import model_card

    cli.use_cpu()
    workdir, out = as_path(_WORKDIR.value), as_path(_OUT.value)
    stage = _STAGE.value or last_stage(workdir)
    if _PUSH.value is not None:
        if is_remote(out):
            raise JanusError(f"--push_to_hub needs a local folder, and --out is {out}; give a local --out.")
        # Before the export, which takes long.
        hub.create_repository(_PUSH.value, private=_PRIVATE.value)
    if _ADAPTER.value:
        step = export_adapter(workdir, stage, out)
    else:
        step = export(workdir, stage, out, cast(Dtype, _DTYPE.value), progress=True)
    print(f"{out}: stage {stage} at step {step}")
    if _PUSH.value is not None:
        card = model_card(workdir, stage, step, _PUSH.value, license_id=_LICENSE.value, adapter=_ADAPTER.value)
        write_bytes(out / "README.md", card.encode())
        print(hub.push(out, _PUSH.value, f"Stage {stage} at step {step}"))


def run() -> None:
    """Runs `janus-export`."""
    cli.run(main, name="janus-export")
