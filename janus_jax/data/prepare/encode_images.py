"""Precomputes image tokens or latents, so that training does not run the image tokenizer or the VAE.

Images are cropped to their center square, because random crops would need new tokens in each epoch. The images of edits
are made square as their editing style does it.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped, UInt8

from checkpoints_convert import Checkpoint, open_checkpoint
from janus_jax.config import Execution, JanusConfig, JanusFlowConfig, VAEConfig, VQConfig
from janus_jax.data.prepare.shard_writer import ShardWriter
from janus_jax.data.records import Record
from janus_jax.errors import JanusError
from janus_jax.generation.padding import round_up
from janus_jax.models.backbone import Params, apply, to_pixels
from janus_jax.models.vae import VAE
from janus_jax.models.vq import VQTokenizer
from janus_jax.processing import Task, editing_style, open_image, prepare_generation
from janus_jax.processing.settings import DEFAULT_MIN_SIDE
from janus_jax.sharding import batch_sharding, make_mesh, num_data_shards, use_mesh

# float32 on every device, because neighboring codes differ by less than the resolution of bfloat16.
_EXECUTION = Execution(dtype="float32", param_dtype="float32")


@dataclass(frozen=True)
class ImageEncoding:
    """Describes how to compute image tokens or latents.

    Attributes:
      image_size: Side of an image in pixels.
      module: Name of the model's encoder module.
      parameters: Names of the module's parameters that `encode` needs.
      encode: Function from parameters and pixels in [-1, 1] to tokens or latents, one vector of shape [N] per image.
      field: Field of `Record` that stores the vector.
      scale: Factor by which `encode` multiplies latents.
    """

    image_size: int
    module: str
    parameters: tuple[str, ...]
    encode: Callable[[Params, Float[Array, "B H W 3"]], Any]
    field: Literal["image_tokens", "image_latents"]
    scale: float = 1.0


def token_encoding(config: VQConfig) -> ImageEncoding:
    """Returns the encoding that computes the tokens of an image tokenizer."""
    tokenizer = VQTokenizer(config, _EXECUTION)

    def encode(params: Params, pixels: Float[Array, "B H W 3"]) -> Any:
        return apply(tokenizer.encode, params, pixels)

    return ImageEncoding(
        config.image_size, "gen_encoder", ("encoder", "quant_conv", "codebook"), encode, "image_tokens"
    )


def latent_encoding(config: VAEConfig, image_size: int) -> ImageEncoding:
    """Returns the encoding that computes the scaled means of a VAE's latents.

    Means rather than samples, because the VAE's standard deviations are small compared to its latents, the flow adds
    its own noise, and training that computes latents itself also uses the means.
    """
    vae = VAE(config, _EXECUTION)

    def encode(params: Params, pixels: Float[Array, "B H W 3"]) -> Any:
        return apply(vae.encode, params, pixels).mean.reshape(len(pixels), -1) * config.scaling_factor

    return ImageEncoding(image_size, "vae", ("encoder", "quant_conv"), encode, "image_latents", config.scaling_factor)


class ImageEncoder:
    """Encodes batches of images in float32 on all devices of this process."""

    def __init__(
        self, encoding: ImageEncoding, params: Params, batch_size: int, devices: Sequence[jax.Device] | None = None
    ):
        """Puts the parameters on the devices.

        Args:
          encoding: The encoding.
          params: Parameters of `encoding.module`.
          batch_size: Images per batch, rounded up to a multiple of the number of devices.
          devices: Devices to use. Default: all devices of this process.
        """
        self.encoding = encoding
        self._mesh = make_mesh(devices=jax.local_devices() if devices is None else devices)
        self.batch_size = round_up(batch_size, num_data_shards(self._mesh))
        replicated, sharded = NamedSharding(self._mesh, PartitionSpec()), batch_sharding(self._mesh)
        self._params = jax.device_put({name: params[name] for name in encoding.parameters}, replicated)
        self._encode = jax.jit(
            lambda params, images: encoding.encode(params, to_pixels(images)),
            in_shardings=(replicated, sharded),
            out_shardings=sharded,
        )

    def __call__(self, images: UInt8[np.ndarray, "B H W 3"]) -> Shaped[Array, "B2 N"]:
        """Starts to encode up to `batch_size` images. Returns their vectors, then those of padding images."""
        padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
        padded[: len(images)] = images
        with use_mesh(self._mesh):
            return self._encode(self._params, jax.device_put(padded, batch_sharding(self._mesh)))


@dataclass(frozen=True)
class OpenedEncoder:
    """An opened image tokenizer or VAE. A call reads its parameters.

    Attributes:
      checkpoint: Opened checkpoint that contains it.
      encoding: How it encodes images.
    """

    checkpoint: Checkpoint
    encoding: ImageEncoding

    def __call__(self, batch_size: int) -> ImageEncoder:
        """Reads the parameters and returns the encoder."""
        params = unflatten_dict({keys[1:]: array for keys, array in self._arrays("float32")})
        return ImageEncoder(self.encoding, params, batch_size)

    def fingerprint(self) -> dict[str, Any]:
        """Returns JSON values that are equal for encoders that compute the same tokens or latents.

        Only the signs of the parameters are hashed. Conversion to another dtype or layout keeps all signs; training
        changes some.
        """
        digest = hashlib.sha256()
        for keys, array in self._arrays():
            digest.update(f"{'/'.join(keys)} {array.shape}\n".encode())
            digest.update(np.packbits(np.signbit(array)).tobytes())
        size, scale = self.encoding.image_size, self.encoding.scale
        return {"image_size": size, "scale": scale, "parameters": digest.hexdigest()[:16]}

    def _arrays(self, dtype: str | None = None) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
        for keys, _, array in self.checkpoint.params(dtype, parts=(self.encoding.module,)):
            if keys[1] in self.encoding.parameters:
                yield keys, array


def open_image_encoder(source: Path | Checkpoint) -> OpenedEncoder:
    """Opens the image tokenizer or the VAE of a checkpoint.

    The checkpoint contains a model, or only an image tokenizer or a VAE, in any layout. The config of a separate VAE
    has no image size, so images get that of JanusFlow-1.3B.

    Raises:
      JanusError: The checkpoint has no image tokenizer or VAE.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    path = checkpoint.path
    config: Any = checkpoint.config
    image_size = JanusFlowConfig().gen_image_size
    if isinstance(config, JanusFlowConfig):
        config, image_size = config.vae, config.gen_image_size
        if config is None:
            raise JanusError(f"--tokenizer {path} is a JanusFlow model without its VAE; give the folder of the VAE.")
    elif isinstance(config, JanusConfig):
        config = config.gen_encoder
    if isinstance(config, VQConfig):
        encoding = token_encoding(config)
    elif isinstance(config, VAEConfig):
        encoding = latent_encoding(config, image_size)
    else:
        raise JanusError(f"--tokenizer {path} is a {type(config).__name__}; give a model, an image tokenizer or a VAE.")
    return OpenedEncoder(checkpoint, encoding)


def encode_shards(
    writer: ShardWriter,
    indices: Sequence[int],
    encoder: ImageEncoder,
    report: Callable[[int], None] = lambda records: None,
) -> None:
    """Adds image tokens or latents to the records of finished shards, see `Record.tokenized_images`.

    Args:
      writer: Writer of the dataset.
      indices: Indices of the shards. Each process of a cluster passes different ones.
      encoder: Encoder of the model to train.
      report: Called after each batch with the number of records encoded so far.
    """
    encoding, style = encoder.encoding, editing_style(writer.spec.editing)
    size = encoding.image_size
    total = 0

    def pixels(image: tuple[Record, int]) -> UInt8[np.ndarray, "H W 3"]:
        record, number = image
        opened = open_image(record.images[number])
        if record.task is Task.EDITING:
            return style.square(opened, size, min(DEFAULT_MIN_SIDE, size))
        return prepare_generation(opened, size)

    def encode(records: Iterator[Record]) -> Iterator[Record]:
        waiting: deque[Record] = deque()
        vectors: deque[Shaped[np.ndarray, " N"]] = deque()

        def images() -> Iterator[tuple[Record, int]]:
            for record in records:
                waiting.append(record)
                yield from ((record, number) for number in record.tokenized_images)

        def complete() -> Iterator[Record]:
            nonlocal total
            while waiting and len(vectors) >= (count := len(waiting[0].tokenized_images)):
                record, own = waiting.popleft(), [vectors.popleft() for _ in range(count)]
                total += 1
                fields: dict[str, Any] = {encoding.field: np.concatenate(own)} if own else {}
                yield replace(record, **fields)
            report(total)

        # The devices encode one batch while the threads decode the next.
        running: tuple[int, Any] | None = None
        unread = images()
        while group := list(islice(unread, encoder.batch_size)):
            started = len(group), encoder(np.stack(list(threads.map(pixels, group))))
            if running is not None:
                vectors.extend(np.asarray(running[1])[: running[0]])  # Without those of padding images.
                yield from complete()
            running = started
        if running is not None:
            vectors.extend(np.asarray(running[1])[: running[0]])
        yield from complete()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for index in indices:
            writer.add_image_tokens(index, encode)
