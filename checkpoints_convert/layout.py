"""Layouts: tables that map the parameters of a model to the tensors of a file, for reading and for writing."""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import Parameter, Shape, layer_by_layer
from janus_jax.config import WEIGHT_SCALE
from janus_jax.errors import JanusError

_SUFFIXES = {"kernel": "weight", "weight": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_SUFFIXES |= {WEIGHT_SCALE: WEIGHT_SCALE}
_SCALE_SUFFIX = WEIGHT_SCALE.removeprefix("weight")
_DEFAULT_PATTERNS = {1: "a -> a", 2: "a b -> a b", 4: "h w i o -> o i h w"}
"""Default pattern by number of axes. Files store the output channels of convolution kernels first."""

_MAX_LISTED = 8
"""Largest number of tensors that an error message lists for each kind of mismatch."""

Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Rearrangement:
    """The reshape and transposition that turn a parameter into a tensor of a file, and back.

    Attributes:
      pattern: Axes of the parameter and of the tensor, in einops' notation, such as `"h k d -> (h k) d"`.
    """

    pattern: str

    def file_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the tensor in the file for a parameter of this shape."""
        names, groups = _axes(self.pattern)
        sizes = dict(zip(names, shape, strict=True))
        return tuple(math.prod(sizes[name] for name in group) for group in groups)

    def from_file(self, tensor: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns the tensor as a parameter of this shape; a view if the tensor is contiguous."""
        names, groups = _axes(self.pattern)
        sizes = dict(zip(names, shape, strict=True))
        order = [name for group in groups for name in group]
        return tensor.reshape([sizes[name] for name in order]).transpose([order.index(name) for name in names])

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Returns the tensor that the file stores for the parameter."""
        names, groups = _axes(self.pattern)
        order = [name for group in groups for name in group]
        return array.transpose([names.index(name) for name in order]).reshape(self.file_shape(array.shape))


def _scale_pattern(pattern: str, num_outputs: int) -> str:
    """Returns the pattern of a weight's scales. They have the first `num_outputs` axes of the weight."""
    names, groups = _axes(pattern)
    outputs = names[:num_outputs]
    kept = [" ".join(name for name in group if name in outputs) for group in groups]
    return f"{' '.join(outputs)} -> {' '.join(f'({group})' for group in kept if group)}"


@functools.cache
def _axes(pattern: str) -> tuple[list[str], list[list[str]]]:
    parameter, file = pattern.split("->")
    groups = re.findall(r"\(([^)]*)\)|(\S+)", file)
    return parameter.split(), [(many or one).split() if one != "1" else [] for many, one in groups]


@dataclass(frozen=True)
class Tensor:
    """Table entry of a single parameter.

    Attributes:
      name: The tensor's name in the file, or one name per slice of the parameter's leading axis.
      pattern: Rearrangement of the parameter, or of one slice if there are several names.
    """

    name: str | tuple[str, ...]
    pattern: str


Table = Mapping[str, str | Tensor]
"""Tensor names by the path of a parameter or module.

If the value is a `Tensor`, the key is the path of a parameter. If the value is a string, the key is the path of a
module, and the string is the name of the module in the file. The file calls the module's `kernel`, `weight`, `scale` or
`embedding` "weight" and stores it with the default pattern. The scales of a quantized weight are in a tensor with the
name of the weight's tensor and the suffix "_scale".

In a key, `{x}` matches any component of a path. In a name, `{x}` is replaced by that component, and `{layer}` by the
layer of a stacked parameter. The first matching key is used.
"""


def pointwise(module: str, name: str) -> Table:
    """Returns the tensor names of a linear layer that the file stores as a 1x1 convolution."""
    return {f"{module}/weight": Tensor(f"{name}.weight", "o i -> o i 1 1"), module: name}


@dataclass(frozen=True)
class FileTensor:
    """A tensor of a file, and the rearrangement between it and a parameter or a slice of a parameter."""

    name: str
    shape: Shape
    rearrangement: Rearrangement


@dataclass(frozen=True)
class MappedParameter:
    """A parameter, or one layer of a stacked parameter, with its tensors in the file.

    Attributes:
      layer: The layer; None if the parameter is not stacked.
      tensors: One tensor, or one per slice of the parameter's leading axis.
    """

    parameter: Parameter
    layer: int | None
    tensors: tuple[FileTensor, ...]

    def read(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the values in the parameter's shape. They are a view if one contiguous tensor holds them."""
        shape = self.parameter.shape
        if len(self.tensors) == 1:
            (one,) = self.tensors
            return one.rearrangement.from_file(tensors[one.name], shape)
        return np.stack([one.rearrangement.from_file(tensors[one.name], shape[1:]) for one in self.tensors])

    def write(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the name and values of each tensor to write to the file."""
        slices: Iterable[np.ndarray] = [array] if len(self.tensors) == 1 else array
        for tensor, part in zip(self.tensors, slices, strict=True):
            yield tensor.name, tensor.rearrangement.to_file(part)


def _no_tensors(config: Any) -> Shapes:
    return {}


@dataclass(frozen=True)
class Layout:
    """The names and the config.json of one kind of checkpoint.

    Attributes:
      name: Name of the layout in commands and messages.
      table: Tensor names by parameter.
      read_config: Returns the config, given config.json (empty if absent) and the shapes of all tensors.
      write_config: Returns the content of config.json, given the config, the name of the main dtype and the id of the
        image placeholder token. None if the layout is not written.
      marker: Name of a tensor that only this layout has. None if config.json names the layout.
      unused: Regular expressions of tensor names that files may contain and janus_jax does not use.
      unused_shapes: Returns names and shapes of tensors that files must contain and janus_jax does not use.
      tied: Names of tensors that are absent if embeddings are tied, and of the tensors that hold the same values.
      renamed: Regular expressions for parts of tensor names in older files, and their replacements.
    """

    name: str
    table: Table
    read_config: Callable[[JsonObject, Shapes], Any]
    write_config: Callable[[Any, str, int], dict[str, Any]] | None = None
    marker: str | None = None
    unused: Sequence[str] = ()
    unused_shapes: Callable[[Any], Shapes] = _no_tensors
    tied: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str | Tensor]]:
        def compiled(key: str) -> re.Pattern[str]:
            return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(key)))

        return [(compiled(key), entry) for key, entry in self.table.items()]

    def is_unused(self, name: str) -> bool:
        """Returns whether janus_jax does not use this tensor."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)

    def current_name(self, name: str) -> str:
        """Returns the name that new files use for a tensor of an older file."""
        for old, new in self.renamed.items():
            name = re.sub(old, new, name)
        return name

    def map(self, parameters: Iterable[Parameter]) -> list[MappedParameter]:
        """Returns the tensors of every parameter, in the order of `layer_by_layer`."""
        return [
            MappedParameter(parameter, layer, self._tensors(parameter, layer))
            for parameter, layer in layer_by_layer(parameters)
        ]

    def manifest(self, parameters: Iterable[Parameter]) -> dict[str, Shape]:
        """Returns names and shapes of the tensors that store these parameters."""
        return {tensor.name: tensor.shape for mapped in self.map(parameters) for tensor in mapped.tensors}

    def _tensors(self, parameter: Parameter, layer: int | None) -> tuple[FileTensor, ...]:
        module, _, last = parameter.path.rpartition("/")
        # The entry of a weight is also that of its scales.
        path, suffix = (f"{module}/weight", _SCALE_SUFFIX) if last == WEIGHT_SCALE else (parameter.path, "")
        for key, entry in self._patterns:
            match = key.fullmatch(path if isinstance(entry, Tensor) else module)
            if not match:
                continue
            if isinstance(entry, str):
                entry, suffix = Tensor(f"{entry}.{_SUFFIXES[last]}", _DEFAULT_PATTERNS[len(parameter.shape)]), ""
            names, pattern = entry.name, entry.pattern
            shape = parameter.shape if isinstance(names, str) else parameter.shape[1:]
            rearrangement = Rearrangement(_scale_pattern(pattern, len(shape)) if suffix else pattern)
            file_shape, fields = rearrangement.file_shape(shape), {**match.groupdict(), "layer": layer}
            names = (names,) if isinstance(names, str) else names
            return tuple(FileTensor(name.format(**fields) + suffix, file_shape, rearrangement) for name in names)
        raise LookupError(f"The {self.name} layout has no name for {parameter.path}; add it to the layout's table.")

    def with_tied(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the given tensors, plus those that are absent because they are tied."""
        tied = {name: tensors[other] for name, other in self.tied.items() if other in tensors}
        return tied | dict(tensors)

    def check(self, mapped: Iterable[MappedParameter], tensors: Mapping[str, np.ndarray], where: str) -> None:
        """Checks that a checkpoint has the tensors of the model.

        Raises:
          JanusError: Tensors are missing, surplus, misshapen or of a wrong dtype. One message lists all of them.
        """
        dtypes = {tensor.name: one.parameter.dtype for one in mapped for tensor in one.tensors}
        expected = {tensor.name: tensor.shape for one in mapped for tensor in one.tensors}
        missing = [name for name in expected if name not in tensors]
        surplus = [name for name in tensors if name not in expected]
        misshapen = [n for n, shape in expected.items() if n in tensors and tensors[n].shape != shape]
        present = {name: tensors[name].dtype for name in expected if name in tensors}
        integers = [n for n, dtype in present.items() if dtypes[n] is None and not _is_floating(dtype)]
        wrong = [n for n, dtype in present.items() if dtypes[n] not in (None, dtype)]
        mismatches = [
            _list("missing", missing, lambda n: f"{n}{_nearest(n, surplus)}"),
            _list("surplus", surplus, lambda n: f"{n}{_nearest(n, missing)}"),
            _list("misshapen", misshapen, lambda n: f"{n} is {list(tensors[n].shape)}, not {list(expected[n])}"),
            _list("not floating-point of 16 bits or more", integers, lambda n: f"{n} is {tensors[n].dtype}"),
            _list("of another dtype", wrong, lambda n: f"{n} is {tensors[n].dtype}, not {dtypes[n]}"),
        ]
        if found := [mismatch for mismatch in mismatches if mismatch]:
            raise JanusError(
                f"{where} does not hold the model that its config describes, in the {self.name} layout: "
                f"{'; '.join(found)}. Check that config and weights belong together and that no file is missing."
            )


def _is_floating(dtype: np.dtype) -> bool:
    """Returns whether a dtype is a floating-point type of at least 16 bits. Narrower ones need scales."""
    # The floating-point types of ml_dtypes have numpy's kind "V".
    return dtype.kind in "fV" and dtype.itemsize > 1


def _nearest(name: str, others: list[str]) -> str:
    return "".join(f" (nearest: {other})" for other in difflib.get_close_matches(name, others, 1, 0.0))


def _list(kind: str, names: list[str], describe: Callable[[str], str]) -> str:
    if not names:
        return ""
    listed = ", ".join(describe(name) for name in names[:_MAX_LISTED])
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{len(names)} {kind}: {listed}{more}"
