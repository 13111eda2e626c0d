"""Sources of records, one module per format, registered in `SOURCES`."""

from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.data.sources import captions, conversations, edits, folder, text, tfds, webdataset
from janus_jax.data.sources.base import (
    SOURCES,
    Entry,
    Part,
    Source,
    SourceOptions,
    get_source,
    register_source,
)
from janus_jax.data.sources.input_files import InputFile

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
    "edits",
    "folder",
    "get_source",
    "register_source",
    "text",
    "tfds",
    "webdataset",
]
