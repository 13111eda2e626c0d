"""Small trained models of this example, in the layouts of the releases. The README has their training and scores."""

from pathlib import Path

JANUS = Path(__file__).parent / "Janus-shapes"
"""Folder of the Janus, for `janus_jax.load`."""

JANUSFLOW = JANUS.with_name("JanusFlow-shapes")
"""Folder of the JanusFlow."""
