"""How long a training step takes at best, and what share of the devices' peak it then uses.

Three things take time, and may go on beside each other: computing, at `REACHED` of the peak; moving data within an
island; and moving it between islands. A step is taken to last as long as the longest of them, and the optimizer's pass
over the state after it. If nothing overlaps, it is their sum. Both are told; the truth lies between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from janus_jax.aot.chip_specs import Chip
from janus_jax.aot.collectives import Collective
from janus_jax.errors import JanusError
from janus_jax.training.flops import Amounts, peak_flops, step_costs
from janus_jax.training.recipe import Recipe

REACHED = 0.8
"""Of the peak that products of this size are taken to reach; a figure to be replaced by measurement."""

ASSUMPTIONS = (
    f"products reach {REACHED:.0%} of the peak",
    "rows are full: their images to understand and to generate, the rest text, all of equal length",
    "the text head reads as many places as the budget has, as it does where one row of the batch is text alone",
    "collectives run as rings, both ways around each side of a torus that they extend along",
    "a loop turns as often as the compiled program says, and once where that hangs on the data",
    "no host or data stalls",
)


@dataclass(frozen=True)
class Roofline:
    """Of one step.

    Attributes:
      useful: floating-point operations that the samples need, on all devices (`train.flops`).
      done: those that are done, with what remat computes again and what attention's kernel does beyond its samples.
      computing, near, far, updating: seconds.
      peak: FLOP/s of one device.
      devices: how many.
    """

    useful: float
    done: float
    computing: float
    near: float
    far: float
    updating: float
    peak: float
    devices: int

    @property
    def at_best(self) -> float:
        """Seconds, if all overlaps that can."""
        return max(self.computing, self.near, self.far) + self.updating

    @property
    def at_worst(self) -> float:
        """Seconds, if nothing does."""
        return self.computing + self.near + self.far + self.updating

    def mfu(self, seconds: float) -> float:
        """The share of the peak that a step of so many seconds uses."""
        return self.useful / (seconds * self.peak * self.devices)

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {"computing": self.computing, "near traffic": self.near, "far traffic": self.far}
        return max(times, key=lambda name: times[name])

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for json."""
        return {
            "flops": {"useful": self.useful, "done": self.done},
            "seconds": {
                "computing": self.computing,
                "near": self.near,
                "far": self.far,
                "updating": self.updating,
                "at best": self.at_best,
                "at worst": self.at_worst,
            },
            "bound": self.bound,
            "mfu": {"at best": self.mfu(self.at_best), "at worst": self.mfu(self.at_worst)},
            "peak": self.peak,
            "assumptions": list(ASSUMPTIONS),
        }


def peak_of(recipe: Recipe, chip: Chip) -> float:
    """FLOP/s that one device could do of the recipe's step.

    Raises:
      JanusError: nobody says.
    """
    dtype = recipe.current.precision.compute
    peak = recipe.resources.peak_flops or peak_flops(chip.kind, dtype)
    if peak is None:
        raise JanusError(
            f"What a {chip.kind} computes in {dtype} is not known; give config.resources.peak_flops, of one device."
        )
    return peak


def roofline(
    recipe: Recipe,
    peak: float,
    params: Any,
    inputs: Mapping[str, int],
    collectives: Sequence[Collective],
    mesh: Mesh,
    chip: Chip,
) -> Roofline:
    """Of the recipe's training step.

    Args:
      peak: FLOP/s of one device.
      params: of what trains; only its names are read.
      inputs: see `programs.Compiled`.
    """
    useful, done = operations(recipe, flatten_dict(params, sep="/"))
    near, far = traffic_seconds(collectives, chip)
    state = sum(inputs.get(name, 0) for name in ("weights that train", "optimizer", "average"))
    return Roofline(
        useful=useful,
        done=done,
        computing=done / (REACHED * peak * mesh.size),
        near=near,
        far=far,
        # All of it is read and written, and the gradients read.
        updating=(2 * state + inputs.get("weights that train", 0)) / chip.reading,
        peak=peak,
        devices=mesh.size,
    )


def operations(recipe: Recipe, trained: Mapping[str, Any]) -> tuple[float, float]:
    """Floating-point operations of a step: those that full rows need, and those that are done."""
    config, stage = recipe.model_config, recipe.current
    rows, budget = stage.batch_size, stage.budget
    samples = budget.und_images + budget.gen_images + 1
    length = budget.tokens / samples
    filled = Amounts(
        places=rows * budget.tokens,
        pairs=rows * budget.tokens * (length + 1) / 2,
        und_images=rows * budget.und_images,
        gen_images=rows * budget.gen_images,
        tokenized_images=0 if recipe.precomputed_image_tokens else rows * budget.gen_images,
        # What is no image's place, as far as there is room for it.
        text_targets=rows
        * min(
            budget.text_targets,
            max(
                0,
                budget.tokens
                - budget.und_images * config.und_encoder.num_patches
                - budget.gen_images * config.num_gen_tokens,
            ),
        ),
    )
    costs = step_costs(config, trained)
    # The kernels skip what comes later, by halves or in four blocks, but not what lies in other samples.
    share = {"splash": 0.5, "xla": 0.625, "cudnn": 0.5}[recipe.resources.attention]
    attended = filled._replace(pairs=rows * budget.tokens**2 * share, text_targets=float(rows * budget.text_targets))
    return filled.at(costs), attended.at(costs) + _again(recipe, attended, trained)


def _again(recipe: Recipe, attended: Amounts, trained: Mapping[str, Any]) -> float:
    """Floating-point operations that the backward pass computes a second time.

    Policy "dots" keeps the products that have a weight, so attention's own are computed again. "full" keeps the input
    of each block and computes again all of it but the last product, of which the backward pass wants what goes in and
    not what comes out. Heads are in neither: no logits are computed twice (train.cross_entropy).
    """
    if recipe.resources.remat == "none":
        return 0.0
    llm, und = recipe.model_config.llm, recipe.model_config.und_encoder
    forward = step_costs(recipe.model_config, ())
    patch = 4.0 * und.num_patches * und.width
    place = 0.0
    if recipe.resources.remat == "full":
        patch += 2 * und.width * (4 * und.width + und.mlp_dim)
        place = forward.places - 2 * llm.depth * llm.mlp_dim * llm.width
    again = attended.places * place + attended.pairs * forward.pairs
    if any(name.startswith("und_encoder/") for name in trained):
        again += attended.und_images * und.num_patches * und.depth * patch
    return again


def traffic_seconds(collectives: Sequence[Collective], chip: Chip) -> tuple[float, float]:
    """Seconds that a step's collectives take within an island, and between islands."""
    near = far = 0.0
    for one in collectives:
        per_dimension = 2 if chip.links > 1 else 1
        links = min(chip.links, per_dimension * max(one.dimensions, 1))
        near += one.times * one.near / (chip.link * links)
        far += one.times * one.far / chip.far
    return near, far
