"""Loads parameters that have the tensor names and orientations of published PyTorch files."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from janus_jax.errors import JanusError

Shapes = dict[tuple[str, ...], tuple[int, ...]]


def param_shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> Shapes:
    """Returns the shapes of a module's parameters by path. Joined by dots, a path is a tensor's name."""
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}


def load_params(tensors: Mapping[str, np.ndarray], shapes: Shapes, expected_file: str) -> dict[str, Any]:
    """Returns parameters in float32 from the tensors of a weight file.

    Args:
      tensors: Tensors of the file by name.
      shapes: Shapes of the parameters; see `param_shapes`.
      expected_file: Description of the expected file, for messages.

    Raises:
      JanusError: A tensor is missing or has another shape.
    """
    params = {path: checked_tensor(tensors, ".".join(path), shape, expected_file) for path, shape in shapes.items()}
    return dict(unflatten_dict(params))


def checked_tensor(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], expected_file: str
) -> np.ndarray:
    """Returns a tensor of a weight file in float32.

    Args:
      expected_file: Description of the expected file, for messages.

    Raises:
      JanusError: The tensor is missing or has another shape.
    """
    if name not in tensors:
        raise JanusError(f"The tensor {name} is missing; expected the weights of {expected_file}.")
    if tensors[name].shape != shape:
        found = list(tensors[name].shape)
        raise JanusError(f"The tensor {name} has shape {found}; in {expected_file} it has shape {list(shape)}.")
    return np.asarray(tensors[name], np.float32)
