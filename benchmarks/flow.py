"""Sampling of JanusFlow latents with this project, and with PyTorch as JanusFlow's public demo does it."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from benchmarks.shared import copy_weights, load_weights, prompt_batch
from checkpoints_convert.released_flow import LAYOUT
from janus_jax.config import Dtype, Execution, JanusFlowConfig, LlamaConfig, SiglipConfig
from janus_jax.generation.rectified_flow import FlowSampler, sample_latents
from janus_jax.generation.sampling import sampling_keys
from janus_jax.models.janusflow import JanusFlow

# The generation encoder and decoder have the released size. The understanding encoder and the VAE are not used.
SMALL = JanusFlowConfig(
    name="6 layers of width 1024",
    und_encoder=SiglipConfig(width=64, depth=1, num_heads=1, mlp_dim=64),
    vae=None,
    llm=LlamaConfig(vocab_size=8192, width=1024, depth=6, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
)
RELEASED = replace(SMALL, name="JanusFlow-1.3B", llm=LlamaConfig())
BOS, PAD, BEGIN_OF_IMAGE = 0, 2, 3
PROMPT_LENGTH = 64


class FlowBenchmark:
    """Samples the latents of one image from the same weights, prompt and noise with jax and with PyTorch."""

    def __init__(self, config: JanusFlowConfig, execution: Execution) -> None:
        self.config, self.sampler, self.model = config, FlowSampler(), JanusFlow(config, execution)
        self.params = load_weights(config, execution, LAYOUT)
        random, g = np.random.default_rng(0), config.gen_encoder
        self.prompt = random.integers(8, config.llm.vocab_size, (1, PROMPT_LENGTH), np.int32)
        self.prompt[0, 0], self.prompt[0, -1] = BOS, BEGIN_OF_IMAGE
        self.noise = random.standard_normal((1, g.latent_channels, g.latent_size, g.latent_size), np.float32)

    def sample_with_jax(self) -> np.ndarray:
        """Returns the latents, channels first."""
        noise = jnp.asarray(self.noise.transpose(0, 2, 3, 1))
        keys = sampling_keys(0, 0, range(1))[None]
        latents = sample_latents(self.model, self.params, prompt_batch(self.prompt), keys, self.sampler, noise=noise)
        return np.asarray(latents).transpose(0, 3, 1, 2)

    def torch_sampler(self, dtype: Dtype, device: str) -> Callable[[], np.ndarray]:
        """Returns a function that samples latents with PyTorch from the same prompt, noise and weights."""
        from benchmarks.flow_torch import TorchJanusFlow

        model = TorchJanusFlow(self.config, dtype, device)
        copy_weights(model, self.config, LAYOUT)
        steps, scale = self.sampler.steps, self.sampler.guidance_scale
        return lambda: model.sample(self.prompt, self.noise, steps=steps, guidance_scale=scale, pad=PAD)
