"""What networks that lie beside the data say of pictures: FID and CLIP score."""

from collections.abc import Sequence

from janus_jax.evaluate.benchmark import Answers, Scores
from janus_jax.evaluate.generation import clip, fid
from janus_jax.evaluate.generation.picture import Picture, drawn_files

JUDGES = f"{fid.LAYOUT}\n{clip.LAYOUT}"
"""The part of a layout that says which files the judges are read from."""


def judged(pictures: Sequence[Picture], answers: Answers, method: str) -> Scores:
    """FID and CLIP score, each where the benchmark's folder has what it takes.

    Args:
      method: of FID.

    Raises:
      JanusError: a picture, or a file of a judge, is not what it should be.
    """
    data, files = pictures[0].data, drawn_files(pictures, answers)
    found = {
        "fid": fid.fid(data, files, method),
        "clip": clip.clip_score(data, files, [picture.prompt for picture in pictures]),
    }
    return {name: value for name, value in found.items() if value is not None}
