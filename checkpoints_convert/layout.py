"""A layout: one table from our modules to a file's names, read in both directions."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from checkpoints_convert.tree import Leaf, Shape, View, layer_by_layer
from janus_jax.errors import JanusError

_SUFFIXES = {"kernel": "weight", "weight": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

_SHOWN = 8
"""Of each kind of mismatch, this many are told by name."""


@dataclass(frozen=True)
class Named:
    """A leaf whose name in the file does not follow from its module's, or whose axes differ from the usual."""

    name: str
    pattern: str


Entry = str | tuple[str, ...] | Named
"""A module's name in the file; one name per slice of the leading axis where the file splits it; or a leaf's own."""


@dataclass(frozen=True)
class Piece:
    """One tensor of the file and how it lies in its leaf."""

    name: str
    shape: Shape
    view: View


@dataclass(frozen=True)
class Unit:
    """What is converted at once: a leaf, or one layer of a stacked leaf.

    Attributes:
      leaf: the leaf.
      layer: which layer; None for a leaf that is not stacked.
      pieces: the tensors it is made of: one, or one per slice of its leading axis.
    """

    leaf: Leaf
    layer: int | None
    pieces: tuple[Piece, ...]

    def read(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The unit's numbers, in the leaf's shape; a view of the file where it holds them in one piece."""
        if len(self.pieces) == 1:
            (piece,) = self.pieces
            return piece.view.to_leaf(tensors[piece.name], self.leaf.shape)
        slices = [piece.view.to_leaf(tensors[piece.name], self.leaf.shape[1:]) for piece in self.pieces]
        return np.stack(slices)

    def write(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Name and numbers of each tensor that the file makes of this unit."""
        slices: Iterable[np.ndarray] = [array] if len(self.pieces) == 1 else array
        for piece, part in zip(self.pieces, slices, strict=True):
            yield piece.name, piece.view.to_file(part)


@dataclass(frozen=True)
class Layout:
    """How one kind of checkpoint names what the tree holds.

    Attributes:
      name: as the commands call it.
      table: our module (or leaf) -> the file's. `{x}` in the key stands for any one key of the path and is put
        where the value says `{x}`; `{layer}` is the layer of a stacked leaf. The first key that fits counts.
      dropped: regular expressions for tensors that such files hold and no network here uses.
      tied: a tensor that may be absent where the config ties embeddings, and the one whose numbers it then has.
      renamed: regular expressions for parts of names that older files have, and what newer ones say instead.
    """

    name: str
    table: Mapping[str, Entry]
    dropped: Sequence[str] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Entry]]:
        def compiled(key: str) -> re.Pattern[str]:
            return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(key)))

        return [(compiled(key), entry) for key, entry in self.table.items()]

    def is_dropped(self, name: str) -> bool:
        """Whether such files hold this tensor without a use for it here."""
        return any(re.fullmatch(pattern, name) for pattern in self.dropped)

    def current_name(self, name: str) -> str:
        """What newer files call a tensor of that name."""
        for old, new in self.renamed.items():
            name = re.sub(old, new, name)
        return name

    def units(self, leaves: Iterable[Leaf]) -> list[Unit]:
        """Every unit of these leaves with its tensors, in the order of `layer_by_layer`."""
        return [Unit(leaf, layer, self._pieces(leaf, layer)) for leaf, layer in layer_by_layer(leaves)]

    def manifest(self, leaves: Iterable[Leaf]) -> dict[str, Shape]:
        """Name and shape of every tensor that a file of this layout holds for these leaves."""
        return {piece.name: piece.shape for unit in self.units(leaves) for piece in unit.pieces}

    def _pieces(self, leaf: Leaf, layer: int | None) -> tuple[Piece, ...]:
        module, _, last = leaf.path.rpartition("/")
        for pattern, entry in self._patterns:
            match = pattern.fullmatch(leaf.path) if isinstance(entry, Named) else pattern.fullmatch(module)
            if not match:
                continue
            names = {**match.groupdict(), "layer": layer}
            if isinstance(entry, Named):
                view = View(entry.pattern)
                return (Piece(entry.name.format(**names), view.file_shape(leaf.shape), view),)
            if isinstance(entry, str):
                name = f"{entry.format(**names)}.{_SUFFIXES[last]}"
                return (Piece(name, leaf.view.file_shape(leaf.shape), leaf.view),)
            view = leaf.view.without_first_axis()
            shape = view.file_shape(leaf.shape[1:])
            return tuple(Piece(f"{one.format(**names)}.{_SUFFIXES[last]}", shape, view) for one in entry)
        raise LookupError(f"layout {self.name} has no name for {leaf.path}")

    def with_tied(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors, and under the name of each that is absent because it is tied, the other one's."""
        tied = {name: tensors[other] for name, other in self.tied.items() if other in tensors}
        return tied | dict(tensors)

    def check(self, units: Iterable[Unit], tensors: Mapping[str, np.ndarray], where: str) -> None:
        """Holds the tensors of a checkpoint against what the model needs.

        Raises:
          JanusError: tensors are missing, surplus, misshapen, or not floating-point; one message tells all of them.
        """
        expected = {piece.name: piece.shape for unit in units for piece in unit.pieces}
        missing = [name for name in expected if name not in tensors]
        surplus = [name for name in tensors if name not in expected]
        misshapen = [n for n, shape in expected.items() if n in tensors and tensors[n].shape != shape]
        # ml_dtypes' floating types are of numpy's kind "V".
        whole = [n for n in expected if n in tensors and tensors[n].dtype.kind not in "fV"]
        hints = {name: difflib.get_close_matches(name, surplus, 1, 0.0) for name in missing[:_SHOWN]}
        rivals = {name: difflib.get_close_matches(name, missing, 1, 0.0) for name in surplus[:_SHOWN]}
        faults = [
            _list("missing", missing, lambda n: f"{n}{_nearest(hints[n])}"),
            _list("surplus", surplus, lambda n: f"{n}{_nearest(rivals[n])}"),
            _list("misshapen", misshapen, lambda n: f"{n} is {list(tensors[n].shape)}, not {list(expected[n])}"),
            _list("not floating-point", whole, lambda n: f"{n} is {tensors[n].dtype}"),
        ]
        if told := [fault for fault in faults if fault]:
            raise JanusError(
                f"{where} does not hold the model that its config describes, in the {self.name} layout: "
                f"{'; '.join(told)}. Check that config and weights belong together and that no file is missing."
            )


def _nearest(names: list[str]) -> str:
    return f" (nearest: {names[0]})" if names else ""


def _list(kind: str, names: list[str], describe: Callable[[str], str]) -> str:
    if not names:
        return ""
    told = ", ".join(describe(name) for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {told}{more}"
