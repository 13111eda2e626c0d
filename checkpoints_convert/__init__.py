"""Checkpoints from PyTorch's layouts to ours and back.

The names below are what the rest of the project uses; everything but `convert` and `export` (and reading a converted
folder) works without jax.
"""

from checkpoints_convert.convert import (
    Converted,
    Summary,
    convert,
    open_checkpoint,
    open_converted,
    read_config,
    read_params,
    save_converted,
)
from checkpoints_convert.export import export
from checkpoints_convert.sources import Source, detect_layout, is_converted, open_source

__all__ = [
    "Converted",
    "Source",
    "Summary",
    "convert",
    "detect_layout",
    "export",
    "is_converted",
    "open_checkpoint",
    "open_converted",
    "open_source",
    "read_config",
    "read_params",
    "save_converted",
]
