"""Weights of 8 bits in checkpoint folders.

A quantized weight is stored as a tensor of int8 or float8_e4m3fn under its usual name, and its scales, one for each
output, as a float32 tensor with the suffix "_scale". config.json names the format:

    "quantization_config": {"quant_method": "janus_jax", "weights": "int8"}
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast, get_args

import numpy as np

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import MappedParameter
from checkpoints_convert.parameters import Parameter
from janus_jax.config import WEIGHT_SCALE, StoredQuantization
from janus_jax.errors import JanusError

_FIELD, _METHOD = "quantization_config", "janus_jax"


def read_quantization(json: JsonObject) -> StoredQuantization:
    """Returns the format of the weights that config.json names; "none" if it names none.

    Raises:
      JanusError: Another program quantized the weights, or the format is unknown.
    """
    if _FIELD not in json:
        return "none"
    entry = json.object(_FIELD)
    method, weights = entry.values.get("quant_method"), entry.values.get("weights")
    if method != _METHOD:
        raise JanusError(
            f"{entry.where}: quant_method is {method!r:.80}; only weights that janus-convert --quantization wrote can "
            f"be read ({_METHOD!r}). Give the checkpoint with weights of 16 or 32 bits."
        )
    formats = get_args(StoredQuantization)[1:]
    if weights not in formats:
        raise JanusError(f"{entry.where}: weights is {weights!r:.80}; it must be one of {', '.join(formats)}.")
    return cast(StoredQuantization, weights)


def quantization_entry(quantization: StoredQuantization) -> dict[str, Any]:
    """Returns the fields of config.json that `read_quantization` reads."""
    return {} if quantization == "none" else {_FIELD: {"quant_method": _METHOD, "weights": quantization}}


def quantized(
    mapped: Sequence[MappedParameter], read: Callable[[Parameter, int | None], np.ndarray]
) -> Iterator[tuple[MappedParameter, np.ndarray]]:
    """Yields all parameters of a model with quantized weights, one weight and its scales at a time.

    Args:
      mapped: Parameters of the quantized model.
      read: Returns the values of one layer of a parameter before quantization.
    """
    from janus_jax.models.layers import quantize  # jax takes a second to import.

    by_position = {(one.parameter.path, one.layer): one for one in mapped}
    for one in mapped:
        *module, name = one.parameter.keys
        if name == WEIGHT_SCALE:
            continue
        scales = by_position.get(("/".join((*module, WEIGHT_SCALE)), one.layer)) if name == "weight" else None
        if scales is None:
            yield one, read(one.parameter, one.layer)
        else:
            assert one.parameter.dtype is not None
            num_outputs = len(scales.parameter.shape)
            weight, scale = quantize(read(one.parameter, one.layer), num_outputs, one.parameter.dtype)
            yield one, weight
            yield scales, scale
