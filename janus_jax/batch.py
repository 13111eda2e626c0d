"""The batch that travels from data to model: rows of places, and the images that some places stand for.

A place holds a text id, a patch of an image to *understand*, or an id of an image to *generate*. Training,
evaluation and sampling all take this one type. It is a named tuple, so that numpy (in the data workers, where jax
must not be imported) and jax (where it is a pytree) share it.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped, UInt8

NO_IMAGE = -1
"""In `und_patch_index` and `gen_token_index`: this place is no part of an image."""

NO_POSITION = -1
"""In `text_targets` and `gen_starts`: there is none."""

PADDING_SEGMENT = 0
"""In `segment_ids`: this place is padding."""


class Batch(NamedTuple):
    """B rows of L places. Arrays are numpy's or jax's; images stay uint8 until they are on the device.

    Image places name their embedding by its position in the row's own images laid end to end: patch n of the row's
    image u is `u * N + n`. Indexing within the row keeps a batch whole when it is sharded over its rows.

    Attributes:
      tokens: text ids; at image places the id of the image placeholder (whose embedding is not used).
      segment_ids: which sample of the row a place belongs to, counted from 1; `PADDING_SEGMENT` marks padding.
        A place attends to earlier places of its own segment and to nothing else.
      positions: rotary position, restarting at 0 with every segment.
      und_patch_index: index of the understanding-image patch that fills the place, or `NO_IMAGE`.
      gen_token_index: index of the generation-image id, or patch of latents, that fills the place, or `NO_IMAGE`.
      und_images: images to understand, padded with zeros to U a row, RGB, 0..255.
      gen_images: images to generate, padded with zeros to G a row, RGB, 0..255.
      text_targets: for training: places whose text id is to be predicted (from the place before), padded with
        `NO_POSITION` to T a row.
      gen_starts: for training: the place of each generated image's first id, all of whose ids are to be predicted
        (the first from the place before it); `NO_POSITION` where a row has fewer images.
      gen_ids: ids of the images to generate where they are known; None where the tokenizer has yet to run on
        `gen_images`, which may be empty (G = 0) otherwise.
      gen_latents: in place of ids, for JanusFlow: latents of the images to generate where they are known, on their way
        from noise to the image; None where the VAE has yet to run on `gen_images`.
      gen_times: of the latents, how far on that way they are: 0 noise, 1 the image; None where all are at 1.
    """

    tokens: Int[Any, "B L"]
    segment_ids: Int[Any, "B L"]
    positions: Int[Any, "B L"]
    und_patch_index: Int[Any, "B L"]
    gen_token_index: Int[Any, "B L"]
    und_images: UInt8[Any, "B U H W 3"]
    gen_images: UInt8[Any, "B G H2 W2 3"]
    text_targets: Int[Any, "B T"] | None = None
    gen_starts: Int[Any, "B G"] | None = None
    gen_ids: Int[Any, "B G N"] | None = None
    gen_latents: Float[Any, "B G h w C"] | None = None
    gen_times: Float[Any, "B G"] | None = None

    @property
    def is_token(self) -> Bool[Any, "B L"]:
        """Positions that are not padding."""
        return self.segment_ids != PADDING_SEGMENT

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        tokens: Shaped[Any, "B L"] = self.tokens
        return tokens.shape[0], tokens.shape[1]
