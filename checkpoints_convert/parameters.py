"""Lists the parameters of a model.

Paths and shapes come from `jax.eval_shape` of the networks' `init`, so that only the networks define them. A layout
adds the names that another project gives to the same parameters.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from janus_jax.config import (
    WEIGHT_SCALE,
    Execution,
    LlamaConfig,
    ModelConfig,
    SiglipConfig,
    StoredQuantization,
    VAEConfig,
    VQConfig,
    flow_preset,
    janus_preset,
)

Shape = tuple[int, ...]
PartConfig = SiglipConfig | VQConfig | VAEConfig | LlamaConfig
Config = ModelConfig | PartConfig

PARTS: dict[str, type[PartConfig]] = {
    "und_encoder": SiglipConfig,
    "gen_encoder": VQConfig,
    "vae": VAEConfig,
    "llm": LlamaConfig,
}
"""Config classes of the parts that are also published separately, by the part's key in the parameter tree."""


@dataclass(frozen=True)
class Parameter:
    """One array of the parameter tree.

    Attributes:
      path: Keys from the root, joined by "/".
      shape: Shape of one layer if the parameter is stacked, else of the whole array.
      layers: Number of stacked layers (the leading axis in the tree); None if the parameter is not stacked.
      dtype: Dtype that every checkpoint stores, of a quantized weight and its scales. None: any floating-point dtype.
    """

    path: str
    shape: Shape
    layers: int | None = None
    dtype: np.dtype | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.path.split("/"))

    @property
    def full_shape(self) -> Shape:
        return self.shape if self.layers is None else (self.layers, *self.shape)

    @property
    def layer_indices(self) -> list[int | None]:
        return [None] if self.layers is None else list(range(self.layers))

    @property
    def size(self) -> int:
        return math.prod(self.full_shape)


@functools.lru_cache(maxsize=8)
def model_parameters(config: Config, quantization: StoredQuantization = "none") -> tuple[Parameter, ...]:
    """Returns the parameters of a model, or of one part. Paths start with the key of the part."""
    return tree_parameters(_abstract_tree(config, Execution(quantization=quantization)))


def tree_parameters(tree: Any) -> tuple[Parameter, ...]:
    """Returns the parameters of an abstract tree with logical axis names.

    A parameter is stacked if its first logical axis is "layers".
    """
    import flax.linen as nn
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    parameters = []
    for keys, leaf in leaves:
        path, shape, dtype = "/".join(key.key for key in keys), leaf.value.shape, np.dtype(leaf.value.dtype)
        fixed = dtype if dtype.itemsize == 1 or keys[-1].key == WEIGHT_SCALE else None
        layers, shape = (shape[0], shape[1:]) if leaf.names[:1] == ("layers",) else (None, shape)
        parameters.append(Parameter(path, shape, layers, fixed))
    return tuple(parameters)


def _abstract_tree(config: Config, execution: Execution) -> Any:
    # jax takes a second to import.
    from janus_jax.models.factory import abstract_params, make_model

    if isinstance(config, ModelConfig):
        return abstract_params(make_model(config, execution))
    # The parameters of a part do not depend on the other parts, so the part is put into a small model.
    part = next(name for name, kind in PARTS.items() if isinstance(config, kind))
    model: ModelConfig = janus_preset("tiny")
    if isinstance(config, VAEConfig):
        flow = flow_preset("tiny_flow")
        model = replace(flow, gen_encoder=replace(flow.gen_encoder, latent_channels=config.latent_channels), vae=None)
    fields: dict[str, Any] = {part: config}
    return {part: abstract_params(make_model(replace(model, **fields), execution))[part]}


def layer_by_layer(parameters: Iterable[Parameter]) -> Iterator[tuple[Parameter, int | None]]:
    """Yields (parameter, layer), block by block. The layer is None if the parameter is not stacked."""

    def stack(parameter: Parameter) -> tuple[str, ...]:
        return parameter.keys[:2] if parameter.layers is not None else ()

    for _, group in itertools.groupby(parameters, stack):
        block = list(group)
        yield from ((parameter, layer) for layer in block[0].layer_indices for parameter in block)
