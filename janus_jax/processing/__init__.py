"""Converts messages and images to token sequences and batches. Uses numpy only; does not import jax."""

from janus_jax.processing.conversation import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT, Message
from janus_jax.processing.images import (
    DamagedImage,
    ImageSource,
    TooManyPixels,
    decode_image,
    open_image,
    prepare_generation,
    prepare_understanding,
)
from janus_jax.processing.processor import Processor, Task, TokenSequence
from janus_jax.processing.tokenizer import StreamDecoder, Tokenizer
from janus_jax.processing.tokenizer_training import make_byte_level_tokenizer
from janus_jax.processing.transparency import Background

__all__ = [
    "TEMPLATES",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "Background",
    "DamagedImage",
    "ImageSource",
    "Message",
    "Processor",
    "StreamDecoder",
    "Task",
    "TokenSequence",
    "Tokenizer",
    "TooManyPixels",
    "decode_image",
    "make_byte_level_tokenizer",
    "open_image",
    "prepare_generation",
    "prepare_understanding",
]
