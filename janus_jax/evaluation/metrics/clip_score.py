"""CLIP score (arXiv 2104.08718): how well pictures go with their prompts, by a CLIP that lies beside the data."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from jaxtyping import Float, Int
from PIL import Image

from checkpoints_convert.readers import open_tensors
from janus_jax.errors import JanusError
from janus_jax.files import naming, read_json, reading

if TYPE_CHECKING:
    from janus_jax.evaluation.metrics.clip import CLIPConfig

FOLDER = "clip"
LAYOUT = f"""and for the CLIP score, which is left out without it:
{FOLDER}/{{config.json,model.safetensors,tokenizer.json,preprocessor_config.json}}, as transformers has it"""

_BATCH = 32
_READERS = min(8, os.cpu_count() or 1)
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_score(data: Path, files: Sequence[Path], prompts: Sequence[str]) -> float | None:
    """The mean of 100 max(cos, 0) over pictures and their prompts; None where a benchmark's folder has no CLIP.

    Raises:
      JanusError: what is there is not what it should be.
    """
    if not (data / FOLDER).is_dir():
        return None
    judge = Judge(data / FOLDER)
    scores: list[float] = []
    for start in range(0, len(files), _BATCH):
        scores += judge.scores(files[start : start + _BATCH], prompts[start : start + _BATCH]).tolist()
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class Eyes:
    """How pictures are shown to a CLIP.

    Attributes:
      side: pixels of a side of the square in the middle.
      mean, deviation: of its channels, of pixels in [0, 1].
    """

    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def see(self, file: Path) -> Float[np.ndarray, "S S 3"]:
        """A picture: its shorter side scaled (bicubic), its middle cut out, its channels normalised."""
        with reading(file), Image.open(file) as opened:
            image = opened.convert("RGB")
        scale = self.side / min(image.size)
        width, height = (int(side * scale + 1e-6) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        pixels = np.asarray(image.crop((left, top, left + self.side, top + self.side)), np.float32) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)


class Judge:
    """A CLIP, on its device, with its tokenizer.

    Args:
      folder: of transformers' layout.

    Raises:
      JanusError: a file is missing or not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        import jax

        from janus_jax.evaluation.metrics.clip import clip_config, clip_params

        with naming(folder / "config.json"):
            self.config: CLIPConfig = clip_config(read_json(folder / "config.json"))
        tensors = open_tensors(folder / "model.safetensors")
        with naming(folder / "model.safetensors"):
            self._tensors = jax.device_put(clip_params(tensors, self.config))
        self.eyes = _eyes(folder / "preprocessor_config.json", self.config.side)
        with reading(folder / "tokenizer.json"):
            content = (folder / "tokenizer.json").read_text(encoding="utf-8")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # The library raises nothing narrower.
            raise JanusError(f"{folder / 'tokenizer.json'} is damaged ({error}); fetch it again.") from error
        # Special tokens stay: the end-of-text is the last of what is left.
        self._tokenizer.enable_truncation(self.config.positions)
        self._tokenizer.no_padding()

    def scores(self, files: Sequence[Path], prompts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """100 max(cos, 0) of each picture and its prompt, up to `_BATCH` of them."""
        from janus_jax.evaluation.metrics.clip import embed_pictures, embed_texts

        with ThreadPoolExecutor(_READERS) as readers:
            pixels = np.stack(list(readers.map(self.eyes.see, files)))
        ids, last = self._ids(prompts)
        pictures = embed_pictures(self._tensors, _filled(pixels), self.config)
        texts = embed_texts(self._tensors, _filled(ids), _filled(last), self.config)
        cosines = np.asarray((pictures * texts).sum(axis=-1))[: len(files)]
        return 100 * np.maximum(cosines, 0)

    def _ids(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, " B"]]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(prompts))]
        ids = np.zeros((len(rows), self.config.positions), np.int32)
        for row, written in zip(ids, rows, strict=True):
            row[: len(written)] = written
        return ids, np.array([len(row) - 1 for row in rows], np.int32)


def _eyes(file: Path, side: int) -> Eyes:
    values: dict[str, Any] = read_json(file) if file.exists() else {}
    channels = [tuple(values.get(name, usual)) for name, usual in (("image_mean", _MEAN), ("image_std", _DEVIATION))]
    if any(len(numbers) != 3 or not all(isinstance(n, int | float) for n in numbers) for numbers in channels):
        raise JanusError(f"{file}: image_mean and image_std must be three numbers each.")
    return Eyes(side, *channels)


def _filled(rows: np.ndarray) -> np.ndarray:
    """A batch that a program is there for, its last row repeated."""
    return np.concatenate([rows, np.repeat(rows[-1:], _BATCH - len(rows), axis=0)])
