"""Every architecture number of the Janus family, the released presets, and what a model costs.

The dataclasses are frozen and hold plain numbers, so that a config can be hashed as a static argument of
`jax.jit`, compared, and written to json. How a model is *run* (dtypes, attention kernel, remat, scan) is no
property of its weights and stands apart, in `Execution`.

Sources: Janus (arXiv 2410.13848), Janus-Pro (arXiv 2501.17811), SigLIP (arXiv 2303.15343), LlamaGen's image
tokenizer (arXiv 2406.06525).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args, get_origin

from janus_jax.errors import JanusError

Gelu = Literal["exact", "tanh"]
ConversationStyle = Literal["janus", "janus_pro"]
VisualEncoder = Literal["und_encoder", "gen_encoder"]
AttentionKernel = Literal["xla", "cudnn", "splash"]
RematPolicy = Literal["none", "dots", "full"]
LayerLoop = Literal["scanned", "unrolled"]
Dtype = Literal["float32", "bfloat16", "float16"]


# Far above any model, and far below what makes a loop over layers or an array of pixels exhaust the machine.
_MOST = {"depth": 1000, "num_res_blocks": 64, "image_size": 1 << 14}
_MOST_OF_ALL = (1 << 31) - 1


def _check_fields(config: Any) -> None:
    """Holds each field against its declared kind: sizes are whole and positive, other numbers finite and positive.

    Raises:
      JanusError: a field is none of what it may be; the message names it.
    """
    for f in dataclasses.fields(config):
        value, where = getattr(config, f.name), f"{type(config).__name__}.{f.name}"
        most = _MOST.get(f.name, _MOST_OF_ALL)
        if f.type is int and not (_is_whole(value) and 0 < value <= most):
            raise JanusError(f"{where} is {value!r:.80}; it must be a whole number from 1 to {most}.")
        if f.type is float and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise JanusError(f"{where} is {value!r:.80}; it must be a positive number.")
        if get_origin(f.type) is Literal and value not in get_args(f.type):
            raise JanusError(f"{where} is {value!r:.80}; it must be one of {', '.join(get_args(f.type))}.")
        if get_origin(f.type) is tuple and not (
            isinstance(value, tuple) and value and all(_is_whole(item) and 0 < item <= 1024 for item in value)
        ):
            raise JanusError(f"{where} is {value!r:.80}; it must be a list of whole numbers from 1 to 1024.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class SiglipConfig:
    """The understanding encoder: a pre-LN ViT without class token (SigLIP, arXiv 2303.15343)."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_dim: int = 4096
    layer_norm_eps: float = 1e-6
    # timm's tower, which Janus was trained with, uses the exact GELU; SigLIP as transformers releases it, the
    # tanh approximation.
    gelu: Gelu = "exact"

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.image_size % self.patch_size:
            raise JanusError(
                f"SiglipConfig.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}."
            )
        if self.width % self.num_heads:
            raise JanusError(f"SiglipConfig.width {self.width} is not a multiple of num_heads {self.num_heads}.")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_patches(self) -> int:
        """Patches, and so embeddings, of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_params(self) -> int:
        patch_embed = 3 * self.patch_size**2 * self.width + self.width
        attention = 4 * (self.width**2 + self.width)
        mlp = 2 * self.width * self.mlp_dim + self.mlp_dim + self.width
        block = attention + mlp + 4 * self.width
        return patch_embed + self.num_patches * self.width + self.depth * block + 2 * self.width

    @property
    def num_attention_pool_params(self) -> int:
        """Numbers of the attention-pool head that released files carry and no Janus model uses."""
        attention = 4 * (self.width**2 + self.width)
        mlp = 2 * self.width * self.mlp_dim + self.mlp_dim + self.width
        return self.width + attention + 2 * self.width + mlp

    @property
    def flops_per_image(self) -> int:
        """Floating-point operations of one forward pass over one image, matrix products only."""
        n, w = self.num_patches, self.width
        block = n * (8 * w * w + 4 * w * self.mlp_dim) + 4 * n * n * w
        return 2 * n * 3 * self.patch_size**2 * w + self.depth * block


@dataclass(frozen=True)
class VQConfig:
    """The image tokenizer: a convolutional VQGAN with a normalised low-dimensional codebook (LlamaGen, §2.1)."""

    image_size: int = 384
    codebook_size: int = 16384
    code_dim: int = 8
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    # Residual blocks of one encoder level; a decoder level has one more.
    num_res_blocks: int = 2
    z_channels: int = 256
    norm_groups: int = 32
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.image_size % self.downsampling:
            raise JanusError(
                f"VQConfig.image_size {self.image_size} is not a multiple of {self.downsampling}, "
                f"the tokenizer's downsampling."
            )
        for channels in self.level_channels:
            if channels % self.norm_groups:
                raise JanusError(
                    f"VQConfig.norm_groups {self.norm_groups} does not divide {channels}, the channels of one level."
                )

    @property
    def downsampling(self) -> int:
        """Pixels along one side of the square that one id stands for."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid_size(self) -> int:
        return self.image_size // self.downsampling

    @property
    def num_tokens(self) -> int:
        """Ids of one image."""
        return self.grid_size**2

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each resolution, finest first."""
        return tuple(self.base_channels * m for m in self.channel_multipliers)

    @property
    def num_params(self) -> int:
        return self._encoder_cost.params + self._decoder_cost.params + self.codebook_size * self.code_dim

    @property
    def encode_flops_per_image(self) -> int:
        """Floating-point operations of pixels -> ids for one image, products only."""
        return self._encoder_cost.flops + 2 * self.num_tokens * self.codebook_size * self.code_dim

    @property
    def decode_flops_per_image(self) -> int:
        """Floating-point operations of ids -> pixels for one image, products only."""
        return self._decoder_cost.flops

    @property
    def _encoder_cost(self) -> "_ConvCost":
        cost, side, channels = _ConvCost(), self.image_size, self.base_channels
        cost.conv(3, 3, channels, side)
        for level, width in enumerate(self.level_channels):
            lowest = level == len(self.level_channels) - 1
            for _ in range(self.num_res_blocks):
                cost.res_block(channels, width, side)
                channels = width
                if lowest:
                    cost.attention(width, side)
            if not lowest:
                side //= 2
                cost.conv(3, width, width, side)
        cost.middle(channels, side)
        cost.norm(channels)
        cost.conv(3, channels, self.z_channels, side)
        cost.conv(1, self.z_channels, self.code_dim, side)
        return cost

    @property
    def _decoder_cost(self) -> "_ConvCost":
        cost, side, channels = _ConvCost(), self.grid_size, self.level_channels[-1]
        cost.conv(1, self.code_dim, self.z_channels, side)
        cost.conv(3, self.z_channels, channels, side)
        cost.middle(channels, side)
        for level, width in enumerate(reversed(self.level_channels)):
            for _ in range(self.num_res_blocks + 1):
                cost.res_block(channels, width, side)
                channels = width
                if level == 0:
                    cost.attention(width, side)
            if level < len(self.level_channels) - 1:
                side *= 2
                cost.conv(3, width, width, side)
        cost.norm(channels)
        cost.conv(3, channels, 3, side)
        return cost


@dataclass
class _ConvCost:
    """Parameters and floating-point operations, added up layer by layer along a convolutional net."""

    params: int = 0
    flops: int = 0

    def conv(self, kernel: int, inputs: int, outputs: int, side: int) -> None:
        self.params += kernel**2 * inputs * outputs + outputs
        self.flops += 2 * side**2 * kernel**2 * inputs * outputs

    def norm(self, channels: int) -> None:
        self.params += 2 * channels

    def res_block(self, inputs: int, outputs: int, side: int) -> None:
        self.norm(inputs)
        self.conv(3, inputs, outputs, side)
        self.norm(outputs)
        self.conv(3, outputs, outputs, side)
        if inputs != outputs:
            self.conv(1, inputs, outputs, side)

    def attention(self, channels: int, side: int) -> None:
        self.norm(channels)
        for _ in range(4):
            self.conv(1, channels, channels, side)
        self.flops += 4 * side**4 * channels

    def middle(self, channels: int, side: int) -> None:
        self.res_block(channels, channels, side)
        self.attention(channels, side)
        self.res_block(channels, channels, side)


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
        _check_fields(self)
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


@dataclass(frozen=True)
class JanusConfig:
    """Janus and Janus-Pro: decoupled visual encoders around one causal transformer (arXiv 2410.13848, §3.1)."""

    name: str = "janus_pro_1b"
    und_encoder: SiglipConfig = field(default_factory=SiglipConfig)
    gen_encoder: VQConfig = field(default_factory=VQConfig)
    llm: LlamaConfig = field(default_factory=LlamaConfig)
    # Width between the two layers of the image head.
    gen_head_width: int = 2048
    # Role strings differ between the releases, and scores fall with the wrong ones.
    conversation: ConversationStyle = "janus_pro"
    # Which encoder images to understand go through. The papers' models have one of their own for it; "gen_encoder" is
    # what they compare with, one encoder for both (arXiv 2410.13848, table 5, A).
    understands_by: VisualEncoder = "und_encoder"

    def __post_init__(self) -> None:
        _check_fields(self)
        und, gen = self.und_encoder, self.gen_encoder
        if self.understands_by == "gen_encoder" and (und.image_size, und.num_patches) != (
            gen.image_size,
            gen.num_tokens,
        ):
            raise JanusError(
                f"JanusConfig.understands_by is 'gen_encoder', which makes {gen.num_tokens} ids of {gen.image_size} "
                f"pixels, where und_encoder makes {und.num_patches} patches of {und.image_size}; give both the same."
            )

    @property
    def num_params(self) -> int:
        """Numbers in the parameter tree (the released files' unused attention pool and counter left out)."""
        width = self.llm.width
        und_adaptor = _mlp_params(self.und_encoder.width, width, width)
        gen_embed = self.gen_encoder.codebook_size * self.gen_encoder.code_dim
        gen_adaptor = _mlp_params(self.gen_encoder.code_dim, width, width)
        gen_head = _mlp_params(width, self.gen_head_width, self.gen_encoder.codebook_size)
        return (
            self.und_encoder.num_params
            + und_adaptor
            + self.gen_encoder.num_params
            + gen_embed
            + gen_adaptor
            + gen_head
            + self.llm.num_params
        )

    def flops_per_image_token(self, context: int) -> int:
        """Floating-point operations of one generated image id: adaptor, transformer and image head.

        Args:
          context: number of places the id attends to, itself included.
        """
        width = self.llm.width
        adaptor = 2 * (self.gen_encoder.code_dim * width + width * width)
        head = 2 * (width * self.gen_head_width + self.gen_head_width * self.gen_encoder.codebook_size)
        return self.llm.flops_per_token(context, text_logits=False) + adaptor + head

    def to_dict(self) -> dict[str, Any]:
        """The config as nested plain values, for json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config that `to_dict` wrote.

        Raises:
          JanusError: a field is missing, unknown or of the wrong kind; the message names it.
        """
        return _from_dict(cls, values, cls.__name__)


def _mlp_params(inputs: int, hidden: int, outputs: int) -> int:
    return inputs * hidden + hidden + hidden * outputs + outputs


def _from_dict(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise JanusError(f"{where} is {values!r:.80}; it must be an object with the fields of {cls.__name__}.")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(fields)):
        raise JanusError(f"{where} has no field {unknown[0]!r}; its fields are {', '.join(fields)}.")
    if missing := sorted(set(fields) - set(values)):
        raise JanusError(f"{where}.{missing[0]} is missing.")
    arguments = {}
    for name, f in fields.items():
        value = values[name]
        if dataclasses.is_dataclass(f.type):
            value = _from_dict(f.type, value, f"{where}.{name}")
        elif get_origin(f.type) is tuple and isinstance(value, list):
            value = tuple(value)
        elif f.type is str and not isinstance(value, str):
            raise JanusError(f"{where}.{name} is {value!r:.80}; it must be text.")
        arguments[name] = value
    return cls(**arguments)


@dataclass(frozen=True)
class Execution:
    """How a model is run; the same weights serve every choice.

    Attributes:
      dtype: of activations and matrix products. Softmax, norms and logits are float32 whatever it is.
      param_dtype: of freshly made parameters.
      attention: the attention kernel: "xla" anywhere, "cudnn" on NVIDIA GPUs, "splash" on TPUs.
      remat: what the backward pass computes again rather than keeps: "none", "dots" (keeps matrix products that
        have no batch axis), "full" (keeps each block's input alone).
      layers: "scanned" stacks the parameters of all blocks of a transformer, so that compile time does not grow with
        depth; "unrolled" is the form for sampling: one tree a block, so that a decoding step reads each matrix where
        it lies (a scan would copy it out of the stack first), and matrices that read the same input fused into one.
        `models.janus.unroll_params` and `scan_params` change one into the other.
      scan_unroll: blocks that one turn of the loop over "scanned" layers computes. All of them in one turn is a tenth
        faster for small models on a CPU, and takes longer to compile.
    """

    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    attention: AttentionKernel = "xla"
    remat: RematPolicy = "none"
    layers: LayerLoop = "scanned"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        _check_fields(self)


def _tiny() -> JanusConfig:
    return JanusConfig(
        name="tiny",
        und_encoder=SiglipConfig(image_size=32, patch_size=8, width=64, depth=2, num_heads=2, mlp_dim=128),
        gen_encoder=VQConfig(
            image_size=32,
            codebook_size=128,
            base_channels=16,
            channel_multipliers=(1, 2, 2),
            num_res_blocks=1,
            z_channels=32,
            norm_groups=8,
        ),
        llm=LlamaConfig(
            vocab_size=512,
            width=64,
            depth=3,
            num_heads=4,
            num_kv_heads=4,
            head_dim=16,
            mlp_dim=160,
            max_positions=1024,
        ),
        gen_head_width=64,
    )


PRESETS: dict[str, JanusConfig] = {
    "janus_1.3b": JanusConfig(name="janus_1.3b", conversation="janus"),
    "janus_pro_1b": JanusConfig(name="janus_pro_1b"),
    "janus_pro_7b": JanusConfig(
        name="janus_pro_7b",
        llm=LlamaConfig(width=4096, depth=30, num_heads=32, num_kv_heads=32, mlp_dim=11008),
        gen_head_width=4096,
    ),
    # For tests and first steps: every part present, seconds to compile.
    "tiny": _tiny(),
}


def preset(name: str) -> JanusConfig:
    """The released model (or `tiny`) of that name.

    Raises:
      JanusError: there is no preset of that name.
    """
    if name not in PRESETS:
        raise JanusError(f"There is no model {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
