"""Ids of images to generate, computed once, so that training need not run the image tokenizer.

Of each image the middle square is taken: where ids are known beforehand, no crop can be drawn.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from janus_jax.config import Execution, VQConfig
from janus_jax.data.prepare import Preparation
from janus_jax.data.records import Record
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.models.vq import VQTokenizer
from janus_jax.processing import open_image, prepare_generation
from janus_jax.sample.shapes import round_up
from janus_jax.sharding import batch_multiple, batch_sharding, make_mesh, use_mesh

ENCODER = ("encoder", "quant_conv", "codebook")
"""What of the tokenizer's parameters is needed."""


class ImageTokenizer:
    """Images to ids on all devices of this process, so many images at a time.

    In float32 whatever the device: neighbouring codes differ by less than bfloat16 resolves.
    """

    def __init__(self, config: VQConfig, params: Params, batch_size: int, devices: Sequence[jax.Device] | None = None):
        """Places the parameters.

        Args:
          config: of the tokenizer.
          params: what lies beneath `gen_encoder`; all but `ENCODER` is left out.
          batch_size: images at a time, rounded up to a multiple of the devices.
          devices: this process's by default.
        """
        self.config = config
        self._mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        self.batch_size = round_up(batch_size, batch_multiple(self._mesh))
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self._params = jax.device_put({name: params[name] for name in ENCODER}, everywhere)
        model = VQTokenizer(config, Execution(dtype="float32", param_dtype="float32"))

        def encode(params: Params, images: UInt8[Array, "B H W 3"]) -> Any:
            return model.apply({"params": params}, to_pixels(images), method="encode")

        rows = batch_sharding(self._mesh)
        self._encode = jax.jit(encode, in_shardings=(everywhere, rows), out_shardings=rows)

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Int[Array, "B2 N"]:
        """Ids of up to `batch_size` images, those of padding behind them; the devices may still be at it."""
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with use_mesh(self._mesh):
            return self._encode(self._params, jax.device_put(padded, batch_sharding(self._mesh)))


def add_image_ids(
    preparation: Preparation,
    indices: Sequence[int],
    tokenizer: ImageTokenizer,
    report: Callable[[int], None] = lambda images: None,
) -> None:
    """Gives the records of these shards their image ids, shard by shard.

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
    ids: Int[Array, "B N"]


def _with_ids(
    records: Iterator[Record], tokenizer: ImageTokenizer, threads: ThreadPoolExecutor, report: Callable[[int], None]
) -> Iterator[Record]:
    def pixels(record: Record) -> UInt8[np.ndarray, "H W 3"]:
        return prepare_generation(open_image(record.images[0]), tokenizer.config.image_size)

    # One batch is on the devices while the next is decoded.
    waiting: _Batch | None = None
    while group := list(islice(records, tokenizer.batch_size)):
        started = _Batch(group, tokenizer(np.stack(list(threads.map(pixels, group)))))
        if waiting is not None:
            yield from _done(waiting, report)
        waiting = started
    if waiting is not None:
        yield from _done(waiting, report)


def _done(batch: _Batch, report: Callable[[int], None]) -> Iterator[Record]:
    ids = np.asarray(batch.ids)
    # The padding's ids come last and are left out.
    for record, its_ids in zip(batch.records, ids, strict=False):
        yield replace(record, image_ids=its_ids)
    report(len(batch.records))
