"""Whole checkpoints from nothing: the released layout, with pseudo-random numbers in place of trained ones."""

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
"""What a tokenizer may learn its words from."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What deviates from variance 1 / fan-in: what a convolutional block adds, for calm pictures rather than noise, and the
# pixels, which would lie far beyond black and white.
_SIZES = {".conv2.weight": 0.2, "decoder.conv_out.weight": 0.5}
_TEXT_HEAD = "language_model.lm_head.weight"


def make_checkpoint(
    folder: Path, config: JanusConfig, corpus: Iterable[str], progress: Callable[[], object] = lambda: None
) -> None:
    """Writes a checkpoint folder as the releases are: weights in bfloat16, config, tokenizer, processor.

    The same config and corpus give the same bytes.

    Args:
      folder: where; it must not exist.
      config: of the model.
      corpus: what the tokenizer learns its words from.
      progress: called after every tensor.

    Raises:
      JanusError: the folder exists or cannot be written, or the vocabulary has no room for the tokenizer.
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
    """float32 numbers that only the name and the shape decide, of the size that freshly made weights have."""
    normal = np.random.Generator(np.random.Philox(zlib.crc32(name.encode()))).standard_normal(shape, np.float32)
    if len(shape) > 1:
        size = next((size for end, size in _SIZES.items() if name.endswith(end)), 1.0)
        return normal * np.float32(size / np.sqrt(np.prod(shape[1:])))
    is_norm = "norm" in name.split(".")[-2] and name.endswith(".weight")
    return np.float32(is_norm) + np.float32(0.02) * normal


def readable(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """A weight for every row of the text head: much for whole words, little for pieces of words and single bytes.

    What a model without training writes is noise; so it is at least noise of words.
    """
    texts = [tokenizer.decode([token]) for token in range(vocab_size)]
    return np.array([2.5 if text.startswith(" ") and len(text) > 3 else 0.02 for text in texts], np.float32)
