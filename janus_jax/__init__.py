"""Janus, Janus-Pro and JanusFlow in JAX: one transformer that understands images and draws them.

from janus_jax import load
janus = load("Janus-Pro-1B")
janus.chat([{"role": "user", "content": "<image_placeholder>\\nWhat is this?", "images": ["photo.jpg"]}])
janus.generate(["A lighthouse at dusk"])[0][0].save("lighthouse.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from janus_jax.pretrained import Pretrained, load

__all__ = ["Pretrained", "load"]


def __getattr__(name: str) -> Any:
    # On demand: data workers import parts of this package, and jax must not start in them.
    if name in __all__:
        from janus_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
