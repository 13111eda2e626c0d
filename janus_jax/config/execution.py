"""How a model is run, which is no property of its weights."""

from dataclasses import dataclass
from typing import Literal

from janus_jax.config.fields import check_fields

AttentionKernel = Literal["xla", "cudnn", "splash"]
RematPolicy = Literal["none", "dots", "full"]
LayerLoop = Literal["scanned", "unrolled"]
Dtype = Literal["float32", "bfloat16", "float16"]


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
        `models.backbone.unroll_params` and `scan_params` change one into the other.
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
        check_fields(self)
