"""Sources of records, one module per format, registered in `SOURCES`."""

from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources import captions, conversations, text, tfds, webdataset
from janus_jax.data.sources.base import (
    SOURCES,
    Entry,
    InputFile,
    Part,
    Source,
    SourceOptions,
    get_source,
    register_source,
)

__all__ = [
    "SOURCES",
    "Entry",
    "InputFile",
    "Part",
    "RejectReason",
    "RejectedRecord",
    "Source",
    "SourceOptions",
    "captions",
    "conversations",
    "get_source",
    "register_source",
    "text",
    "tfds",
    "webdataset",
]
