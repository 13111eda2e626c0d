"""Input and output axes of weight matrices, derived from their logical axis names."""

from typing import Any, NamedTuple

from janus_jax.training.param_paths import is_boxed, map_named


class MatrixAxes(NamedTuple):
    """Output and input axes of a matrix. The other axes, such as the block axis, index separate matrices.

    Attributes:
      outputs: Output axes; several if heads and head dims are separate axes.
      inputs: Input axes, likewise.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]


def matrix_axes(params: Any) -> dict[str, MatrixAxes]:
    """Finds the weight matrices of a tree, by name.

    Embedding tables, output heads over a vocabulary, norms and biases are excluded.


    Args:
      params: Arrays or shapes, boxed with logical axis names where they have some.
    """
    found: dict[str, MatrixAxes] = {}

    def visit(name: str, leaf: Any) -> None:
        axes = tuple(leaf.names) if is_boxed(leaf) else (None,) * leaf.ndim
        kind = name.rpartition("/")[2]
        num_stacked = int(axes[:1] == ("layers",))
        if kind not in ("weight", "kernel") or "vocab" in axes or len(axes) - num_stacked < 2:
            return
        last = len(axes) - 1
        if kind == "kernel":
            found[name] = MatrixAxes((last,), tuple(range(num_stacked, last)))
            return
        # An axis of head dims belongs to the axis of heads before it. Axes before outputs and inputs index matrices.
        groups: list[tuple[int, ...]] = []
        for axis, logical in enumerate(axes):
            groups.append((*groups.pop(), axis) if logical == "head_dim" and groups else (axis,))
        found[name] = MatrixAxes(groups[-2], groups[-1])

    map_named(visit, params)
    return found
