"""Which parameters train: the tree in two, before the gradient is taken.

What is frozen is no argument of the gradient at all. So it costs no gradient, no optimizer state and no float32 copy,
and lies in memory in the dtype that it is computed in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.training.param_paths import matches


def partition(params: Params, trained: Sequence[str]) -> tuple[Params, Params]:
    """Splits a parameter tree into what the patterns name and the rest.

    Blocks are stacked, so a pattern takes a matrix in all of them.

    Args:
      params: nested dicts of arrays, or of what stands for them: shapes, boxes with logical names, shardings.
      trained: patterns of names: `llm/*`, `*_adaptor/*`, `llm/layers/attn/[qv]/weight`.

    Returns:
      Trained and frozen, both pruned of the branches that they have nothing of.

    Raises:
      JanusError: a pattern names nothing; the sentence tells what there is.
    """
    leaves: Mapping[str, Any] = flatten_dict(params, sep="/")
    for pattern in trained:
        if not any(matches(name, [pattern]) for name in leaves):
            raise JanusError(
                f"The trained parts hold {pattern!r}, which names no parameter; "
                f"the parts are {', '.join(f'{part}/*' for part in sorted(params))}."
            )
    kept = {name: leaf for name, leaf in leaves.items() if matches(name, trained)}
    rest = {name: leaf for name, leaf in leaves.items() if name not in kept}
    return unflatten_dict(kept, sep="/"), unflatten_dict(rest, sep="/")


def merge(trained: Params, frozen: Params) -> Params:
    """The inverse of `partition`."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))
