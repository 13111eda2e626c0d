"""Sampling of JanusFlow latents, next to PyTorch as the public demo of JanusFlow runs it."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from benchmarks.shared import prompt_batch, weights
from checkpoints_convert.released_flow import LAYOUT
from janus_jax.config import Dtype, Execution, JanusFlowConfig, LlamaConfig, SiglipConfig
from janus_jax.generation.rectified_flow import FlowSampler, sample_latents
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.janusflow import JanusFlow
from janus_jax.pretrained import load_params

# The generation encoder and decoder have the released size. The understanding encoder and the VAE take no part.
SMALL = JanusFlowConfig(
    name="6 layers of width 1024",
    und_encoder=SiglipConfig(width=64, depth=1, num_heads=1, mlp_dim=64),
    vae=None,
    llm=LlamaConfig(vocab_size=8192, width=1024, depth=6, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
)
RELEASED = replace(SMALL, name="JanusFlow-1.3B", llm=LlamaConfig())
BOS, PAD, BEGIN_OF_IMAGE = 0, 2, 3
PROMPT_LENGTH = 64


class Flow:
    """Both sides, with the same weights, prompt and noise."""

    def __init__(self, config: JanusFlowConfig, execution: Execution) -> None:
        self.config, self.sampler, self.model = config, FlowSampler(), JanusFlow(config, execution)
        dtype = np.dtype(execution.param_dtype)
        numbers = ((unit.parameter.keys, unit.layer, array.astype(dtype)) for unit, array in weights(config, LAYOUT))
        self.params = load_params(numbers, config, execution, mesh=None)
        random, g = np.random.default_rng(0), config.gen_encoder
        self.prompt = random.integers(8, config.llm.vocab_size, (1, PROMPT_LENGTH), np.int32)
        self.prompt[0, 0], self.prompt[0, -1] = BOS, BEGIN_OF_IMAGE
        self.noise = random.standard_normal((1, g.latent_channels, g.latent_size, g.latent_size), np.float32)

    def ours(self) -> np.ndarray:
        """Samples the latents of one image, channels first."""
        noise = jnp.asarray(self.noise.transpose(0, 2, 3, 1))
        keys = sampling_keys(0, 0, range(1))[None]
        latents = sample_latents(self.model, self.params, prompt_batch(self.prompt), keys, self.sampler, noise=noise)
        return np.asarray(latents).transpose(0, 3, 1, 2)

    def peer(self, dtype: Dtype, device: str) -> Callable[[], np.ndarray]:
        """Returns the peer's computation of the same latents."""
        from benchmarks.flow_peer import Peer

        tensors = dict(part for unit, array in weights(self.config, LAYOUT) for part in unit.write(array))
        peer = Peer(self.config, dtype, device, tensors)
        steps, scale = self.sampler.steps, self.sampler.guidance_scale
        return lambda: peer.sample(self.prompt, self.noise, steps=steps, guidance_scale=scale, pad=PAD)
