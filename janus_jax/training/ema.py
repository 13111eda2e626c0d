"""Moving averages of weights that begin at random."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from janus_jax.models.backbone import Params


def ramped_average(average: Params, params: Params, decay: float, step: Int[Array, ""]) -> Params:
    """The average after a step: of the steps there have been, at the beginning, and not of the random start.

    Args:
      decay: how much of the average stays later on.
      step: how many steps were taken before.
    """
    stays = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: (stays * old + (1 - stays) * new).astype(old.dtype), average, params)
