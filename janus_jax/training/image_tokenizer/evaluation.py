"""What a tokenizer is worth: PSNR, SSIM, rFID, the use of its codes, and its reconstructions to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from examples.shapes import tokenizer_metrics as world
from janus_jax.evaluation.metrics.frechet import FEATURE_DIM, FeatureStatistics, Gaussian, frechet_distance
from janus_jax.evaluation.metrics.inception import Inception
from janus_jax.generation.padding import round_up
from janus_jax.models.backbone import Params, to_images, to_pixels
from janus_jax.models.vq import VQTokenizer
from janus_jax.sharding import batch_sharding, num_data_shards
from janus_jax.training.image_tokenizer import codebook
from janus_jax.training.image_tokenizer import image_metrics as metrics
from janus_jax.training.image_tokenizer.vq import run

_SHOWN = 8


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gives.

    Attributes:
      scalars: the figures.
      pairs: images above their reconstructions, one picture.
    """

    scalars: dict[str, float]
    pairs: UInt8[np.ndarray, "H W 3"]


class Evaluation:
    """Evaluates parameters on the same images every time.

    Args:
      model: the tokenizer.
      images: what it is evaluated on.
      batch_size: images at a time.
      inception: the parameters of `Inception`; None leaves rFID out.
      of_world: whether the images are of the shapes world, which its detector then reads.
      mesh: None for one device.
    """

    def __init__(
        self,
        model: VQTokenizer,
        images: UInt8[np.ndarray, "N S S 3"],
        batch_size: int,
        inception: Params | None = None,
        of_world: bool = False,
        mesh: Mesh | None = None,
    ) -> None:
        self._model, self._images, self._batch_size = model, images, batch_size
        self._inception, self._of_world, self._mesh = inception, of_world, mesh
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._reconstruct = jax.jit(self._reconstruct_batch, out_shardings=whole)
        self._features = jax.jit(_features, out_shardings=whole)
        self._real: Gaussian | None = None

    def __call__(self, params: Params) -> Evaluated:
        """The figures of these parameters."""
        results = [self._reconstruct(params, batch) for batch in self._batches(self._images)]
        count = len(self._images)
        pictures, ids, psnr, ssim = (np.concatenate(parts)[:count] for parts in zip(*results, strict=True))
        counts = np.bincount(ids.reshape(-1), minlength=self._model.config.codebook_size)
        scalars = {
            "eval/psnr": float(psnr.mean()),
            "eval/ssim": float(ssim.mean()),
            "eval/codes_used": float(np.mean(counts > 0)),
            "eval/code_perplexity": float(codebook.perplexity(jnp.asarray(counts, jnp.float32))),
            "eval/colour_explained": _explained(world.patches_of(self._images, ids.shape[1]).mean(axis=1), ids),
        }
        if self._of_world:
            scalars["eval/read_right"] = world.read_right(self._images, pictures)
            scalars["eval/colour_determined"] = world.colour_determined(self._images, ids)
        if self._inception is not None:
            self._real = self._real or self._statistics(self._images)
            scalars["eval/rfid"] = frechet_distance(self._real, self._statistics(pictures))
        shown = np.stack([self._images[:_SHOWN], pictures[:_SHOWN]])
        pairs = shown.transpose(0, 2, 1, 3, 4).reshape(2 * shown.shape[2], -1, 3)
        return Evaluated(scalars, pairs)

    def _reconstruct_batch(
        self, params: Params, images: UInt8[Array, "B S S 3"]
    ) -> tuple[UInt8[Array, "B S S 3"], Int[Array, "B N"], Float[Array, " B"], Float[Array, " B"]]:
        ids = run(self._model, params, to_pixels(images), method=self._model.encode)
        pictures = to_images(run(self._model, params, ids, method=self._model.decode))
        return pictures, ids, metrics.psnr(images, pictures), metrics.ssim(images, pictures)

    def _statistics(self, images: UInt8[np.ndarray, "N S S 3"]) -> Gaussian:
        statistics = FeatureStatistics(FEATURE_DIM)
        left = len(images)
        for batch in self._batches(images):
            features = np.asarray(self._features(self._inception, batch))
            statistics.add(features[:left])
            left -= len(features)
        return statistics.gaussian()

    def _batches(self, images: UInt8[np.ndarray, "N S S 3"]) -> Iterator[Any]:
        """Batches on the devices; the last image fills the last one."""
        size = round_up(min(self._batch_size, len(images)), num_data_shards(self._mesh))
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            if self._mesh is None:
                yield batch
            else:
                yield jax.make_array_from_callback(batch.shape, batch_sharding(self._mesh), batch.__getitem__)


def _features(params: Params, images: UInt8[Array, "B S S 3"]) -> Float[Array, "B D"]:
    features: Float[Array, "B D"] = run(Inception(), params, to_pixels(images))
    return features


def _explained(values: Float[np.ndarray, "M 3"], ids: Int[np.ndarray, "N T"]) -> float:
    """The share of the variance of the patches' mean colours that lies between codes."""
    flat = ids.reshape(-1)
    counts = np.maximum(np.bincount(flat), 1)[:, None]
    means = np.stack([np.bincount(flat, values[:, c]) for c in range(3)], axis=1) / counts
    total = np.square(values - values.mean(axis=0)).sum()
    return float(1 - np.square(values - means[flat]).sum() / total) if total else 1.0
