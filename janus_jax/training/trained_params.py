"""Patterns of the parameters that the stages of the papers train (`param_paths.partition`)."""

from janus_jax.training.losses.rectified_flow import ALIGNER

ADAPTORS_AND_HEAD = ("und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*")
"""Parameters that stage 1 trains.

The papers do not state whether `gen_embed` is trained. It is, because no earlier training exists for it.
"""

ALL_BUT_ENCODERS = (*ADAPTORS_AND_HEAD, "llm/*")
"""Parameters that stage 2 trains: everything except SigLIP and the image tokenizer."""

ALL_BUT_TOKENIZER = (*ALL_BUT_ENCODERS, "und_encoder/*")
"""Parameters that stage 3 trains."""

LINEAR_LAYERS_AND_FLOW = (
    "und_adaptor/*",
    "beg_of_und/*",
    "gen_encoder/*",
    "gen_adaptor/*",
    "gen_decoder_adaptor/*",
    "gen_decoder/*",
    f"{ALIGNER}/*",
)
"""Parameters that stage 1 of JanusFlow trains: its linear layers, generation encoder and decoder.

The paper does not state whether the embedding before an input image is trained. It is, because no earlier training
exists for it.
"""

FLOW_ALL_BUT_ENCODER = (*LINEAR_LAYERS_AND_FLOW, "llm/*")
"""Parameters that stage 2 of JanusFlow trains: everything except SigLIP and the VAE."""

FLOW_ALL_BUT_VAE = (*FLOW_ALL_BUT_ENCODER, "und_encoder/*")
"""Parameters that stage 3 of JanusFlow trains."""
