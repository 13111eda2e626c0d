"""Janus, Janus-Pro and JanusFlow in JAX: one transformer that understands and generates images.

from janus_jax import load
janus = load("Janus-Pro-1B")
janus.chat([{"role": "user", "content": "<image_placeholder>\\nWhat is this?", "images": ["photo.jpg"]}])
janus.generate(["A lighthouse at dusk"])[0][0].save("lighthouse.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_jax.pretrained import Pretrained, load
    from janus_jax.training.recipe_files import load_recipe

__version__ = "0.1.0"
__all__ = ["Pretrained", "load", "load_recipe"]


def __getattr__(name: str) -> Any:
    # Imported on first use: janus-prepare and thin clients import parts of this package and do not import jax.
    if name in ("Pretrained", "load"):
        from janus_jax import pretrained

        return getattr(pretrained, name)
    if name == "load_recipe":
        from janus_jax.training.recipe_files import load_recipe

        return load_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
