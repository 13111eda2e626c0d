"""Images for training and evaluation of an image tokenizer, from prepared datasets or from memory."""

import contextlib
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.processing import open_image, prepare_generation
from janus_jax.training.array_batches import BatchSplit
from janus_jax.training.image_tokenizer.recipe import ImageData
from janus_jax.training.record_batches import RecordBatches, components_of, image_of, open_all

_MIN_CROP = 0.8
"""Smallest side of a crop, as a fraction of the short side of the image (LlamaGen, arXiv 2406.06525, §3.1)."""

_HELD_OUT = 20
"""One of this many images in memory is held out for evaluation."""

Images = UInt8[np.ndarray, "N S S 3"]
Pixels = UInt8[np.ndarray, "S S 3"]


def image_batches(data: ImageData, size: int, split: BatchSplit) -> RecordBatches:
    """Opens endless batches of random crops from prepared datasets. Records without a readable image are skipped.

    Args:
      data: Datasets and augmentation.
      size: Side of the crops in pixels.
      split: This process's share of each batch.

    Raises:
      JanusError: A dataset cannot be opened, or there are no records.
    """
    components = components_of(data.directories, data.training_split, "training images")
    make = functools.partial(_crop, size=size, flip=data.flip)
    return RecordBatches(components, make, split, workers=data.workers, max_rejected=data.max_rejected)


def _crop(record: Record, rng: np.random.Generator, *, size: int, flip: bool) -> tuple[Pixels]:
    return (random_crop(image_of(record, rng), size, rng, flip),)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = True) -> Pixels:
    """Returns a random square of 0.8 to 1 times the short side, resized to `size`, and mirrored half of the time."""
    shortest = min(image.size)
    side = shortest * rng.uniform(_MIN_CROP, 1.0)
    left, top = (rng.uniform(0, length - side) for length in image.size)
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    pixels = np.array(image.resize((size, size), Image.Resampling.BICUBIC, box))
    return pixels[:, ::-1] if flip and rng.random() < 0.5 else pixels


def evaluation_images(data: ImageData, size: int, count: int) -> Images:
    """Returns center crops of the first `count` readable evaluation images, uint8 RGB.

    Raises:
      JanusError: A dataset cannot be opened, or no image is readable.
    """
    directories = data.eval_directories or data.directories
    return center_crops(components_of(directories, data.evaluation_split, "evaluation images"), size, count)


def center_crops(components: Sequence[Component], size: int, count: int) -> Images:
    """Returns center crops of the first `count` readable images, uint8 RGB.

    Raises:
      JanusError: No image is readable.
    """
    crops: list[Pixels] = []
    for source in open_all(components):
        for index in range(len(source)):
            if len(crops) == count:
                break
            with contextlib.suppress(JanusError):
                crops += [prepare_generation(open_image(image), size) for image in source[index].images[:1]]
    if not crops:
        names = ", ".join(str(component.source) for component in components)
        raise JanusError(f"{names} has no readable image to evaluate on; name another in config.data.eval_directories.")
    return np.stack(crops)


def hold_out(images: Images, count: int) -> tuple[Images, Images]:
    """Returns training and evaluation images. The first 5%, at least one and at most `count`, are for evaluation.

    Raises:
      JanusError: There are fewer than two images.
    """
    if len(images) < 2:
        raise JanusError(f"{len(images)} images are given; an image tokenizer needs at least 2, one for evaluation.")
    held_out = min(max(len(images) // _HELD_OUT, 1), count)
    return images[held_out:], images[:held_out]
