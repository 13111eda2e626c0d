"""Estimates the duration of a training step and its MFU from FLOPs, traffic and memory bandwidth.

Three activities can overlap: computation, at `PRODUCT_EFFICIENCY` of the peak; traffic within a slice (ICI; NVLink
within a node); traffic between slices or nodes (DCN). The lower bound of the step time is the longest of them plus the
optimizer's pass over the state. The upper bound is the sum of all, without any overlap.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh

from janus_jax.accelerators import Accelerator, peak_flops
from janus_jax.aot.collectives import Collective
from janus_jax.aot.compile import Program
from janus_jax.errors import JanusError
from janus_jax.training.flops import ItemCounts, flops_per_item
from janus_jax.training.recipe import Recipe

PRODUCT_EFFICIENCY = 0.8
"""Assumed fraction of the peak that matrix products reach, until measurements replace it."""

ASSUMPTIONS = (
    f"products reach {PRODUCT_EFFICIENCY:.0%} of the peak",
    "sequences are full: their input and target images, and text otherwise, in examples of equal length",
    "the text head reads as many positions as the budget has, as it does if one sequence of the batch is text only",
    "collectives run as rings, in both directions around each side of a torus that they extend along",
    "loops run as often as the compiled program says, and once if that depends on the data",
    "neither the host nor the data pipeline stalls",
)


@dataclass(frozen=True)
class Bounds:
    """A value if all traffic overlaps with computation, and if none does."""

    overlapped: float
    serial: float


@dataclass(frozen=True)
class Roofline:
    """Estimate for one training step.

    Attributes:
      model_flops: FLOPs that the examples need, on all devices (`training.flops`).
      hardware_flops: FLOPs that are executed, with recomputation and with attention across examples.
      compute_seconds: Duration of the computation.
      ici_seconds: Duration of the traffic within a slice.
      dcn_seconds: Duration of the traffic between slices.
      optimizer_seconds: Duration of the optimizer's pass over the state.
      step_seconds: Duration of the step.
      mfu: Model FLOPs per second as a fraction of the peak.
      bound: Longest of the activities that can overlap: `compute`, `ICI` or `DCN`.
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
    dtype = recipe.current.precision.compute
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
    model_flops, hardware_flops = step_flops(recipe, trained)
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


def step_flops(recipe: Recipe, trained: Collection[str]) -> tuple[float, float]:
    """Returns the model FLOPs and the hardware FLOPs of a step on full sequences."""
    config, stage = recipe.model_config, recipe.current
    sequences, budget = stage.batch_size, stage.budget
    examples = budget.und_images + budget.gen_images + 1
    example_length = budget.tokens / examples
    image_tokens = budget.und_images * config.und_encoder.num_patches + budget.gen_images * config.num_gen_tokens
    text_targets = min(budget.text_targets, max(0, budget.tokens - image_tokens))
    needed = ItemCounts(
        tokens=sequences * budget.tokens,
        pairs=sequences * budget.tokens * (example_length + 1) / 2,
        und_images=sequences * budget.und_images,
        gen_images=sequences * budget.gen_images,
        encoded_images=0 if recipe.precomputed_image_tokens else sequences * budget.gen_images,
        text_targets=sequences * text_targets,
    )
    per_item = flops_per_item(config, trained)
    # Kernels skip later positions, exactly or in four blocks, but not those of other examples.
    causal_share = {"splash": 0.5, "xla": 0.625, "cudnn": 0.5}[recipe.resources.attention]
    executed = needed._replace(
        pairs=sequences * budget.tokens**2 * causal_share, text_targets=float(sequences * budget.text_targets)
    )
    return needed.flops(per_item), executed.flops(per_item) + _recomputed_flops(recipe, executed, trained)


def _recomputed_flops(recipe: Recipe, executed: ItemCounts, trained: Collection[str]) -> float:
    """FLOPs that the backward pass computes a second time.

    Policy "dots" keeps the products that have a weight, so attention's products are recomputed. Policy "full" keeps the
    input of each block and recomputes its products except the last, whose output the backward pass does not need.
    Neither applies to the heads, whose logits are computed once (`training/losses/cross_entropy.py`).
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
    """Returns the seconds that a step's collectives take within a slice, and between slices."""
    ici = dcn = 0.0
    links_per_dimension = 2 if accelerator.num_links > 1 else 1
    for collective in collectives:
        links = min(accelerator.num_links, links_per_dimension * max(collective.torus_dimensions, 1))
        ici += collective.count * collective.ici_bytes / (accelerator.link_bandwidth * links)
        dcn += collective.count * collective.dcn_bytes / accelerator.dcn_bandwidth
    return ici, dcn
