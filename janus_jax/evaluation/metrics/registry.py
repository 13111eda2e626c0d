"""What networks that lie beside the data say of pictures: FID and CLIP score."""

from collections.abc import Sequence
from pathlib import Path

from janus_jax.evaluation.benchmark import Answers, Options, Scores
from janus_jax.evaluation.generation.image_requests import Picture, drawn_files
from janus_jax.evaluation.metrics import clip_score as clip
from janus_jax.evaluation.metrics import fid

JUDGES = f"{fid.LAYOUT}\n{clip.LAYOUT}"
"""The part of a layout that says which files the judges are read from."""


def write_predictions(pictures: Sequence[Picture], answers: Answers, folder: Path) -> None:
    """The pictures are there already."""
    drawn_files(pictures, answers)


def score(pictures: Sequence[Picture], answers: Answers, options: Options) -> Scores:
    """FIDs and the CLIP score, each where the benchmark's folder has what it takes.

    Raises:
      JanusError: a picture, or a file of a judge, is not what it should be.
    """
    data, files = pictures[0].data, drawn_files(pictures, answers)
    clip_score = clip.clip_score(data, files, [picture.prompt for picture in pictures])
    return fid.distances(data, files, options["fid"]) | ({} if clip_score is None else {"clip": clip_score})
