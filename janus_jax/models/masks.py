"""Which places attend to which.

Two rules decide it everywhere: a place attends only within its segment and, where the order matters, only to places
before it and to itself.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Mask:
    """Who attends to whom.

    Attributes:
      query_segments, key_segments: a query attends only to keys of its own segment; None, to all.
      causal: whether a query attends only to keys at its own slot and before it.
      query_offset: slot of the first query among the keys, where queries continue a cache; None where they are
        the keys' own places.
    """

    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    # No data: it decides what is computed, also within a transformation that traces the mask.
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    query_offset: Int[Array, ""] | None = None

    def dense(self, num_queries: int, num_keys: int) -> Bool[Array, "#B 1 T S"] | None:
        """The mask as booleans, True where a query attends; None where everything is attended to."""
        allowed = None
        if self.query_segments is not None and self.key_segments is not None:
            allowed = self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if self.causal:
            slots = jnp.arange(num_queries) + (0 if self.query_offset is None else self.query_offset)
            order = (slots[:, None] >= jnp.arange(num_keys))[None, None]
            allowed = order if allowed is None else allowed & order
        return allowed

    def block(self, start: int, stop: int, num_keys: int) -> "Mask":
        """The mask of queries `start` to `stop` and the first `num_keys` keys."""
        queries = None if self.query_segments is None else self.query_segments[:, start:stop]
        keys = None if self.key_segments is None else self.key_segments[:, :num_keys]
        offset = start if self.query_offset is None else self.query_offset + start
        return Mask(queries, keys, causal=True, query_offset=jnp.asarray(offset))


EVERYTHING = Mask()
