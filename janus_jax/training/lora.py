"""LoRA (arXiv 2106.09685): a frozen matrix W of the LLM gets a low-rank adapter beside it, and that alone trains.

The model computes W x + s B A x (`models.layers.Linear`), with s = alpha / rank. A begins at random and B at 0, so that
an adapted model begins as the one that it adapts. Both are parameters like any other: float32, split over the mesh by
the axes that they share with W, with moments and average of their own. s is frozen beside them, so that a checkpoint
says by itself what it adapts, and how much.
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
from janus_jax.training.muon_axes import matrix_axes
from janus_jax.training.param_paths import matches

_NAMES = (LORA_A, LORA_B, LORA_SCALE)


@dataclass(frozen=True)
class Lora:
    """Which matrices are adapted, and how freely.

    Attributes:
      rank: of what is added to each matrix; 0 for no LoRA.
      alpha: what is added counts alpha / rank times, so that another rank needs no other learning rate (§4.1).
      targets: patterns of names of the LLM's matrices, such as `llm/layers/mlp/*/weight`.

    Raises:
      JanusError: a number cannot be what it is.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("llm/layers/attn/*/weight",)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise JanusError(f"lora.rank is {self.rank}; it must be 0 or more.")
        if not self.alpha > 0:
            raise JanusError(f"lora.alpha is {self.alpha}; it must be above 0.")


NO_LORA = Lora()


def init_adapters(lora: Lora, params: Params, frozen: Params, key: Key[Array, ""]) -> tuple[Params, Params]:
    """Adapters as they begin.

    Args:
      params: of the whole model, boxed arrays or shapes with the logical names of their axes.
      frozen: what of it does not train.

    Returns:
      What of the adapters trains and what is frozen: trees of boxes, in which A and B of `.../weight` are
      `.../lora_a` and `.../lora_b`, and s is `.../lora_scale`; the first axis of each counts the blocks, as that of W.

    Raises:
      JanusError: a pattern names no matrix of the LLM, or one that trains by itself.
    """
    if not lora.rank:
        return {}, {}
    trained: dict[tuple[str, ...], Any] = {}
    scales: dict[tuple[str, ...], Any] = {}
    leaves: Mapping[str, Any] = flatten_dict(params, sep="/")
    targets = _targets(lora, params, frozen)
    for (name, inputs), draw in zip(targets.items(), jax.random.split(key, len(targets)), strict=True):
        axes, shape, beside = leaves[name].names, leaves[name].value.shape, tuple(name.split("/")[:-1])
        layers, first = shape[0], inputs[0]
        a = fan_in_normal(len(inputs))(draw, (layers, lora.rank, *shape[first:]))
        b = jnp.zeros((*shape[:first], lora.rank))
        scale = jnp.full(layers, lora.alpha / lora.rank)
        trained[*beside, LORA_A] = nn.LogicallyPartitioned(a, (axes[0], None, *axes[first:]))
        trained[*beside, LORA_B] = nn.LogicallyPartitioned(b, (*axes[:first], None))
        scales[*beside, LORA_SCALE] = nn.LogicallyPartitioned(scale, axes[:1])
    return unflatten_dict(trained), unflatten_dict(scales)


def split_adapters(params: Params) -> tuple[Params, Params]:
    """A tree without adapters, and the adapters that were in it."""
    leaves: Mapping[tuple[str, ...], Any] = flatten_dict(params)
    adapters = {name: leaf for name, leaf in leaves.items() if name[-1] in _NAMES}
    model = {name: leaf for name, leaf in leaves.items() if name not in adapters}
    return unflatten_dict(model), unflatten_dict(adapters)


def merge_adapters(params: Params) -> Params:
    """The model's own parameters with the adapters added into their matrices: W + s B A, reckoned in float32.

    Args:
      params: arrays, wherever they lie. Adapted matrices are taken: the sums stand in their places, in their dtypes.
    """
    model, adapters = (flatten_dict(tree) for tree in split_adapters(params))
    # In an order that all processes share: together they compute each.
    for beside in sorted({name[:-1] for name in adapters}):
        weight = model[*beside, "weight"]
        merge = jax.jit(_merged, out_shardings=weight.sharding, donate_argnums=0)
        model[*beside, "weight"] = merge(weight, *(adapters[*beside, name] for name in _NAMES))
    return unflatten_dict(model)


def _merged(
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
    """The matrices to adapt, by name, and the axes of their inputs, which are the last ones."""
    there = {name: axes.inputs for name, axes in matrix_axes(params).items() if name.startswith("llm/layers/")}
    for pattern in lora.targets:
        if not any(matches(name, [pattern]) for name in there):
            names = ", ".join(sorted(there))
            raise JanusError(f"lora.targets holds {pattern!r}, which names no matrix of the LLM; they are {names}.")
    targets = {name: inputs for name, inputs in there.items() if matches(name, lora.targets)}
    if not targets:
        raise JanusError(f"lora.targets is empty; name matrices such as {', '.join(NO_LORA.targets)}.")
    still = flatten_dict(frozen, sep="/")
    if both := sorted(name for name in targets if name not in still):
        raise JanusError(f"lora.targets names {both[0]}, which the stage trains whole; take it out of `trained`.")
    return targets
