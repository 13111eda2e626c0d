"""Attention masks.

Two rules define every mask. A position attends only to positions of its own segment. In causal attention it attends
only to itself and to earlier positions.
"""

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class Mask:
    """Mask of T queries over S keys.

    Attributes:
      query_segments, key_segments: Segment ids of queries and keys. None: there is one segment.
      causal: Whether attention is causal.
      query_offset: Index of the first query among the keys, if the queries continue a cache: one number, or one for
        each sequence. None: queries and keys are the same positions.
    """

    query_segments: Int[Array, "B T"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    # Static, because it decides which computation is traced.
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    query_offset: Int[Array, "..."] | None = None

    def dense(self, num_queries: int, num_keys: int) -> Bool[Array, "#B 1 T S"] | None:
        """Returns booleans that are True where a query attends to a key, or None if all queries attend to all keys."""
        allowed = None
        if self.query_segments is not None and self.key_segments is not None:
            allowed = self.query_segments[:, None, :, None] == self.key_segments[:, None, None, :]
        if self.causal:
            slots = jnp.arange(num_queries)
            if self.query_offset is not None:
                slots += self.query_offset[..., None]
            order = (slots[..., None] >= jnp.arange(num_keys)).reshape(-1, 1, num_queries, num_keys)
            allowed = order if allowed is None else allowed & order
        return allowed

    def block(self, start: int, stop: int, num_keys: int) -> "Mask":
        """Returns the causal mask of queries `start` to `stop` over the first `num_keys` keys."""
        queries = None if self.query_segments is None else self.query_segments[:, start:stop]
        keys = None if self.key_segments is None else self.key_segments[:, :num_keys]
        offset = start if self.query_offset is None else self.query_offset + start
        return Mask(queries, keys, causal=True, query_offset=jnp.asarray(offset))


UNMASKED = Mask()
"""Mask under which every query attends to every key."""
