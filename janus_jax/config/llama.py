"""Config of the language model."""

from dataclasses import dataclass

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


@dataclass(frozen=True)
class LlamaConfig:
    """Language model: a LLaMA decoder with untied embeddings and no biases (DeepSeek-LLM, arXiv 2401.02954).

    Attributes:
      vocab_size: Number of text tokens.
      width: Width of the hidden states.
      depth: Number of blocks.
      num_heads: Query heads.
      num_kv_heads: Key and value heads; a divisor of `num_heads`.
      head_dim: Width of a head.
      mlp_dim: Width of the hidden layer of a block.
      rms_norm_eps: Epsilon of the norms.
      rope_theta: Base of the rotary frequencies.
      max_positions: Context length in tokens.
    """

    vocab_size: int = 102400
    width: int = 2048
    depth: int = 24
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 128
    mlp_dim: int = 5632
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_positions: int = 16384

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_heads % self.num_kv_heads:
            raise JanusError(
                f"LlamaConfig.num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise JanusError(f"LlamaConfig.head_dim is {self.head_dim}; rotary positions need an even number.")
