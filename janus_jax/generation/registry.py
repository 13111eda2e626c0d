"""Which way a kind of model draws."""

import dataclasses
from typing import Any

from janus_jax.config import JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import ImageSampler
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.generation.rectified_flow import FlowSampler

IMAGE_SAMPLERS: dict[type[ModelConfig], type[TokenSampler] | type[FlowSampler]] = {
    JanusConfig: TokenSampler,
    JanusFlowConfig: FlowSampler,
}


def sampler_settings(config: ModelConfig) -> tuple[str, ...]:
    """Names of the settings that a model of that config draws with."""
    return tuple(setting.name for setting in dataclasses.fields(IMAGE_SAMPLERS[type(config)]))


def make_image_sampler(config: ModelConfig, **settings: Any) -> ImageSampler:
    """How a model of that config draws, with these settings and its paper's for those that are not given.

    Raises:
      JanusError: it has no such setting, or the setting is out of its range, or it lacks its VAE.
    """
    known = sampler_settings(config)
    if unknown := [name for name in settings if name not in known]:
        raise JanusError(f"{config.name} draws without {unknown[0]}; its settings are {', '.join(known)}.")
    if isinstance(config, JanusFlowConfig) and config.vae is None:
        raise JanusError(
            f"{config.name} has no VAE to make pictures with; put SDXL's into its folder as vae/, or name its folder "
            f"(--vae DIR, load's vae=)."
        )
    return IMAGE_SAMPLERS[type(config)](**settings)
