"""The language model's numbers."""

from dataclasses import dataclass

from janus_jax.config.fields import check_fields
from janus_jax.errors import JanusError


@dataclass(frozen=True)
class LlamaConfig:
    """The language model: a LLaMA decoder, untied, without biases (DeepSeek-LLM, arXiv 2401.02954)."""

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

    @property
    def num_layer_params(self) -> int:
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return heads * self.head_dim * self.width + 3 * self.width * self.mlp_dim + 2 * self.width

    @property
    def num_params(self) -> int:
        return 2 * self.vocab_size * self.width + self.depth * self.num_layer_params + self.width

    def flops_per_token(self, context: int, *, text_logits: bool = True) -> int:
        """Floating-point operations of one token's forward pass, matrix products only.

        Args:
          context: number of places the token attends to, itself included. For a whole causal sequence of L
            places, the mean is (L + 1) / 2.
          text_logits: whether the token's text logits are computed; places of a generated image need none.
        """
        matrices = self.depth * (self.num_layer_params - 2 * self.width)
        attention = 2 * self.depth * self.num_heads * self.head_dim * context
        return 2 * (matrices + attention) + text_logits * 2 * self.vocab_size * self.width
