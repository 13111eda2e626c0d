"""Latents of an image along a flow, beside PyTorch as the public demo of JanusFlow runs it."""

from dataclasses import replace
from typing import TYPE_CHECKING, Self

import jax.numpy as jnp
import numpy as np

from benchmarks.shared import prompt_batch, weights
from checkpoints_convert.released_flow import LAYOUT
from janus_jax.config import Dtype, Execution, JanusFlowConfig, LlamaConfig, SiglipConfig
from janus_jax.generation.rectified_flow import FlowSampler, sample_latents
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.janusflow import JanusFlow
from janus_jax.pretrained import place_params

if TYPE_CHECKING:
    from benchmarks.flow_peer import Peer

# The generation encoder and decoder are the release's; understanding takes no part, nor does the VAE.
SMALL = JanusFlowConfig(
    name="6 layers of width 1024",
    und_encoder=SiglipConfig(width=64, depth=1, num_heads=1, mlp_dim=64),
    vae=None,
    llm=LlamaConfig(vocab_size=8192, width=1024, depth=6, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
)
RELEASED = replace(SMALL, name="JanusFlow-1.3B", llm=LlamaConfig())
DRAWING = FlowSampler()
BOS, PAD, BEGIN_OF_IMAGE = 0, 2, 3
PROMPT_PLACES = 64


class Flow:
    """Both sides, with the same weights, prompt and noise."""

    def __init__(self, config: JanusFlowConfig, execution: Execution, drawing: FlowSampler = DRAWING) -> None:
        self.config, self.drawing, self.model = config, drawing, JanusFlow(config, execution)
        dtype = np.dtype(execution.param_dtype)
        numbers = ((unit.leaf.keys, unit.layer, array.astype(dtype)) for unit, array in weights(config, LAYOUT))
        self.params = place_params(numbers, config, execution, mesh=None)
        random, g = np.random.default_rng(0), config.gen_encoder
        self.prompt = random.integers(8, config.llm.vocab_size, (1, PROMPT_PLACES), np.int32)
        self.prompt[0, 0], self.prompt[0, -1] = BOS, BEGIN_OF_IMAGE
        self.noise = random.standard_normal((1, g.latent_channels, g.latent_size, g.latent_size), np.float32)
        self._peer: Peer | None = None

    def beside(self, dtype: Dtype, device: str) -> Self:
        """With a peer."""
        from benchmarks.flow_peer import Peer

        written = (part for unit, array in weights(self.config, LAYOUT) for part in unit.write(array))
        self._peer = Peer(self.config, dtype, device, dict(written))
        return self

    def ours(self) -> np.ndarray:
        """Latents of one image."""
        noise = jnp.asarray(self.noise.transpose(0, 2, 3, 1))
        keys = sampling_keys(0, 0, range(1))[None]
        drawn = sample_latents(self.model, self.params, prompt_batch(self.prompt), keys, self.drawing, noise=noise)
        return np.asarray(drawn).transpose(0, 3, 1, 2)

    def theirs(self) -> np.ndarray:
        """Latents of one image."""
        assert self._peer is not None
        return self._peer.draw(self.prompt, self.noise, self.drawing.steps, self.drawing.guidance_scale, PAD)
