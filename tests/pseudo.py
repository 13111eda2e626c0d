"""Checkpoints in the released layout with pseudo-random weights."""

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from checkpoints_convert import released
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from janus_jax.config import JanusConfig
from janus_jax.processing import Tokenizer, make_byte_level_tokenizer
from janus_jax.storage import atomic_folder, write_json

CORPUS = (
    "A picture of a lake in the mountains at sunset, with the light of the low sun on the water and on the hills.",
    "The photograph shows a small town near the sea; there are boats, white houses, and a lighthouse on the rocks.",
    "In the foreground there is a path through a green meadow. Behind it stand old trees, and above them clouds drift.",
    "The image is mostly blue and orange. It looks calm: nobody is seen, nothing moves, and the evening is near.",
    "On the left a bird sits on a branch, looking at the moon. On the right, a river runs down into the dark valley.",
    "What is in this picture? Describe the scene in a few words. Which colours are there, and where is the sun?",
)
"""Training texts of the tokenizer."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Scales other than variance 1 / fan-in: residual branches of convolutional blocks, for smooth images, and the output
# layer, for pixels in about [-1, 1].
_SIZES = {".conv2.weight": 0.2, "decoder.conv_out.weight": 0.5}
_TEXT_HEAD = "language_model.lm_head.weight"


def make_checkpoint(
    folder: Path, config: JanusConfig, corpus: Iterable[str], progress: Callable[[], object] = lambda: None
) -> None:
    """Writes a released checkpoint folder: bfloat16 weights, config, tokenizer and processor files.

    The same config and corpus give the same bytes.

    Args:
      folder: The folder; it must not exist.
      config: Config of the model.
      corpus: Training texts of the tokenizer.
      progress: Called after each tensor.

    Raises:
      JanusError: the folder exists or cannot be written, or the vocabulary is too small for the tokenizer.
    """
    manifest = released.manifest(config)
    with atomic_folder(folder) as new:
        tokenizer = make_byte_level_tokenizer(
            new,
            corpus,
            config.llm.vocab_size,
            config.conversation,
            image_size=config.und_encoder.image_size,
            num_image_tokens=config.und_encoder.num_patches,
        )
        write_json(new / "config.json", released.config_to_json(config, "bfloat16"))
        with SafetensorsWriter(new, {name: (shape, _BFLOAT16) for name, shape in manifest.items()}) as writer:
            for name, shape in manifest.items():
                array = pseudo_tensor(name, shape)
                if name == _TEXT_HEAD:
                    array *= readable(tokenizer, config.llm.vocab_size)[:, None]
                writer.write(name, array)
                progress()


def pseudo_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 weights at initialization scale that depend on name and shape only."""
    normal = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
    if len(shape) > 1:
        size = next((size for end, size in _SIZES.items() if name.endswith(end)), 1.0)
        return normal * np.float32(size / np.sqrt(np.prod(shape[1:])))
    is_norm = "norm" in name.split(".")[-2] and name.endswith(".weight")
    return np.float32(is_norm) + np.float32(0.02) * normal


def readable(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """Returns a scale for each token of the text head, large for whole words.

    An untrained model then generates random words instead of random bytes.
    """
    texts = [tokenizer.decode([token]) for token in range(vocab_size)]
    return np.array([2.5 if text.startswith(" ") and len(text) > 3 else 0.02 for text in texts], np.float32)
