"""FID and CLIP score of the images that a benchmark generated."""

from collections.abc import Sequence

from janus_jax.evaluation.benchmark import Answers, Options, Scores
from janus_jax.evaluation.generation.image_requests import ImageRequest, generated_files
from janus_jax.evaluation.metrics import clip_score, fid

LAYOUT = f"{fid.LAYOUT}\n{clip_score.LAYOUT}"
"""Files of the metrics, as a part of `Benchmark.layout`."""


def score_images(requests: Sequence[ImageRequest], answers: Answers, options: Options) -> Scores:
    """Computes FID and CLIP score. Omits a metric whose weights are not in the benchmark's data folder.

    Args:
      options: Contains `fid`, the name of the preprocessing (`fid.METHODS`).

    Raises:
      JanusError: An image, a weight file or a reference is missing or malformed.
    """
    data, files = requests[0].data, generated_files(requests, answers)
    clip = clip_score.clip_score(data, files, [request.prompt for request in requests])
    return fid.compute_fid(data, files, options["fid"]) | ({} if clip is None else {"clip": clip})
