"""Checks splits in TFDS syntax, such as "train[:1000]" or "train[5%:]"."""

from collections.abc import Mapping
from typing import Any

from janus_jax.errors import JanusError


def check_split(split: str, splits: Mapping[str, Any], dataset: str) -> None:
    """Checks that a dataset has the records of a split.

    Args:
      split: Name of a split, or a slice of one.
      splits: `SplitInfo` of the dataset's splits by name.
      dataset: Name or folder of the dataset, for the message.

    Raises:
      JanusError: The split does not exist, the slice exceeds it, or the slice is empty.
    """
    sizes = ", ".join(f"{name} ({info.num_examples:,} records)" for name, info in splits.items())
    remedy = f"its splits are {sizes}; use one of them, or a slice of one, such as {next(iter(splits), 'train')}[:1]"
    try:
        count = splits[split].num_examples
    # TFDS raises a ValueError for unknown splits, for slices that exceed a split, and for wrong syntax.
    except (ValueError, LookupError) as error:
        raise JanusError(f"{dataset} has no split {split!r}: {remedy}.") from error
    if not count:
        raise JanusError(f"The split {split!r} of {dataset} has no records: {remedy}.")
