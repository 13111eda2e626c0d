"""Settings of a model's execution that do not depend on its weights."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from janus_jax.config.fields import check_fields

AttentionKernel = Literal["auto", "xla", "cudnn", "splash"]
RematPolicy = Literal["none", "dots", "full"]
LayerLoop = Literal["scanned", "unrolled"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "fp8", "int8_dynamic"]

StoredQuantization = Literal["none", "int8", "fp8"]
"""How a checkpoint stores the weights."""

WEIGHT_SCALE = "weight_scale"
"""Name of the scales of a quantized weight, one for each output."""


@dataclass(frozen=True)
class Execution:
    """Settings of how a model is computed. All values work with the same weights.

    Attributes:
      dtype: Dtype of activations and matrix products. Softmax, norms and logits are always float32.
      param_dtype: Dtype of newly initialized parameters.
      attention: Attention kernel: "xla" for all devices, "cudnn" for NVIDIA GPUs, "splash" for TPUs. "auto" is "cudnn"
        on NVIDIA GPUs since Ampere, "splash" on TPUs, and "xla" elsewhere. "xla" replaces a kernel for shapes and
        dtypes that it does not support.
      remat: Activations that the backward pass recomputes: "none", "dots" (all except products with weight matrices) or
        "full" (all except the input of each block).
      layers: "scanned" stacks the parameters of all blocks of a transformer, so that compile time does not grow with
        depth. "unrolled" is for sampling: each block has its own parameter tree, so that a decode step does not copy
        matrices out of a stack, and matrices with the same input are fused.
        `models.backbone.unroll_params` and `scan_params` convert one form into the other.
      quantization: "int8" or "fp8" (e4m3) stores the matrices of the language model, its text head and SigLIP in 8
        bits, with a scale for each output. "int8_dynamic" stores the same weights as "int8". It also rounds the input
        of each product to 8 bits, with a scale for each vector, and multiplies in integers. It is for sampling, with
        "unrolled" layers.
      scan_unroll: Blocks per iteration of the loop over "scanned" layers. For small models on a CPU, one iteration for
        all blocks is about 10% faster, but takes longer to compile.
    """

    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    attention: AttentionKernel = "auto"
    remat: RematPolicy = "none"
    layers: LayerLoop = "scanned"
    quantization: Quantization = "none"
    scan_unroll: int = 1

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def quantizes_inputs(self) -> bool:
        """Whether the products with quantized weights are products of integers."""
        return self.quantization == "int8_dynamic"

    @property
    def unquantized(self) -> "Execution":
        """The same settings with weights that are not quantized."""
        return dataclasses.replace(self, quantization="none")
