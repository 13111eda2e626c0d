"""The batch type that the data pipeline and the processor pass to the model.

A batch holds packed token sequences and their images. A position holds a text token, a patch of an input image
(understanding), or a token of a target image (generation) or of a context image. Training, evaluation and sampling use
the same type.

The batch is a named tuple, which is a pytree in jax and does not need jax: `processing` does not import it.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped, UInt8

NO_IMAGE = -1
"""Value of `und_patch_index` and `gen_token_index` at positions outside images."""

NO_POSITION = -1
"""Padding of `text_targets` and `gen_starts`."""

PADDING_SEGMENT = 0
"""Value of `segment_ids` at padding."""


class Batch(NamedTuple):
    """B packed sequences of length L, as numpy or jax arrays.

    Image positions index into the images of their own sequence: patch n of input image u has index `u * N + n`.
    Because no index refers to another sequence, a batch can be sharded along B.

    Attributes:
      tokens: Text token ids. Image positions hold the image placeholder's id; its embedding is not used.
      segment_ids: Example number within the sequence, starting at 1; `PADDING_SEGMENT` marks padding. A position
        attends to earlier positions with the same segment id only.
      positions: Rotary positions, restarting at 0 in each segment.
      und_patch_index: Index of the input-image patch at this position, or `NO_IMAGE`.
      gen_token_index: Index of the image token (or patch of latents) at this position, or `NO_IMAGE`.
      und_images: Input images, uint8 RGB, zero-padded to U per sequence.
      gen_images: Target images, uint8 RGB, zero-padded to G per sequence, then context images, zero-padded to C. The
        tokens of context images, such as the source of an edit, are read but not predicted. M = G + C.
      text_targets: Positions of the text tokens that are targets. Each is predicted from the previous position. Padded
        to T per sequence with `NO_POSITION`. Training only.
      gen_starts: Position of the first token of each target image, padded with `NO_POSITION`. All its tokens are
        targets. Training only.
      gen_ids: Precomputed tokens of the target and context images; `gen_images` may then be empty. None: the image
        tokenizer runs on `gen_images`.
      gen_latents: Latents of the target images, interpolated between noise and image (JanusFlow, which has no context
        images). None: the VAE runs on `gen_images`.
      gen_times: Time of the latents: 0 is noise, 1 is the image. None: the time of all latents is 1.
      und_features: Precomputed embeddings of the input images; `und_images` may then be empty. None: the understanding
        encoder runs on `und_images`.
    """

    tokens: Int[Any, "B L"]
    segment_ids: Int[Any, "B L"]
    positions: Int[Any, "B L"]
    und_patch_index: Int[Any, "B L"]
    gen_token_index: Int[Any, "B L"]
    und_images: UInt8[Any, "B U H W 3"]
    gen_images: UInt8[Any, "B M H2 W2 3"]
    text_targets: Int[Any, "B T"] | None = None
    gen_starts: Int[Any, "B G"] | None = None
    gen_ids: Int[Any, "B M N"] | None = None
    gen_latents: Float[Any, "B G h w C"] | None = None
    gen_times: Float[Any, "B G"] | None = None
    und_features: Float[Any, "B U N D"] | None = None

    @property
    def is_token(self) -> Bool[Any, "B L"]:
        """True at positions that are not padding."""
        return self.segment_ids != PADDING_SEGMENT

    @property
    def num_input_images(self) -> int:
        """U."""
        images: int = (self.und_images if self.und_features is None else self.und_features).shape[1]
        return images

    @property
    def shape(self) -> tuple[int, int]:
        """B and L."""
        tokens: Shaped[Any, "B L"] = self.tokens
        return tokens.shape[0], tokens.shape[1]
