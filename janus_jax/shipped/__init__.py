"""What comes with the package: a small Janus of the shapes world, in the layout that the models were released in.

docs/shapes.md tells how it was trained and what it scores.
"""

from pathlib import Path

SHAPES = Path(__file__).parent / "Janus-shapes"
"""Its folder, as `janus_jax.load` takes it."""
