"""FID and CLIP score of a benchmark's generated images."""

from collections.abc import Sequence

from janus_jax.evaluation.benchmark import Answers, Options, Scores
from janus_jax.evaluation.generation.image_requests import ImageRequest, generated_files
from janus_jax.evaluation.metrics import clip_score, fid

LAYOUT = f"{fid.LAYOUT}\n{clip_score.LAYOUT}"
"""The part of a benchmark's layout that the metrics read."""


def score_images(requests: Sequence[ImageRequest], answers: Answers, options: Options) -> Scores:
    """Computes the metrics that the benchmark's data folder has weights and references for.

    Args:
      options: `fid` is one of `fid.METHODS`.

    Raises:
      JanusError: An image, a weight file or a reference is missing or malformed.
    """
    data, files = requests[0].data, generated_files(requests, answers)
    clip = clip_score.clip_score(data, files, [request.prompt for request in requests])
    return fid.compute_fid(data, files, options["fid"]) | ({} if clip is None else {"clip": clip})
