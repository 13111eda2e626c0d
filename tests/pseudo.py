"""Checkpoints in the released layout, with pseudo-weights and a tokenizer."""

from collections.abc import Iterable
from pathlib import Path

from janus_jax.config import JanusConfig
from janus_jax.processing import make_byte_level_tokenizer
from tests.checkpoints_convert.checkpoints import save_released

CORPUS = (
    "A picture of a lake in the mountains at sunset, with the light of the low sun on the water and on the hills.",
    "The photograph shows a small town near the sea; there are boats, white houses, and a lighthouse on the rocks.",
    "In the foreground there is a path through a green meadow. Behind it stand old trees, and above them clouds drift.",
    "The image is mostly blue and orange. It looks calm: nobody is seen, nothing moves, and the evening is near.",
    "On the left a bird sits on a branch, looking at the moon. On the right, a river runs down into the dark valley.",
    "What is in this picture? Describe the scene in a few words. Which colors are there, and where is the sun?",
)
"""Training texts of the tokenizer."""


def make_checkpoint(folder: Path, config: JanusConfig, corpus: Iterable[str]) -> None:
    """Writes a released checkpoint folder: bfloat16 weights, config, tokenizer and processor files.

    The same config and corpus give the same bytes.
    """
    save_released(folder, config)
    make_byte_level_tokenizer(
        folder,
        corpus,
        config.llm.vocab_size,
        config.conversation,
        image_size=config.und_encoder.image_size,
        num_image_tokens=config.und_encoder.num_patches,
    )
