"""Converts messages and images to token sequences and batches. Uses numpy only; does not import jax."""

from janus_jax.processing.conversation import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT, Message
from janus_jax.processing.images import (
    DamagedImage,
    ImageSource,
    TooManyPixels,
    open_image,
    prepare_generation,
    prepare_understanding,
)
from janus_jax.processing.processor import Processor, Task, TokenSequence
from janus_jax.processing.tokenizer import StreamDecoder, Tokenizer
from janus_jax.processing.tokenizer_training import make_byte_level_tokenizer

__all__ = [
    "TEMPLATES",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "DamagedImage",
    "ImageSource",
    "Message",
    "Processor",
    "StreamDecoder",
    "Task",
    "TokenSequence",
    "Tokenizer",
    "TooManyPixels",
    "make_byte_level_tokenizer",
    "open_image",
    "prepare_generation",
    "prepare_understanding",
]
