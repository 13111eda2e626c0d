"""Settings of a processor in the files of a model folder."""

from pathlib import Path
from typing import NamedTuple

from janus_jax.config import ModelConfig
from janus_jax.errors import JanusError
from janus_jax.files import read_json_if_exists
from janus_jax.processing.conversation import UNDERSTANDING_SYSTEM_PROMPT

IMAGE_MEAN = 0.5
"""Mean and standard deviation with which every released model normalizes pixels in [0, 1]."""

DEFAULT_MIN_SIDE = 14
"""Minimum length of the short side of an input image, if the model's files have no other."""


class ProcessorSettings(NamedTuple):
    """Settings of `Processor` that no config of the model has, see there."""

    min_side: int
    system_prompt: str
    interleaved_features: bool


def read_settings(directory: Path, config: ModelConfig) -> ProcessorSettings:
    """Reads the settings of a folder, and checks that the other settings of its files agree with the config.

    Raises:
      JanusError: A file contradicts the config, or a value has another type.
    """
    side, patches = config.und_encoder.image_size, config.und_encoder.num_patches
    remedy = "copy it from the released checkpoint again"
    processor_file, file = directory / "processor_config.json", directory / "preprocessor_config.json"
    processor, values = read_json_if_exists(processor_file, remedy), read_json_if_exists(file, remedy)
    prompt = processor.get("system_prompt", UNDERSTANDING_SYSTEM_PROMPT)
    if not isinstance(prompt, str):
        raise JanusError(f"{processor_file}: system_prompt is {prompt!r:.80}; it must be text.")
    features = processor.get("interleaved_features", False)
    if not isinstance(features, bool):
        raise JanusError(f"{processor_file}: interleaved_features is {features!r:.80}; it must be true or false.")
    _check_agreement(processor_file, "num_image_tokens", processor.get("num_image_tokens", patches), patches)
    # transformers 5 writes the image settings into processor_config.json.
    if isinstance(nested := processor.get("image_processor"), dict) and not values:
        file, values = processor_file, nested
    size = values.get("size")  # transformers' name for image_size; an object.
    for found in (values.get("image_size", side), *(size.values() if isinstance(size, dict) else ())):
        _check_agreement(file, "image_size", found, side)
    for name in ("image_mean", "image_std"):
        _check_agreement(file, name, values.get(name) or [IMAGE_MEAN] * 3, [IMAGE_MEAN] * 3)
    min_side = values.get("min_size", min(DEFAULT_MIN_SIDE, side))
    if not isinstance(min_side, int) or not 0 < min_side <= side:
        raise JanusError(f"{file}: min_size is {min_side!r}; it must be a whole number from 1 to {side}.")
    return ProcessorSettings(min_side, prompt, features)


def _check_agreement(file: Path, name: str, found: object, expected: object) -> None:
    if found != expected:
        raise JanusError(f"{file}: {name} is {found!r}, but {expected!r} in the model's config; correct the wrong one.")
