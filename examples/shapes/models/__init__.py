"""Small trained models in the released layouts. The README of this example describes their training and scores."""

from pathlib import Path

JANUS = Path(__file__).parent / "Janus-shapes"
"""Folder of the small Janus, for `janus_jax.load`."""

JANUS_EDITS = JANUS.with_name("Janus-shapes-edits")
"""Folder of the small Janus after training on edits and conversations, for `janus_jax.load`."""

JANUSFLOW = JANUS.with_name("JanusFlow-shapes")
"""Folder of the small JanusFlow, for `janus_jax.load`."""
