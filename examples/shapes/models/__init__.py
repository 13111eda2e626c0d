"""What comes with the package: a small Janus and a small JanusFlow of the shapes world, in their released layouts.

docs/shapes.md tells how it was trained and what it scores.
"""

from pathlib import Path

SHAPES = Path(__file__).parent / "Janus-shapes"
"""The Janus' folder, as `janus_jax.load` takes it."""

FLOW_SHAPES = SHAPES.with_name("JanusFlow-shapes")
"""The JanusFlow's."""
