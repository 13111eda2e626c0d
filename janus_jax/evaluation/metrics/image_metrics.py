"""FID and CLIP score of the images that a benchmark generated."""

from collections.abc import Sequence
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Options, Scores
from janus_jax.evaluation.generation.image_requests import ImageRequest, generated_files
from janus_jax.evaluation.metrics import clip_score, fid


def layout(size: int | None = None) -> str:
    """Describes the files that `score_images` needs, as part of `Benchmark.layout`."""
    return f"{fid.layout(size)}\n{clip_score.LAYOUT}"


def check_files(data: Path, options: Options, size: int | None = None) -> None:
    """Checks the files that `score_images` needs. Call it before any image is generated.

    Raises:
      JanusError: A weight file or reference is missing or malformed.
    """
    fid.check_reference(data, options["fid"], size)
    clip_score.check_model(data)


def score_images(
    requests: Sequence[ImageRequest], answers: Answers, options: Options, size: int | None = None
) -> Scores:
    """Computes FID and CLIP score. Omits a metric whose weights are not in the benchmark's data folder.

    Args:
      options: Contains `fid`, the name of the preprocessing (`fid.METHODS`).
      size: Size of the squares to which FID reduces all images (`fid.center_square`); None for whole images.

    Raises:
      JanusError: An image, a weight file or a reference is missing or malformed.
    """
    data, files = requests[0].data, generated_files(requests, answers)
    clip = clip_score.clip_score(data, files, [request.prompt for request in requests])
    return fid.compute_fid(data, files, options["fid"], size) | ({} if clip is None else {"clip": clip})
