"""Engine that serves many requests on one model: continuous batching of text and image tokens."""

from janus_jax.generation.engine.handle import Completion, Handle
from janus_jax.generation.engine.requests import (
    ChatRequest,
    EditRequest,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerateRequest,
    PartialPicture,
    Picture,
    Request,
    TextPiece,
    Usage,
)

__all__ = [
    "ChatRequest",
    "Completion",
    "EditRequest",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "Handle",
    "PartialPicture",
    "Picture",
    "Request",
    "TextPiece",
    "Usage",
]
