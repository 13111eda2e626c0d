"""Reads and writes checkpoints in the layouts of other projects.

`open_checkpoint` opens a folder in any layout, `convert` converts a folder to another layout, and `save_checkpoint`
writes a parameter tree to a folder. PyTorch is not needed.
"""

from checkpoints_convert.checkpoint import Checkpoint, is_converted, open_checkpoint
from checkpoints_convert.convert import Summary, convert, save_checkpoint

__all__ = ["Checkpoint", "Summary", "convert", "is_converted", "open_checkpoint", "save_checkpoint"]
