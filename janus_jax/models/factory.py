"""Makes the model of a config, and its parameters or their shapes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from janus_jax.batch import Batch
from janus_jax.config import Execution, JanusConfig, ModelConfig
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.janus import Janus
from janus_jax.models.janusflow import JanusFlow


def make_model(config: ModelConfig, execution: Execution = Execution()) -> Backbone:
    """Makes the model that the config describes."""
    return Janus(config, execution) if isinstance(config, JanusConfig) else JanusFlow(config, execution)


def init_params(model: Backbone, key: Key[Array, ""]) -> Params:
    """Initializes parameters, boxed with their logical axis names (`flax.linen.unbox` returns the plain tree)."""
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
    params: Params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return params
