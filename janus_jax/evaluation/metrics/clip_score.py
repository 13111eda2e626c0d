"""CLIP score (arXiv 2104.08718): the similarity of generated images to their prompts."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from jaxtyping import Float, Int, UInt8
from PIL import Image

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from janus_jax.files import prefix_errors, read_json, read_text, reading

if TYPE_CHECKING:
    from janus_jax.evaluation.metrics.clip import CLIPConfig

FOLDER = "clip"
LAYOUT = f"""for the CLIP score, optional:
{FOLDER}/{{config.json,model.safetensors,tokenizer.json,preprocessor_config.json}}, in the layout of transformers"""

OPEN_CLIP_CONFIG = "open_clip_config.json"

_BATCH_SIZE = 32
_READERS = min(8, os.cpu_count() or 1)
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_score(data: Path, files: Sequence[Path], prompts: Sequence[str]) -> float | None:
    """Returns the mean of 100 max(cos, 0) over images and their prompts, where cos is the cosine of their embeddings.

    Returns None if the data folder contains no CLIP model.

    Raises:
      JanusError: An image or a file of the model is missing or malformed.
    """
    if not (data / FOLDER).is_dir():
        return None
    scorer = CLIPScorer(data / FOLDER)
    scores: list[float] = []
    for start in range(0, len(files), _BATCH_SIZE):
        stop = start + _BATCH_SIZE
        scores += scorer.score_batch(files[start:stop], prompts[start:stop]).tolist()
    return sum(scores) / len(scores)


def check_model(data: Path) -> None:
    """Checks that the files of the CLIP model in a data folder exist and can be read, if there is a CLIP model.

    Raises:
      JanusError: A file is missing or malformed.
    """
    folder = data / FOLDER
    if folder.is_dir():
        read_json(folder / "config.json")
        open_tensors(folder / "model.safetensors")
        read_tokenizer(folder / "tokenizer.json")


@dataclass(frozen=True)
class ImagePreprocessor:
    """Prepares images for CLIP.

    Attributes:
      size: Width and height of prepared images in pixels.
      mean, std: Mean and standard deviation that normalize the channels of pixels in [0, 1].
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, file: Path) -> Float[np.ndarray, "S S 3"]:
        """Reads an image and prepares it."""
        with reading(file), Image.open(file) as opened:
            image = opened.convert("RGB")
        return self.prepare(image)

    def prepare(self, image: Image.Image) -> Float[np.ndarray, "S S 3"]:
        """Resizes an RGB image (bicubic, shorter side to `size`), crops the center, normalizes the channels."""
        scale = self.size / min(image.size)
        width, height = (int(side * scale + 1e-6) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.size) // 2, (height - self.size) // 2
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)), np.float32) / 255
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


class CLIPScorer:
    """CLIP model that compares images with prompts.

    Args:
      folder: Folder with `tokenizer.json`, in the layout of Hugging Face transformers. Without `weights` it also has
        `config.json` and `model.safetensors`.
      weights: Weight file of open_clip. If `open_clip_config.json` is next to it, it describes the architecture;
        otherwise the file is a ViT-H/14, such as HPSv2.1.

    Raises:
      JanusError: A file is missing or malformed.
    """

    def __init__(self, folder: Path, weights: Path | None = None) -> None:
        import jax

        from janus_jax.evaluation.metrics.clip import CLIP

        self.config, params = _read_transformers(folder) if weights is None else _read_open_clip(weights)
        self._params = jax.device_put(params)
        self._apply = jax.jit(CLIP(self.config).apply)
        self.preprocess = _read_preprocessor(folder / "preprocessor_config.json", self.config.image_size)
        self._tokenizer = read_tokenizer(folder / "tokenizer.json")
        # Truncation keeps the special tokens, so the last token is always the end-of-text token.
        self._tokenizer.enable_truncation(self.config.max_positions)
        self._tokenizer.no_padding()

    def score_batch(self, files: Sequence[Path], prompts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """Returns 100 max(cos, 0) for each image and its prompt. There are at most `_BATCH_SIZE` images."""
        with ThreadPoolExecutor(_READERS) as readers:
            pixels = np.stack(list(readers.map(self.preprocess, files)))
        return 100 * np.maximum(self._cosines(pixels, prompts), 0)

    def cosines(self, images: UInt8[np.ndarray, "B H W 3"], prompts: Sequence[str]) -> Float[np.ndarray, " B"]:
        """Returns the cosine of the embeddings of each RGB image and its prompt."""
        parts = [np.zeros(0, np.float32)]
        with ThreadPoolExecutor(_READERS) as threads:
            for start in range(0, len(prompts), _BATCH_SIZE):
                part = slice(start, start + _BATCH_SIZE)
                pixels = threads.map(self.preprocess.prepare, map(Image.fromarray, images[part]))
                parts.append(self._cosines(np.stack(list(pixels)), prompts[part]))
        return np.concatenate(parts)

    def _cosines(self, pixels: Float[np.ndarray, "B S S 3"], prompts: Sequence[str]) -> Float[np.ndarray, " B"]:
        ids, last = self._tokenize(prompts)
        images, texts = self._apply({"params": self._params}, *map(_pad_batch, (pixels, ids, last)))
        return np.asarray((images * texts).sum(axis=-1))[: len(prompts)]

    def _tokenize(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, " B"]]:
        sequences = [encoding.ids for encoding in self._tokenizer.encode_batch(list(prompts))]
        ids = np.zeros((len(sequences), self.config.max_positions), np.int32)
        for padded, sequence in zip(ids, sequences, strict=True):
            padded[: len(sequence)] = sequence
        return ids, np.array([len(sequence) - 1 for sequence in sequences], np.int32)


def _read_transformers(folder: Path) -> tuple["CLIPConfig", dict[str, Any]]:
    from janus_jax.evaluation.metrics.clip import clip_config, clip_params

    with prefix_errors(folder / "config.json"):
        config = clip_config(read_json(folder / "config.json"))
    tensors = open_tensors(folder / "model.safetensors")
    with prefix_errors(folder / "model.safetensors"):
        return config, clip_params(tensors, config)


def _read_open_clip(weights: Path) -> tuple["CLIPConfig", dict[str, Any]]:
    from janus_jax.evaluation.metrics.open_clip import VIT_H_14, open_clip_config, open_clip_params

    file = weights.parent / OPEN_CLIP_CONFIG
    with prefix_errors(file):
        config = open_clip_config(read_json(file).get("model_cfg", {}) if file.exists() else VIT_H_14)
    tensors = open_tensors(weights)
    with prefix_errors(weights):
        return config, open_clip_params(tensors, config)


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Returns CLIP's tokenizer.

    Raises:
      JanusError: The file is missing or malformed.
    """
    content = read_text(file)
    try:
        return tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # The library does not raise a more specific type.
        raise JanusError(f"{file} is not a usable tokenizer ({error}); download it again.") from error


def _read_preprocessor(file: Path, size: int) -> ImagePreprocessor:
    values: dict[str, Any] = read_json(file) if file.exists() else {}
    channels = [tuple(values.get(name, usual)) for name, usual in (("image_mean", _MEAN), ("image_std", _STD))]
    if any(len(numbers) != 3 or not all(isinstance(n, int | float) for n in numbers) for numbers in channels):
        raise JanusError(f"{file}: image_mean and image_std must be three numbers each.")
    return ImagePreprocessor(size, *channels)


def _pad_batch(batch: np.ndarray) -> np.ndarray:
    """Repeats the last element until the batch is full, so that only one shape is compiled."""
    return np.concatenate([batch, np.repeat(batch[-1:], _BATCH_SIZE - len(batch), axis=0)])
