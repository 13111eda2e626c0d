"""Measures a training step (time, MFU, memory, compile time), compared with transformers' Janus on PyTorch.

    python -m benchmarks.train
    python -m benchmarks.train --model janus_pro_1b --stages 1,2,3
    python -m benchmarks.train --model janus_pro_7b --stages 1 --rows 4

The first command uses a small model in float32 on two cores. Steps of this project and of PyTorch (`train_torch.py`)
alternate. Both have the same weights, text and understanding examples, trained parameters, clipping and AdamW. This
project packs examples into sequences; PyTorch has one example per sequence, padded to the longest one. The losses of
the first steps must agree.

The other commands are for an accelerator: they use a released model's shape with random weights, bfloat16 and sequences
of 4096 tokens, without PyTorch. They also report the largest memory in use, next to the size that the compiler computes
(as `janus-compile` does). docs/performance.md explains the figures. The last line is a JSON object with all results.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any, cast, get_args

import jax
from absl import flags
from flax.traverse_util import flatten_dict

from benchmarks.batches import equal_sequences, make_batch, unequal_sequences
from benchmarks.shared import alternate, has_torch, load_weights, machine, median_ratio, timed, use_cores
from janus_jax.accelerators import peak_flops
from janus_jax.batch import Batch
from janus_jax.commands import cli
from janus_jax.config import (
    AttentionKernel,
    Dtype,
    Execution,
    JanusConfig,
    LlamaConfig,
    RematPolicy,
    SiglipConfig,
    VQConfig,
    janus_preset,
)
from janus_jax.errors import JanusError
from janus_jax.models.janus import Janus
from janus_jax.training.flops import count_items, flops_per_item
from janus_jax.training.objectives import TokenObjective
from janus_jax.training.optimizers import MomentsDtype, OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import merge, partition
from janus_jax.training.state import abstract_train_state, random_params, state_from_params
from janus_jax.training.train_step import Microbatching, make_train_step, put_batch
from janus_jax.training.trained_params import ADAPTORS_AND_HEAD, ALL_BUT_ENCODERS, ALL_BUT_TOKENIZER

_MODEL = flags.DEFINE_string("model", None, "released model whose shape is used (default: a small model)")
_STAGES = flags.DEFINE_list("stages", ["1", "2", "3"], "stages whose step is measured")
_LENGTH = flags.DEFINE_integer("length", 4096, "tokens per sequence of a released model", lower_bound=128)
_ROWS = flags.DEFINE_integer("rows", 8, "sequences per batch", lower_bound=1)
_MICROBATCHES = flags.DEFINE_integer("microbatches", 1, "number of microbatches", lower_bound=1)
_DTYPE = flags.DEFINE_enum(
    "dtype", None, get_args(Dtype), "computation dtype (default: float32 on CPUs, else bfloat16)"
)
_MOMENTS = flags.DEFINE_enum("moments", "float32", get_args(MomentsDtype), "dtype of the optimizer's moments")
_ATTENTION = flags.DEFINE_enum("attention", "auto", get_args(AttentionKernel), "attention kernel of this project")
_REMAT = flags.DEFINE_enum("remat", None, get_args(RematPolicy), "default: none for the small model, else full")
_PAIRS = flags.DEFINE_integer("pairs", 7, "number of timed steps", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 2, "processor cores for the small model", lower_bound=1)
_PEAK = flags.DEFINE_float("peak_flops", None, "peak FLOP/s of the device (default: by its kind)")
_TORCH = flags.DEFINE_bool("torch", True, "also measure transformers on PyTorch, on a CPU and if installed")
_COMPILING = flags.DEFINE_bool("compiling", True, "also measure how the compile time grows with depth")

SMALL = JanusConfig(
    name="8 layers of width 512",
    und_encoder=SiglipConfig(image_size=224, patch_size=16, width=512, depth=6, num_heads=8, mlp_dim=2048),
    gen_encoder=VQConfig(224, 1024, 8, 32, (1, 1, 1, 1, 1), 1, 32, 32),
    llm=LlamaConfig(8192, 512, 8, 8, 8, 64, 1408, max_positions=1024),
    gen_head_width=512,
)
NARROW = JanusConfig(
    name="narrow",
    und_encoder=SiglipConfig(image_size=64, patch_size=16, width=128, depth=4, num_heads=2, mlp_dim=512),
    gen_encoder=VQConfig(64, 128, 8, 16, (1, 1, 1, 1), 1, 32, 8),
    llm=LlamaConfig(512, 128, 4, 2, 2, 64, 384, max_positions=1024),
    gen_head_width=128,
)
LIMIT, COMPILE_LIMIT = 0.9, 1.2
MAX_DIFFERENCE = 1e-4
CHECKED_STEPS = 3
TRAINED = {"1": ADAPTORS_AND_HEAD, "2": ALL_BUT_ENCODERS, "3": ALL_BUT_TOKENIZER}


class JaxStep:
    """Training step of this project.

    Args:
      compared: Whether to use the weights of `shared.weights`, as `TorchStep` does, instead of random ones.
    """

    def __init__(
        self,
        config: JanusConfig,
        trained: Sequence[str],
        optimizer: OptimizerConfig,
        batch: Batch,
        *,
        execution: Execution,
        compared: bool,
    ) -> None:
        transformation, objective = make_optimizer(optimizer, 100), TokenObjective(Janus(config, execution))
        abstract = abstract_train_state(objective, trained, transformation, None, frozen_dtype=execution.dtype)
        if compared:
            params = load_weights(config, execution)
        else:
            params = random_params(objective.model, merge(abstract.params, abstract.frozen), jax.random.key(0))
        self.state = state_from_params(*partition(params, trained), transformation, abstract)
        microbatching = Microbatching(_MICROBATCHES.value, tokenizer_dtype=execution.dtype)
        step = make_train_step(objective, transformation, microbatching, abstract, None)
        self.batch = batch
        self.compile_seconds, self._compiled = timed(lambda: step.lower(self.state, put_batch(batch, None)).compile())
        items = count_items(batch, config)
        self.tokens = items.tokens
        self.flops = items.flops(flops_per_item(config, flatten_dict(abstract.params, sep="/")))

    def __call__(self) -> float:
        """Runs a step and returns the loss before the update."""
        self.state, metrics = self._compiled(self.state, put_batch(self.batch, None))
        return float(jax.block_until_ready((self.state, metrics["loss"]))[1])

    @property
    def peak_bytes(self) -> int:
        """Size of the step's arguments, outputs and temporaries."""
        memory = self._compiled.memory_analysis()
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return int(kept + memory.temp_size_in_bytes)


def measure(
    config: JanusConfig, stage: str, execution: Execution, batch: Batch, *, with_torch: bool, peak: float | None
) -> dict[str, float]:
    """Returns the results for the step of a stage.

    Raises:
      JanusError: The losses of this project and PyTorch differ.
    """
    # PyTorch's optimizer skips parameters without a gradient, and the compared examples have no target images.
    trained = [pattern for pattern in TRAINED[stage] if not (with_torch and pattern.startswith("gen"))]
    optimizer = OptimizerConfig(learning_rate=1e-4, weight_decay=0.1, moments_dtype=cast(MomentsDtype, _MOMENTS.value))
    jax_step = JaxStep(config, trained, optimizer, batch, execution=execution, compared=with_torch)
    torch_step = None
    if with_torch:
        from benchmarks.train_torch import TorchStep

        torch_step = TorchStep(config, trained, optimizer, batch, _CORES.value)
    differences = []
    for _ in range(CHECKED_STEPS):
        loss = jax_step()
        if torch_step is not None:
            differences.append(abs(loss / torch_step() - 1))
    if differences and max(differences) > MAX_DIFFERENCE:
        raise JanusError(f"The losses differ by {max(differences):.1e}, so the two steps compute different things.")
    seconds, torch_seconds = alternate(jax_step, torch_step, _PAIRS.value)
    found = {
        "ms": median(seconds) * 1e3,
        "min_ms": min(seconds) * 1e3,
        "tokens_per_second": jax_step.tokens / median(seconds),
        "teraflops": jax_step.flops / median(seconds) / 1e12,
        "peak_gib": jax_step.peak_bytes / 2**30,
        "compile_s": jax_step.compile_seconds,
        "filled": float(batch.is_token.mean()),
    }
    if in_use := (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        found["used_gib"] = in_use / 2**30
    if peak is not None:
        found["mfu"] = jax_step.flops / median(seconds) / peak
    if torch_step is not None:
        found |= {
            "torch_ms": median(torch_seconds) * 1e3,
            "torch_min_ms": min(torch_seconds) * 1e3,
            "ratio": median_ratio(seconds, torch_seconds),
            "ratio_of_min": min(seconds) / min(torch_seconds),
            "difference": max(differences),
            "torch_filled": jax_step.tokens / torch_step.padded_tokens,
        }
    return found


def compile_seconds(depth: int) -> float:
    """Returns the compile time of stage 3's step of a narrow model with `depth` layers in both transformers."""
    config = replace(NARROW, llm=replace(NARROW.llm, depth=depth), und_encoder=replace(NARROW.und_encoder, depth=depth))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), 100)
    objective = TokenObjective(Janus(config, Execution(remat="full")))
    abstract = abstract_train_state(objective, ALL_BUT_TOKENIZER, optimizer, None)
    step = make_train_step(objective, optimizer, Microbatching(), abstract, None)
    sequences = equal_sequences(config, 2, 256, und_images=1, gen_images=1, prompt=16, answer=32)
    jax.clear_caches()
    return timed(lambda: step.lower(abstract, make_batch(config, sequences, 256)).compile())[0]


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    if wrong := [stage for stage in _STAGES.value if stage not in TRAINED]:
        raise JanusError(f"--stages contains {wrong[0]!r}; the stages are {', '.join(TRAINED)}.")
    small, rows = _MODEL.value is None, _ROWS.value
    cores = use_cores(_CORES.value) if small else None
    if _MODEL.value is None:
        config, length = SMALL, 512
        equal = equal_sequences(config, rows, length, und_images=1, gen_images=0, prompt=12, answer=48)
        batches = {"equal": make_batch(config, equal, length)}
        batches["unequal"] = make_batch(config, unequal_sequences(config, rows, length), length)
    else:
        config, length = janus_preset(_MODEL.value), _LENGTH.value
        equal = equal_sequences(config, rows, length, und_images=2, gen_images=3, prompt=length // 128, answer=96)
        batches = {"equal": make_batch(config, equal, length)}
    device = jax.devices()[0]
    dtype = cast(Dtype, _DTYPE.value or ("float32" if device.platform == "cpu" else "bfloat16"))
    remat = cast(RematPolicy, _REMAT.value or ("none" if small else "full"))
    # Unrolls the scan over the layers of a small model, as the recipes of small models do.
    unroll = config.llm.depth if small else 1
    execution = Execution(dtype, "float32", cast(AttentionKernel, _ATTENTION.value), remat, scan_unroll=unroll)
    with_torch = _TORCH.value and small and device.platform == "cpu" and dtype == "float32" and has_torch()
    peak = _PEAK.value or peak_flops(device.device_kind, dtype)
    packages = ("torch", "transformers") if with_torch else ()
    report: dict[str, Any] = {"model": config.name, "rows": rows, "length": length, "dtype": dtype, "remat": remat}
    report |= {"cores": cores, **machine(*packages)}
    print(
        f"{'stage':5} {'examples':>8} {'ms':>8} {'torch':>8} {'ratio':>6} {'limit':>5} {'tokens/s':>9} {'TFLOP/s':>8} "
        f"{'MFU':>6} {'peak GiB':>8} {'compile s':>9} {'filled':>6} {'torch':>6} {'difference':>10}"
    )
    for stage, (kind, batch) in itertools.product(_STAGES.value, batches.items()):
        found = measure(config, stage, execution, batch, with_torch=with_torch, peak=peak)
        ratio, mfu, torch_ms, torch_filled, difference = (
            found.get(name, math.nan) for name in ("ratio", "mfu", "torch_ms", "torch_filled", "difference")
        )
        print(
            f"{stage:5} {kind:>8} {found['ms']:8.1f} {torch_ms:8.1f} {ratio:6.3f} {LIMIT:5} "
            f"{found['tokens_per_second']:9.0f} {found['teraflops']:8.3g} {mfu:6.3f} {found['peak_gib']:8.2f} "
            f"{found['compile_s']:9.1f} {found['filled']:6.2f} {torch_filled:6.2f} {difference:10.1e}",
            flush=True,
        )
        report |= {f"stage_{stage}_{kind}_{name}": value for name, value in found.items()}
    if _COMPILING.value:
        pairs = [(compile_seconds(4), compile_seconds(24)) for _ in range(3)]
        few, many = (min(times) for times in zip(*pairs, strict=True))
        report |= {"compile_4_s": few, "compile_24_s": many, "compile_24_over_4": many / few}
        print(
            f"compile time: {many:.1f} s with 24 layers, {few:.1f} s with 4, ratio {many / few:.2f} "
            f"(limit {COMPILE_LIMIT})"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
