"""Converts messages and images to token sequences and batches. Uses numpy only; does not import jax."""

from janus_jax.processing.conversation import TEMPLATES, UNDERSTANDING_SYSTEM_PROMPT, Message, assistant_images
from janus_jax.processing.editing import (
    EDITING_STYLES,
    Edit,
    EditingFormat,
    EditingStyle,
    editing_sequence,
    editing_style,
    editing_tokens,
    guidance_sequences,
    with_editing_images,
)
from janus_jax.processing.images import (
    DamagedImage,
    ImageSource,
    ImageWithTokens,
    TooManyPixels,
    decode_image,
    open_image,
    prepare_generation,
    prepare_understanding,
)
from janus_jax.processing.interleaved import (
    ConversationPrompt,
    Unconditional,
    answer_message,
    check_unconditional,
    conversation_prompt,
    generated_image_length,
    generated_image_piece,
    tail,
    text_piece,
    unconditional_conversation,
)
from janus_jax.processing.processor import Processor
from janus_jax.processing.sequences import Task, TokenSequence
from janus_jax.processing.tokenizer import StreamDecoder, Tokenizer
from janus_jax.processing.tokenizer_training import make_byte_level_tokenizer
from janus_jax.processing.transparency import Background

__all__ = [
    "EDITING_STYLES",
    "TEMPLATES",
    "UNDERSTANDING_SYSTEM_PROMPT",
    "Background",
    "ConversationPrompt",
    "DamagedImage",
    "Edit",
    "EditingFormat",
    "EditingStyle",
    "ImageSource",
    "ImageWithTokens",
    "Message",
    "Processor",
    "StreamDecoder",
    "Task",
    "TokenSequence",
    "Tokenizer",
    "TooManyPixels",
    "Unconditional",
    "answer_message",
    "assistant_images",
    "check_unconditional",
    "conversation_prompt",
    "decode_image",
    "editing_sequence",
    "editing_style",
    "editing_tokens",
    "generated_image_length",
    "generated_image_piece",
    "guidance_sequences",
    "make_byte_level_tokenizer",
    "open_image",
    "prepare_generation",
    "prepare_understanding",
    "tail",
    "text_piece",
    "unconditional_conversation",
    "with_editing_images",
]
