"""Tensors of weights that others published, checked as they are taken."""

from collections.abc import Mapping

import numpy as np

from janus_jax.errors import JanusError


def take(tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], file: str) -> np.ndarray:
    """A tensor in float32.

    Args:
      file: what the tensors should be, for the message.

    Raises:
      JanusError: it is missing or misshapen.
    """
    if name not in tensors:
        raise JanusError(f"The weights lack the tensor {name} and so are not {file}; give that file.")
    if tensors[name].shape != shape:
        raise JanusError(f"The tensor {name} is {list(tensors[name].shape)}, in {file} it is {list(shape)}.")
    return np.asarray(tensors[name], np.float32)
