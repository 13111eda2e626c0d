"""The interface of image samplers, and the sampler class of each model type."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from jaxtyping import Array, Key, Shaped, UInt8
from PIL import Image

from janus_jax.batch import Batch
from janus_jax.config import JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.image_tokens import TokenSampler
from janus_jax.generation.rectified_flow import FlowSampler
from janus_jax.models.backbone import Backbone, Params
from janus_jax.processing import Processor, TokenSequence


class GeneratedImage(NamedTuple):
    """A generated image.

    Attributes:
      prompt: Index of its prompt.
      number: Index of the image among the images of its prompt.
      image: The image.
      score: Score of the judge that selected it (`best_of`). None: it was not selected.
      candidate: Number that it had among the candidates before the selection. None: it was not selected.
    """

    prompt: int
    number: int
    image: Image.Image
    score: float | None = None
    candidate: int | None = None


class ImageSampler(Protocol):
    """Generates images with a model. The dataclass fields of a sampler are its settings.

    Attributes:
      unit: Word for one step, for progress bars.
    """

    unit: ClassVar[str]

    def num_steps(self, config: ModelConfig) -> int:
        """Returns the number of steps that generate one image."""
        ...

    def prompt_sequences(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Returns the prompts, and also their unconditional sequences if `sample` reads them."""
        ...

    def sample(
        self,
        model: Backbone,
        params: Params,
        prompts: Batch,
        keys: Key[Array, "P N"],
        report: Callable[[int], object] | None = None,
    ) -> Shaped[Array, "P*N ..."]:
        """Returns the image tokens or latents of N images for each of P prompts.

        Args:
          model: The network.
          params: Parameters of the network.
          prompts: Output of `prompt_sequences`, left-padded.
          keys: Random key of each image. An image depends on its prompt and its key, not on the rest of the batch.
          report: Called with the number of steps since its last call. All images take each step together.

        Raises:
          JanusError: The model computes NaN.
        """
        ...

    def to_images(self, model: Backbone, params: Params, samples: Shaped[Array, "R ..."]) -> UInt8[Array, "R H W 3"]:
        """Decodes image tokens or latents to RGB images."""
        ...


IMAGE_SAMPLERS: dict[type[ModelConfig], type[TokenSampler] | type[FlowSampler]] = {
    JanusConfig: TokenSampler,
    JanusFlowConfig: FlowSampler,
}


def sampler_settings(config: ModelConfig) -> tuple[str, ...]:
    """Returns the names of the settings of a model's image sampler."""
    return tuple(setting.name for setting in dataclasses.fields(IMAGE_SAMPLERS[type(config)]))


def check_settings(owner: str, known: Sequence[str], settings: Iterable[str]) -> None:
    """Checks the names of settings.

    Args:
      owner: Subject of the message.

    Raises:
      JanusError: A name is unknown.
    """
    if unknown := [name for name in settings if name not in known]:
        raise JanusError(f"{owner} has no setting {unknown[0]}; its settings are {', '.join(known)}.")


def make_image_sampler(config: ModelConfig, **settings: Any) -> ImageSampler:
    """Returns the image sampler of a model. Settings that are not given have the values of the model's paper.

    Raises:
      JanusError: The sampler has no such setting, a setting is out of range, or a JanusFlow model has no VAE.
    """
    check_settings(config.name, sampler_settings(config), settings)
    if isinstance(config, JanusFlowConfig) and config.vae is None:
        raise JanusError(
            f"{config.name} has no VAE to decode images with; put SDXL's VAE into its folder as vae/, or name its "
            f"folder (--vae DIR, load's vae=)."
        )
    return IMAGE_SAMPLERS[type(config)](**settings)
