"""Everything that records are made from: one small file a kind, each registered in `SOURCES`."""

from janus_jax.data.sources import captions, conversations, text, tfds, webdataset
from janus_jax.data.sources.base import (
    SOURCES,
    Entry,
    InputFile,
    Part,
    RejectedRecord,
    RejectReason,
    Source,
    SourceOptions,
    get_source,
    register_source,
)

KINDS = (captions, conversations, text, tfds, webdataset)

__all__ = [
    "KINDS",
    "SOURCES",
    "Entry",
    "InputFile",
    "Part",
    "RejectReason",
    "RejectedRecord",
    "Source",
    "SourceOptions",
    "get_source",
    "register_source",
]
