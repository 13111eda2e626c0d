"""Architecture configs of the Janus family, and the released presets.

Configs are frozen dataclasses of plain values. They are hashable, so they can be static arguments of `jax.jit`, and
`dataclasses.asdict` converts them to json values. `Execution` holds the settings that do not depend on the weights,
such as dtypes, attention kernel and remat policy.

Sources: Janus (arXiv 2410.13848), Janus-Pro (arXiv 2501.17811), JanusFlow (arXiv 2411.07975), SigLIP (arXiv
2303.15343), LlamaGen's image tokenizer (arXiv 2406.06525), SDXL's VAE (arXiv 2307.01952).
"""

from janus_jax.config.autoencoders import AutoencoderConfig, VAEConfig, VQConfig
from janus_jax.config.execution import (
    WEIGHT_SCALE,
    AttentionKernel,
    Dtype,
    Execution,
    LayerLoop,
    Quantization,
    RematPolicy,
    StoredQuantization,
)
from janus_jax.config.fields import config_from_dict
from janus_jax.config.llama import LlamaConfig
from janus_jax.config.models import ConversationStyle, JanusConfig, JanusFlowConfig, ModelConfig, VisualEncoder
from janus_jax.config.presets import PRESETS, flow_preset, janus_preset, preset
from janus_jax.config.siglip import Gelu, SiglipConfig
from janus_jax.config.uvit import UViTConfig

__all__ = [
    "PRESETS",
    "WEIGHT_SCALE",
    "AttentionKernel",
    "AutoencoderConfig",
    "ConversationStyle",
    "Dtype",
    "Execution",
    "Gelu",
    "JanusConfig",
    "JanusFlowConfig",
    "LayerLoop",
    "LlamaConfig",
    "ModelConfig",
    "Quantization",
    "RematPolicy",
    "SiglipConfig",
    "StoredQuantization",
    "UViTConfig",
    "VAEConfig",
    "VQConfig",
    "VisualEncoder",
    "config_from_dict",
    "flow_preset",
    "janus_preset",
    "preset",
]
