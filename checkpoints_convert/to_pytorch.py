"""Writes a converted folder back as safetensors with its json files, for PyTorch.

    python -m checkpoints_convert.to_pytorch SRC DST --layout released|transformers

SRC is a folder that from_pytorch or a training run made. DST is made; it appears when it is complete.
"""

import math
from collections.abc import Sequence
from typing import cast, get_args

from absl import flags

from checkpoints_convert.commands import meter
from checkpoints_convert.export import WholeLayout, export
from janus_jax.commands import cli

_LAYOUT = flags.DEFINE_enum("layout", None, get_args(WholeLayout), "names and config to write", required=True)
_SHARD = flags.DEFINE_float("shard_gb", 5.0, "largest size of one file")
flags.register_validator("shard_gb", lambda size: 0.001 <= size < math.inf, "must be a number of at least 0.001")


def main(arguments: Sequence[str]) -> None:
    """Writes SRC as DST and prints a summary."""
    source, target = arguments
    summary = export(source, target, cast(WholeLayout, _LAYOUT.value), meter, int(_SHARD.value * 1e9))
    print(f"{target}: in the {summary}")


if __name__ == "__main__":
    cli.run(main, positional=("SRC", "DST"))
