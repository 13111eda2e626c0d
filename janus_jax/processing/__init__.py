"""From messages and image files to rows of places and batches, in numpy: nothing in here imports jax."""

from janus_jax.processing.conversation import (
    TEMPLATES,
    UNDERSTANDING_SYSTEM_PROMPT,
    ConversationTemplate,
    Message,
    Rendered,
)
from janus_jax.processing.images import (
    MAX_PIXELS,
    ImageSource,
    TooManyPixels,
    open_image,
    prepare_generation,
    prepare_understanding,
)
from janus_jax.processing.processor import Processor, Task, TokenSequence
from janus_jax.processing.tokenizer import SpecialIds, StreamDecoder, Tokenizer
from janus_jax.processing.tokenizer_training import make_byte_level_tokenizer

__all__ = [
    "MAX_PIXELS",
    "TEMPLATES",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "ConversationTemplate",
    "ImageSource",
    "Message",
    "Processor",
    "Rendered",
    "SpecialIds",
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
