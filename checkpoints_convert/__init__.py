"""Reads and writes checkpoints in the layouts of other projects.

`open_checkpoint` opens a folder in any layout, `convert` converts one layout to another, and `save_checkpoint` saves
parameters in memory. PyTorch is not needed.
"""

from checkpoints_convert.checkpoint import Checkpoint, is_converted, open_checkpoint
from checkpoints_convert.convert import Summary, convert, save_checkpoint

__all__ = ["Checkpoint", "Summary", "convert", "is_converted", "open_checkpoint", "save_checkpoint"]
