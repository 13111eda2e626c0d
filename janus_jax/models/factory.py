"""The network and the parameters of a config, whichever kind of model it describes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from janus_jax.batch import Batch
from janus_jax.config import Execution, JanusConfig, ModelConfig
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow


def make_model(config: ModelConfig, execution: Execution = Execution()) -> Backbone:
    """The network that the config describes."""
    return Janus(config, execution) if isinstance(config, JanusConfig) else JanusFlow(config, execution)


def init_params(config: ModelConfig, key: Array, execution: Execution = Execution()) -> Params:
    """Freshly made parameters, boxed with their logical axis names (`flax.linen.unbox` gives the plain tree)."""
    return init_model(make_model(config, execution), key)


def init_model(model: Backbone, key: Array) -> Params:
    """`init_params` of this network."""
    config = model.config
    und_size, gen_size = config.und_encoder.image_size, config.gen_image_size
    length = config.und_encoder.num_patches + config.gen_tokens
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
    params: Params = model.init(key, batch, method=model.touch)["params"]
    return params


def abstract_params(config: ModelConfig, execution: Execution = Execution()) -> Params:
    """Shapes, dtypes and logical axis names of the parameters, with nothing computed."""
    return abstract_model(make_model(config, execution))


def abstract_model(model: Backbone) -> Params:
    """`abstract_params` of this network."""
    params: Params = jax.eval_shape(lambda key: init_model(model, key), jax.random.key(0))
    return params
