"""Sampling of edited images: guidance over the sequences of an editing format (`processing.editing`)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from janus_jax.batch import Batch
from janus_jax.config import JanusConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import check_settings
from janus_jax.generation.image_tokens import TokenSampler, images_to_tokens
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.janus import Janus
from janus_jax.processing import EditingFormat, EditingStyle, editing_style


@dataclass(frozen=True)
class EditSampler(TokenSampler):
    """Image sampler of edits.

    Attributes:
      image_guidance_scale: Weight of the sequence without the source's image tokens ("janus_4o"). A larger value gives
        less weight to the image tokens of the source image. The published value is 5.
      style: Format of the sequences that the model was trained with.
    """

    image_guidance_scale: float = 5.0
    style: EditingFormat = "janus_4o"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.image_guidance_scale <= 1e6:
            raise JanusError(f"image_guidance_scale is {self.image_guidance_scale}; it must be from 0 to 1e6.")
        _ = self.format

    @property
    def format(self) -> EditingStyle:
        """The format of the sequences."""
        return editing_style(self.style)

    @property
    def guidance(self) -> Any:
        """See `TokenSampler`. The weights of the format's sequences."""
        return np.array(self.format.guidance_weights(self.guidance_scale, self.image_guidance_scale), np.float32)

    def sample(
        self,
        model: Backbone,
        params: Params,
        prompts: Batch,
        keys: Key[Array, "P N"],
        report: Callable[[int], object] | None = None,
    ) -> Int[Array, "P*N T"]:
        """See `ImageSampler`. The image tokens of the source images are computed once for each prompt."""
        assert isinstance(model, Janus)
        ids = _context_tokens(model, params, prompts, self.format.num_sequences)
        with_ids = prompts._replace(gen_ids=ids, gen_images=prompts.gen_images[:, :0])
        return super().sample(model, params, with_ids, keys, report)


def make_edit_sampler(config: ModelConfig, **settings: Any) -> EditSampler:
    """Returns the sampler of edits. Settings that are not given have the published values.

    Raises:
      JanusError: The model is a JanusFlow, there is no such setting, or a setting is out of range.
    """
    if not isinstance(config, JanusConfig):
        raise JanusError(
            f"{config.name} cannot edit images: JanusFlow reads no images as latents in its context; use a Janus or "
            f"Janus-Pro model that was trained on edits."
        )
    check_settings("Editing", [setting.name for setting in fields(EditSampler)], settings)
    return EditSampler(**settings)


@functools.partial(jax.jit, static_argnames=("model", "num_sequences"))
def _context_tokens(model: Janus, params: Params, prompts: Batch, num_sequences: int) -> Int[Array, "P*Q M N"]:
    # The first sequence of each prompt has all images.
    images = prompts.gen_images[::num_sequences]
    ids = images_to_tokens(model, params, images.reshape(-1, *images.shape[2:]))
    return jnp.repeat(ids.reshape(*images.shape[:2], -1), num_sequences, axis=0)
