"""LoRA (arXiv 2106.09685): low-rank adapters of frozen LLM matrices.

An adapted layer computes W x + s B A x with s = alpha / rank (`models.layers.Linear`). A is initialized randomly and B
with zeros, so the adapted model starts as the original. A and B are trained parameters: float32, sharded along the axes
that they share with W, with their own moments and average. s is a frozen parameter, so that a checkpoint contains
everything needed to merge its adapters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float, Key

from janus_jax.errors import JanusError
from janus_jax.models.backbone import Params
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE, fan_in_normal
from janus_jax.training.config_dicts import check_values
from janus_jax.training.muon_axes import matrix_axes
from janus_jax.training.param_paths import matches

ADAPTER_NAMES = (LORA_A, LORA_B, LORA_SCALE)
"""Last path components of the parameters of an adapter."""


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA.

    Attributes:
      rank: Rank of each adapter; 0 disables LoRA.
      alpha: Scale: adapters are multiplied by alpha / rank, so that the learning rate need not change with the rank
        (section 4.1).
      targets: Patterns of the adapted LLM matrices, such as `llm/layers/mlp/*/weight`.

    Raises:
      JanusError: A value is out of range.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("llm/layers/attn/*/weight",)

    def __post_init__(self) -> None:
        check_values(self, "lora", ("alpha", self.alpha > 0, "above 0"), rank=0)


def init_adapters(lora: Lora, params: Params, frozen: Params, key: Key[Array, ""]) -> tuple[Params, Params]:
    """Initializes adapters.

    Args:
      lora: Settings.
      params: Boxed arrays or shapes of the whole model.
      frozen: The frozen part of `params`.
      key: Random key.

    Returns:
      Trained and frozen adapter parameters, boxed. A and B of `.../weight` are `.../lora_a` and `.../lora_b`, and s is
      `.../lora_scale`. Their first axis is the block, as in W.

    Raises:
      JanusError: A pattern matches no LLM matrix, or one that is trained.
    """
    if not lora.rank:
        return {}, {}
    trained: dict[tuple[str, ...], Any] = {}
    scales: dict[tuple[str, ...], Any] = {}
    leaves: Mapping[str, Any] = flatten_dict(params, sep="/")
    targets = _targets(lora, params, frozen)
    for (name, inputs), layer_key in zip(targets.items(), jax.random.split(key, len(targets)), strict=True):
        axes, shape, parent = leaves[name].names, leaves[name].value.shape, tuple(name.split("/")[:-1])
        layers, first = shape[0], inputs[0]
        a = fan_in_normal(len(inputs))(layer_key, (layers, lora.rank, *shape[first:]))
        b = jnp.zeros((*shape[:first], lora.rank))
        scale = jnp.full(layers, lora.alpha / lora.rank)
        trained[*parent, LORA_A] = nn.LogicallyPartitioned(a, (axes[0], None, *axes[first:]))
        trained[*parent, LORA_B] = nn.LogicallyPartitioned(b, (*axes[:first], None))
        scales[*parent, LORA_SCALE] = nn.LogicallyPartitioned(scale, axes[:1])
    return unflatten_dict(trained), unflatten_dict(scales)


def split_adapters(params: Params) -> tuple[Params, Params]:
    """Splits a tree into the parameters of the model and those of its adapters."""
    leaves: Mapping[tuple[str, ...], Any] = flatten_dict(params)
    adapters = {name: leaf for name, leaf in leaves.items() if name[-1] in ADAPTER_NAMES}
    model = {name: leaf for name, leaf in leaves.items() if name not in adapters}
    return unflatten_dict(model), unflatten_dict(adapters)


def merge_adapters(params: Params) -> Params:
    """Merges adapters into their matrices, W + s B A, computed in float32.

    Args:
      params: Arrays with any sharding. Adapted matrices are donated; the merged ones have the same dtype and sharding.
    """
    model, adapters = (flatten_dict(tree) for tree in split_adapters(params))
    # Sorted, because all processes must compute the matrices in the same order.
    for parent in sorted({name[:-1] for name in adapters}):
        weight = model[*parent, "weight"]
        merge = jax.jit(_merge_matrix, out_shardings=weight.sharding, donate_argnums=0)
        model[*parent, "weight"] = merge(weight, *(adapters[*parent, name] for name in ADAPTER_NAMES))
    return unflatten_dict(model)


def merged_params(params: Params) -> Params:
    """Returns the parameters with adapters merged, for use under jit."""
    model, adapters = (flatten_dict(tree) for tree in split_adapters(params))
    for parent in {name[:-1] for name in adapters}:
        factors = (adapters[*parent, name] for name in ADAPTER_NAMES)
        model[*parent, "weight"] = _merge_matrix(model[*parent, "weight"], *factors)
    return unflatten_dict(model)


def _merge_matrix(
    weight: Float[Array, "layers *outputs_and_inputs"],
    a: Float[Array, "layers rank *inputs"],
    b: Float[Array, "layers *outputs_and_rank"],
    scale: Float[Array, " layers"],
) -> Float[Array, "layers *outputs_and_inputs"]:
    dimensions = (((b.ndim - 1,), (1,)), ((0,), (0,)))
    change = lax.dot_general(b, a, dimensions, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
    change *= scale.astype(jnp.float32).reshape(-1, *(1,) * (weight.ndim - 1))
    return (weight.astype(jnp.float32) + change).astype(weight.dtype)


def _targets(lora: Lora, params: Params, frozen: Params) -> dict[str, tuple[int, ...]]:
    """Returns the names of the matrices to adapt and their input axes, which come last."""
    available = {name: axes.inputs for name, axes in matrix_axes(params).items() if name.startswith("llm/layers/")}
    for pattern in lora.targets:
        if not any(matches(name, [pattern]) for name in available):
            names = ", ".join(sorted(available))
            raise JanusError(
                f"lora.targets has {pattern!r}, which matches no matrix of the LLM; its matrices are {names}."
            )
    targets = {name: inputs for name, inputs in available.items() if matches(name, lora.targets)}
    if not targets:
        raise JanusError(f"lora.targets is empty; add patterns such as {', '.join(Lora.targets)}.")
    frozen_names = flatten_dict(frozen, sep="/")
    if trained := sorted(name for name in targets if name not in frozen_names):
        raise JanusError(f"lora.targets matches {trained[0]}, which `trained` matches too; remove it from one of them.")
    return targets
