"""Ids or latents of images to generate, computed once, so that training need not run the image tokenizer or the VAE.

Of each image the middle square is taken: where ids or latents are known beforehand, no crop can be drawn.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped, UInt8

from janus_jax.config import Execution, VAEConfig, VQConfig
from janus_jax.data.prepare.shard_writer import ShardWriter
from janus_jax.data.records import Record
from janus_jax.generation.padding import round_up
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.vae import VAE
from janus_jax.models.vq import VQTokenizer
from janus_jax.processing import open_image, prepare_generation
from janus_jax.sharding import batch_sharding, make_mesh, num_data_shards, use_mesh

ENCODER = ("encoder", "quant_conv", "codebook")
"""What of the tokenizer's parameters is needed."""

VAE_ENCODER = ("encoder", "quant_conv")
"""What of the VAE's."""


@dataclass(frozen=True)
class Encoding:
    """What images become, and by which parameters.

    Attributes:
      image_size: pixels along a side.
      part: of a model's parameters, in which they lie.
      needed: names of those beneath it.
      encode: from parameters and pixels in [-1, 1] to a row of numbers an image.
      field: of `Record` that the numbers go to.
    """

    image_size: int
    part: str
    needed: tuple[str, ...]
    encode: Callable[[Params, Float[Array, "B H W 3"]], Any]
    field: Literal["image_tokens", "image_latents"]

    def taken(self, record: Record, numbers: np.ndarray) -> Record:
        """The record with its image's numbers."""
        return replace(record, **{self.field: numbers})  # type: ignore[arg-type]


def ids_encoding(config: VQConfig) -> Encoding:
    """To ids of an image tokenizer."""
    tokenizer = VQTokenizer(config, _EXECUTION)

    def encode(params: Params, pixels: Float[Array, "B H W 3"]) -> Any:
        return tokenizer.apply({"params": params}, pixels, method=tokenizer.encode)

    return Encoding(config.image_size, "gen_encoder", ENCODER, encode, "image_tokens")


def latents_encoding(config: VAEConfig, image_size: int) -> Encoding:
    """To the scaled means of a VAE's latents.

    The means, and no draws: the VAE's deviations are small beside its latents, the flow brings noise of its own, and
    training that computes latents itself takes the means too.
    """
    vae = VAE(config, _EXECUTION)

    def encode(params: Params, pixels: Float[Array, "B H W 3"]) -> Any:
        latents: Any = vae.apply({"params": params}, pixels, method=vae.encode)
        return latents.mean.reshape(len(pixels), -1) * config.scaling_factor

    return Encoding(image_size, "vae", VAE_ENCODER, encode, "image_latents")


# Whatever the device: neighbouring codes differ by less than bfloat16 resolves.
_EXECUTION = Execution(dtype="float32", param_dtype="float32")


class ImageTokenizer:
    """Images to ids, or to latents, on all devices of this process, so many images at a time; in float32."""

    def __init__(
        self, encoding: Encoding, params: Params, batch_size: int, devices: Sequence[jax.Device] | None = None
    ):
        """Places the parameters.

        Args:
          params: what lies beneath `encoding.part`; all but `encoding.needed` is left out.
          batch_size: images at a time, rounded up to a multiple of the devices.
          devices: this process's by default.
        """
        self.encoding = encoding
        self._mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        self.batch_size = round_up(batch_size, num_data_shards(self._mesh))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._params = jax.device_put({name: params[name] for name in encoding.needed}, everywhere)

        def encode(params: Params, images: UInt8[Array, "B H W 3"]) -> Any:
            return encoding.encode(params, to_pixels(images))

        rows = batch_sharding(self._mesh)
        self._encode = jax.jit(encode, in_shardings=(everywhere, rows), out_shardings=rows)

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Shaped[Array, "B2 N"]:
        """Numbers of up to `batch_size` images, those of padding behind them; the devices may still be at it."""
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with use_mesh(self._mesh):
            return self._encode(self._params, jax.device_put(padded, batch_sharding(self._mesh)))


def encode_target_images(
    preparation: ShardWriter,
    indices: Sequence[int],
    tokenizer: ImageTokenizer,
    report: Callable[[int], None] = lambda images: None,
) -> None:
    """Gives the records of these shards their image ids, or latents, shard by shard.

    Args:
      preparation: whose parts are written.
      indices: of shards; each process of several takes others.
      tokenizer: of the model that will be trained.
      report: told the number of images after every batch.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for index in indices:
            preparation.add_ids(index, lambda records: _with_ids(records, tokenizer, threads, report))


class _Batch(NamedTuple):
    records: list[Record]
    numbers: Shaped[Array, "B N"]


def _with_ids(
    records: Iterator[Record], tokenizer: ImageTokenizer, threads: ThreadPoolExecutor, report: Callable[[int], None]
) -> Iterator[Record]:
    def pixels(record: Record) -> UInt8[np.ndarray, "H W 3"]:
        return prepare_generation(open_image(record.images[0]), tokenizer.encoding.image_size)

    def done(batch: _Batch) -> Iterator[Record]:
        # The padding's numbers come last and are left out.
        for record, numbers in zip(batch.records, np.asarray(batch.numbers), strict=False):
            yield tokenizer.encoding.taken(record, numbers)
        report(len(batch.records))

    # One batch is on the devices while the next is decoded.
    waiting: _Batch | None = None
    while group := list(islice(records, tokenizer.batch_size)):
        started = _Batch(group, tokenizer(np.stack(list(threads.map(pixels, group)))))
        if waiting is not None:
            yield from done(waiting)
        waiting = started
    if waiting is not None:
        yield from done(waiting)
