"""Which parameters are matrices, and which of their axes are outputs and inputs: their logical names tell."""

from typing import Any, NamedTuple

from janus_jax.training.param_paths import is_boxed, map_named


class MatrixAxes(NamedTuple):
    """The axes of a matrix by what they are; all others count matrices of their own, such as blocks that are stacked.

    Attributes:
      outputs, inputs: heads and the numbers within them are several.
    """

    outputs: tuple[int, ...]
    inputs: tuple[int, ...]


def matrix_axes(params: Any) -> dict[str, MatrixAxes]:
    """The matrices of a tree, by name: neither tables nor heads over a vocabulary, norms and biases are any.

    Args:
      params: arrays or shapes, with the logical names of their axes where they have some.
    """
    found: dict[str, MatrixAxes] = {}

    def visit(name: str, leaf: Any) -> None:
        axes = tuple(leaf.names) if is_boxed(leaf) else (None,) * leaf.ndim
        kind = name.rpartition("/")[2]
        stack = axes[:1] == ("layers",)
        if kind not in ("weight", "kernel") or "vocab" in axes or len(axes) - stack < 2:
            return
        last = len(axes) - 1
        if kind == "kernel":
            found[name] = MatrixAxes((last,), tuple(range(stack, last)))
            return
        # A head's numbers belong to its head; what stands before outputs and inputs are matrices of their own.
        units: list[tuple[int, ...]] = []
        for axis, logical in enumerate(axes):
            units.append((*units.pop(), axis) if logical == "head_dim" and units else (axis,))
        found[name] = MatrixAxes(units[-2], units[-1])

    map_named(visit, params)
    return found
