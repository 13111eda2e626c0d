"""Configs by name: the released models, a tiny Janus and a tiny JanusFlow."""

from typing import TypeVar

from janus_jax.config.autoencoders import VAEConfig, VQConfig
from janus_jax.config.llama import LlamaConfig
from janus_jax.config.models import JanusConfig, JanusFlowConfig, ModelConfig
from janus_jax.config.siglip import SiglipConfig
from janus_jax.config.uvit import UViTConfig
from janus_jax.errors import JanusError

_TINY_SIGLIP = SiglipConfig(image_size=32, patch_size=8, width=64, depth=2, num_heads=2, mlp_dim=128)
_TINY_LLAMA = LlamaConfig(
    vocab_size=512, width=64, depth=3, num_heads=4, num_kv_heads=4, head_dim=16, mlp_dim=160, max_positions=1024
)


def _tiny() -> JanusConfig:
    return JanusConfig(
        name="tiny",
        und_encoder=_TINY_SIGLIP,
        gen_encoder=VQConfig(
            image_size=32,
            codebook_size=128,
            base_channels=16,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            z_channels=32,
            norm_groups=8,
        ),
        llm=_TINY_LLAMA,
        gen_head_width=64,
    )


def _tiny_flow() -> JanusFlowConfig:
    return JanusFlowConfig(
        name="tiny_flow",
        und_encoder=_TINY_SIGLIP,
        gen_encoder=UViTConfig(latent_size=16, width=32, encoder_depth=1, decoder_depth=2, kernel_size=3),
        vae=VAEConfig(base_channels=16, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=8),
        llm=_TINY_LLAMA,
    )


Kind = TypeVar("Kind", JanusConfig, JanusFlowConfig)

PRESETS: dict[str, ModelConfig] = {
    "janus_1.3b": JanusConfig(name="janus_1.3b", conversation="janus"),
    "janus_pro_1b": JanusConfig(name="janus_pro_1b"),
    "janus_pro_7b": JanusConfig(
        name="janus_pro_7b",
        llm=LlamaConfig(width=4096, depth=30, num_heads=32, num_kv_heads=32, mlp_dim=11008),
        gen_head_width=4096,
    ),
    "janusflow_1.3b": JanusFlowConfig(),
    # Small models with all parts, which compile in seconds.
    "tiny": _tiny(),
    "tiny_flow": _tiny_flow(),
}


def preset(name: str) -> ModelConfig:
    """Returns the config with this name.

    Raises:
      JanusError: The name is unknown.
    """
    if name not in PRESETS:
        raise JanusError(f"The model {name!r} is unknown; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]


def janus_preset(name: str) -> JanusConfig:
    """Returns the Janus or Janus-Pro config with this name.

    Raises:
      JanusError: The name is unknown or that of a JanusFlow config.
    """
    return _preset_of(name, JanusConfig)


def flow_preset(name: str) -> JanusFlowConfig:
    """Returns the JanusFlow config with this name.

    Raises:
      JanusError: The name is unknown or that of a Janus config.
    """
    return _preset_of(name, JanusFlowConfig)


def _preset_of(name: str, kind: type[Kind]) -> Kind:
    config = preset(name)
    if not isinstance(config, kind):
        allowed = [name for name, known in PRESETS.items() if isinstance(known, kind)]
        raise JanusError(f"{name!r} is a {type(config).__name__}; give one of {', '.join(allowed)}.")
    return config
