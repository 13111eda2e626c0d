"""Estimates the duration of a training step and its MFU from FLOPs, traffic and memory bandwidth.

Three parts of a step can overlap: computation, at `PRODUCT_EFFICIENCY` of the peak; traffic within a slice (ICI) or a
GPU node (NVLink); traffic between slices or nodes (DCN). The optimizer's pass over the state does not overlap. The
estimate is therefore a range: from the longest of the three parts plus the optimizer's pass, to the sum of all four.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from janus_jax.accelerators import Accelerator, peak_flops, resolve_attention
from janus_jax.aot.collectives import Collective
from janus_jax.aot.compile import Program
from janus_jax.config import AttentionKernel
from janus_jax.errors import JanusError
from janus_jax.training.flops import ItemCounts, flops_per_item
from janus_jax.training.recipe import Recipe

PRODUCT_EFFICIENCY = 0.8
"""Assumed fraction of the peak FLOP/s that matrix products reach. It is not measured."""

ASSUMPTIONS = (
    f"products reach {PRODUCT_EFFICIENCY:.0%} of the peak",
    "sequences are full: their input and target images, and text otherwise, in examples of equal length",
    "the text head reads as many positions as the budget allows, as if one sequence of the batch were text only",
    "collectives run as rings, in both directions around each side of a torus that they extend along",
    "loops run as often as the compiled program says, and once if the number depends on the data",
    "neither the host nor the data pipeline stalls",
)


@dataclass(frozen=True)
class Bounds:
    """Two estimates of a value: if all traffic overlaps with computation, and if nothing overlaps."""

    overlapped: float
    serial: float


@dataclass(frozen=True)
class Roofline:
    """Estimate for one training step.

    Attributes:
      model_flops: FLOPs that the examples need, on all devices (`training.flops`).
      hardware_flops: FLOPs that all devices execute, including recomputation and attention across examples.
      compute_seconds: Duration of the computation.
      ici_seconds: Duration of the traffic within a slice or node.
      dcn_seconds: Duration of the traffic between slices or nodes.
      optimizer_seconds: Duration of the optimizer's pass over the state.
      step_seconds: Duration of the step.
      mfu: Model FLOPs per second as a fraction of the peak.
      bound: Longest of the parts that can overlap: `compute`, `ICI` or `DCN`.
      peak_flops: FLOP/s of one device.
      assumptions: Assumptions of the estimate.
    """

    model_flops: float
    hardware_flops: float
    compute_seconds: float
    ici_seconds: float
    dcn_seconds: float
    optimizer_seconds: float
    step_seconds: Bounds
    mfu: Bounds
    bound: str
    peak_flops: float
    assumptions: tuple[str, ...] = ASSUMPTIONS


def device_peak_flops(recipe: Recipe, accelerator: Accelerator) -> float:
    """Returns the peak FLOP/s of one device in the recipe's compute dtype.

    Raises:
      JanusError: The peak is neither known nor configured.
    """
    dtype = recipe.execution.dtype
    peak = recipe.resources.peak_flops or peak_flops(accelerator.kind, dtype)
    if peak is None:
        raise JanusError(
            f"The peak FLOP/s of {accelerator.kind} in {dtype} is not known; set config.resources.peak_flops to that "
            f"of one device."
        )
    return peak


def estimate_step(
    recipe: Recipe,
    accelerator: Accelerator,
    mesh: Mesh,
    *,
    program: Program,
    trained: Collection[str],
    peak: float,
) -> Roofline:
    """Estimates the duration of the recipe's training step.

    Args:
      program: The compiled step.
      trained: Paths of the trained parameters.
      peak: FLOP/s of one device.
    """
    attention = resolve_attention(recipe.resources.attention, accelerator)
    model_flops, hardware_flops = step_flops(recipe, trained, attention)
    ici, dcn = traffic_seconds(program.collectives, accelerator)
    parameters = program.inputs.get("trained parameters", 0)
    state = parameters + sum(program.inputs.get(name, 0) for name in ("optimizer state", "parameter average"))
    compute = hardware_flops / (PRODUCT_EFFICIENCY * peak * mesh.size)
    # Reads and writes the state, and reads the gradients.
    optimizer = (2 * state + parameters) / accelerator.memory_bandwidth
    durations = {"compute": compute, "ICI": ici, "DCN": dcn}
    overlapped, serial = max(durations.values()) + optimizer, sum(durations.values()) + optimizer
    return Roofline(
        model_flops=model_flops,
        hardware_flops=hardware_flops,
        compute_seconds=compute,
        ici_seconds=ici,
        dcn_seconds=dcn,
        optimizer_seconds=optimizer,
        step_seconds=Bounds(overlapped, serial),
        mfu=Bounds(*(model_flops / (seconds * peak * mesh.size) for seconds in (overlapped, serial))),
        bound=max(durations, key=lambda name: durations[name]),
        peak_flops=peak,
    )


def step_flops(recipe: Recipe, trained: Collection[str], attention: AttentionKernel) -> tuple[float, float]:
    """Returns the model FLOPs and the hardware FLOPs (see `Roofline`) of a step on full sequences.

    Args:
      attention: Attention kernel; not "auto".
    """
    config, stage = recipe.model_config, recipe.current
    sequences, budget = stage.batch_size, stage.budget
    examples = budget.und_images + budget.gen_images + 1
    example_length = budget.tokens / examples
    gen_images = budget.gen_images + budget.context_images
    image_tokens = budget.und_images * config.und_encoder.num_patches + gen_images * config.num_gen_tokens
    text_targets = min(budget.text_targets, max(0, budget.tokens - image_tokens))
    needed = ItemCounts(
        tokens=sequences * budget.tokens,
        pairs=sequences * budget.tokens * (example_length + 1) / 2,
        und_images=sequences * budget.und_images,
        gen_images=sequences * budget.gen_images,
        encoded_images=0 if recipe.precomputed_image_tokens else sequences * gen_images,
        text_targets=sequences * text_targets,
        context_images=sequences * budget.context_images,
    )
    per_item = flops_per_item(config, trained)
    # Kernels skip later positions, exactly or in four blocks, but not the positions of other examples.
    causal_share = {"splash": 0.5, "xla": 0.625, "cudnn": 0.5}[attention]
    executed = needed._replace(
        pairs=sequences * budget.tokens**2 * causal_share, text_targets=float(sequences * budget.text_targets)
    )
    return needed.flops(per_item), executed.flops(per_item) + _recomputed_flops(recipe, executed, trained)


def _recomputed_flops(recipe: Recipe, executed: ItemCounts, trained: Collection[str]) -> float:
    """Returns the FLOPs of the forward pass that the backward pass computes a second time.

    Remat policy "dots" keeps the results of products with a weight, so attention's products are recomputed. Policy
    "full" keeps the input of each block and recomputes all products except the last one, whose result the backward pass
    does not need. The heads are not part of a block, and their logits are computed once
    (`training/losses/cross_entropy.py`).
    """
    if recipe.resources.remat == "none":
        return 0.0
    llm, und = recipe.model_config.llm, recipe.model_config.und_encoder
    forward = flops_per_item(recipe.model_config, ())
    per_patch = 4.0 * und.num_patches * und.width
    per_token = 0.0
    if recipe.resources.remat == "full":
        per_patch += 2 * und.width * (4 * und.width + und.mlp_dim)
        per_token = forward.tokens - 2 * llm.depth * llm.mlp_dim * llm.width
    flops = executed.tokens * per_token + executed.pairs * forward.pairs
    if any(name.startswith("und_encoder/") for name in trained):
        flops += executed.und_images * und.num_patches * und.depth * per_patch
    return flops


def traffic_seconds(collectives: Sequence[Collective], accelerator: Accelerator) -> tuple[float, float]:
    """Returns the seconds that a step's collectives send within a slice or node, and between them."""
    ici = dcn = 0.0
    links_per_dimension = 2 if accelerator.num_links > 1 else 1
    for collective in collectives:
        links = min(accelerator.num_links, links_per_dimension * max(collective.torus_dimensions, 1))
        ici += collective.count * collective.ici_bytes / (accelerator.link_bandwidth * links)
        dcn += collective.count * collective.dcn_bytes / accelerator.dcn_bandwidth
    return ici, dcn
