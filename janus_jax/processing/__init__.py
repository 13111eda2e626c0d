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
from janus_jax.processing.rows import Processor, Row, Task
from janus_jax.processing.tokenizer import SpecialIds, StreamDecoder, Tokenizer
from janus_jax.processing.tokenizer_making import make_byte_level_tokenizer

__all__ = [
    "MAX_PIXELS",
    "TEMPLATES",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "ConversationTemplate",
    "ImageSource",
    "Message",
    "Processor",
    "Rendered",
    "Row",
    "SpecialIds",
    "StreamDecoder",
    "Task",
    "Tokenizer",
    "TooManyPixels",
    "make_byte_level_tokenizer",
    "open_image",
    "prepare_generation",
    "prepare_understanding",
]
