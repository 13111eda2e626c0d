"""Evaluates reconstructions: PSNR, SSIM, rFID, code usage and example images."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from janus_jax.evaluation.metrics.frechet import FEATURE_DIM, FeatureStatistics, Gaussian, frechet_distance
from janus_jax.evaluation.metrics.inception import Inception
from janus_jax.generation.padding import round_up
from janus_jax.models.backbone import Params, to_pixels
from janus_jax.sharding import num_data_shards
from janus_jax.training.callbacks.base import PeriodicEvaluation, TrainingRun
from janus_jax.training.data_parallel import DataParallel
from janus_jax.training.image_tokenizer import codebook
from janus_jax.training.image_tokenizer import image_metrics as metrics

_SHOWN = 8

Images = UInt8[np.ndarray, "N S S 3"]

ReconstructionMetrics = Callable[[Images, Images, Int[np.ndarray, "N T"] | None], Mapping[str, float]]
"""Maps images, reconstructions and code ids (None for a VAE) to metrics by name."""


class Reconstruction(PeriodicEvaluation):
    """Callback that reconstructs the same images at regular intervals and reports metrics.

    Args:
      reconstruct: Maps parameters and images to reconstructions and code ids (None for a VAE).
      params: Returns the parameters in a train state that are evaluated.
      images: Images to evaluate on.
      interval: Steps between two evaluations.
      batch_size: Images per batch.
      codebook_size: Number of codes; None for a VAE.
      inception: Parameters of `Inception`; None omits rFID.
      extra_metrics: Computes further metrics.
    """

    def __init__(
        self,
        reconstruct: Callable[..., Any],
        params: Callable[[Any], Params],
        images: Images,
        parallel: DataParallel,
        *,
        interval: int,
        batch_size: int,
        codebook_size: int | None = None,
        inception: Params | None = None,
        extra_metrics: ReconstructionMetrics | None = None,
    ) -> None:
        super().__init__(interval)
        self._params, self._images, self._parallel = params, images, parallel
        self._batch_size = round_up(min(batch_size, len(images)), num_data_shards(parallel.mesh))
        self._codebook_size, self._inception, self._extra_metrics = codebook_size, inception, extra_metrics
        self._real: Gaussian | None = None

        def evaluate(params: Params, images: UInt8[Array, "B S S 3"]) -> tuple[Array, ...]:
            reconstructions, ids = reconstruct(params, images)
            scores = metrics.psnr(images, reconstructions), metrics.ssim(images, reconstructions)
            return (reconstructions, *scores, *([] if ids is None else [ids]))

        self._evaluate = parallel.jit(evaluate)
        self._features = parallel.jit(lambda params, images: Inception().apply({"params": params}, to_pixels(images)))

    def evaluate_run(self, run: TrainingRun) -> None:
        """Evaluates the parameters, and also shows the example images."""
        scores, sheet = self.evaluate(self._params(run.state))
        run.writer.images(run.step, "reconstructions", [sheet])
        self.report(run, scores)

    def evaluate(self, params: Params) -> tuple[dict[str, float], UInt8[np.ndarray, "H W 3"]]:
        """Returns the metrics, and one picture of some images with their reconstructions below them."""
        results = [self._evaluate(params, batch) for batch in self._batches(self._images)]
        count = len(self._images)
        reconstructions, psnr, ssim, *ids = (np.concatenate(parts)[:count] for parts in zip(*results, strict=True))
        scores = {"psnr": float(psnr.mean()), "ssim": float(ssim.mean())}
        if self._codebook_size is not None:
            counts = np.bincount(ids[0].reshape(-1), minlength=self._codebook_size)
            scores["codes_used"] = float(np.mean(counts > 0))
            scores["code_perplexity"] = float(codebook.perplexity(jnp.asarray(counts, jnp.float32)))
        if self._extra_metrics is not None:
            scores |= self._extra_metrics(self._images, reconstructions, ids[0] if ids else None)
        if self._inception is not None:
            self._real = self._real or self._statistics(self._images)
            scores["rfid"] = frechet_distance(self._real, self._statistics(reconstructions))
        shown = np.stack([self._images[:_SHOWN], reconstructions[:_SHOWN]])
        sheet = shown.transpose(0, 2, 1, 3, 4).reshape(2 * shown.shape[2], -1, 3)
        return {f"eval/{name}": value for name, value in scores.items()}, sheet

    def _statistics(self, images: Images) -> Gaussian:
        statistics = FeatureStatistics(FEATURE_DIM)
        features = np.concatenate([self._features(self._inception, batch) for batch in self._batches(images)])
        statistics.add(features[: len(images)])
        return statistics.gaussian()

    def _batches(self, images: Images) -> Iterator[jax.Array]:
        """Yields batches on the devices. The last batch is filled by repeating the last image."""
        size = self._batch_size
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            yield self._parallel.global_batch(np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)]))
