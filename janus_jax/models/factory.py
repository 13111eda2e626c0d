"""Makes the model of a config, and its parameters or their shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key

from janus_jax.batch import Batch
from janus_jax.config import WEIGHT_SCALE, Execution, JanusConfig, ModelConfig
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.layers import quantize
from janus_jax.models.llama import PARAMS_PER_BLOCK, PARAMS_PER_QUANTIZED_BLOCK, fuse_block
from janus_jax.models.target_platform import target_platform


def make_model(config: ModelConfig, execution: Execution = Execution()) -> Backbone:
    """Makes the model that the config describes."""
    return Janus(config, execution) if isinstance(config, JanusConfig) else JanusFlow(config, execution)


def init_params(model: Backbone, key: Key[Array, ""]) -> Params:
    """Initializes parameters. Each is boxed with its logical axis names; `flax.linen.unbox` returns the plain tree."""
    config = model.config
    und_size, gen_size = config.und_encoder.image_size, config.gen_image_size
    length = config.und_encoder.num_patches + config.num_gen_tokens
    zeros = jnp.zeros((1, length), jnp.int32)
    batch = Batch(
        tokens=zeros,
        segment_ids=zeros + 1,
        positions=zeros,
        und_patch_index=zeros,
        gen_token_index=zeros,
        und_images=jnp.zeros((1, 1, und_size, und_size, 3), jnp.uint8),
        gen_images=jnp.zeros((1, 1, gen_size, gen_size, 3), jnp.uint8),
    )
    params: Params = model.init(key, batch, method=model.init_all)["params"]
    return params


def abstract_params(model: Backbone) -> Params:
    """Returns shapes, dtypes and logical axis names of the parameters without computing them."""
    # A real key, or the choice of kernels for the devices, would initialize the devices.
    with target_platform("cpu"):
        key = jax.eval_shape(jax.random.key, 0)
        params: Params = jax.eval_shape(lambda key: init_params(model, key), key)
    return params


def params_from_leaves(
    leaves: Iterable[tuple[tuple[str, ...], int | None, np.ndarray]], abstract: Params, config: ModelConfig
) -> Params:
    """Builds a parameter tree on the devices from arrays that are read one by one.

    To save host memory, an array is put on its devices as soon as it is complete. The host holds one stacked parameter
    (stacked layers) or the parameters of one transformer block (unrolled layers) at a time. A weight for which
    `abstract` has scales is quantized, if its values are not quantized already.

    Args:
      leaves: For each array its keys in the stacked tree, its layer (None outside stacks) and its values, in the order
        of `Checkpoint.params`.
      abstract: Shapes, dtypes and shardings of the parameters, with stacked or unrolled layers.
    """
    wanted: Mapping[tuple[str, ...], Any] = flatten_dict(abstract)
    params: dict[tuple[str, ...], Array] = {}
    stacks: dict[tuple[str, ...], np.ndarray] = {}
    blocks: dict[int, dict[tuple[str, ...], np.ndarray]] = {}

    def put(keys: tuple[str, ...], array: np.ndarray) -> None:
        leaf = wanted[keys]
        scale_keys = (*keys[:-1], WEIGHT_SCALE)
        if keys[-1] == "weight" and scale_keys in wanted and array.dtype != leaf.dtype:
            array, scale = quantize(array, len(wanted[scale_keys].shape), leaf.dtype)
            put(scale_keys, scale)
        array = array.astype(leaf.dtype, copy=False)
        if leaf.sharding is None:
            params[keys] = jax.device_put(array)
        else:
            params[keys] = jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)

    for keys, layer, array in leaves:
        if layer is None:
            put(keys, array)
        elif keys in wanted:
            if layer == 0:
                # A weight that is quantized as a stack keeps its dtype until then.
                leaf = wanted[keys]
                stacks[keys] = np.empty(leaf.shape, array.dtype if leaf.dtype.itemsize == 1 else leaf.dtype)
            stack = stacks[keys]
            stack[layer] = array
            if layer == len(stack) - 1:
                put(keys, stacks.pop(keys))
        elif keys[:2] == ("llm", "layers"):
            block = blocks.setdefault(layer, {})
            block[keys[2:]] = array
            is_quantized = any(path[-1] == WEIGHT_SCALE for path in block)
            if len(block) == (PARAMS_PER_QUANTIZED_BLOCK if is_quantized else PARAMS_PER_BLOCK):
                fused = flatten_dict(fuse_block(unflatten_dict(blocks.pop(layer)), config.llm))
                for path, matrix in fused.items():
                    put(("llm", f"layers_{layer}", *path), matrix)
        else:
            put((keys[0], f"{keys[1]}_{layer}", *keys[2:]), array)
    tree: Params = unflatten_dict(params)
    return tree
