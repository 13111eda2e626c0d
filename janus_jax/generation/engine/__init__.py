"""Engine that serves many requests on one model: continuous batching of text and image tokens."""

from janus_jax.generation.engine.engine import Engine, EngineClosed, EngineStats, Overloaded
from janus_jax.generation.engine.handle import Completion, Handle
from janus_jax.generation.engine.options import EngineOptions
from janus_jax.generation.engine.requests import (
    ChatRequest,
    ConverseRequest,
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
    "ConverseRequest",
    "EditRequest",
    "Engine",
    "EngineClosed",
    "EngineOptions",
    "EngineStats",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "GenerateRequest",
    "Handle",
    "Overloaded",
    "PartialPicture",
    "Picture",
    "Request",
    "TextPiece",
    "Usage",
]
