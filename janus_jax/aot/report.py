"""What is told of a recipe on a machine that is not here, as text and as json."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh

from janus_jax.aot.chip_specs import KERNELS, USABLE
from janus_jax.aot.collectives import Collective, read_collectives
from janus_jax.aot.compile import Compiled, compile_training
from janus_jax.aot.roofline import ASSUMPTIONS, Roofline, peak_of, roofline
from janus_jax.aot.sampling import SAMPLED, SamplingJob, compile_sampling
from janus_jax.aot.topologies import Topology
from janus_jax.sharding import batch_multiple, make_mesh
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage

Job = Literal["train"] | SamplingJob


@dataclass(frozen=True)
class Report:
    """Of a recipe's job on a topology.

    Attributes:
      recipe, topology, job: what was asked about.
      mesh: that it runs on.
      programs: that it runs.
      collectives: of each of them.
      roofline: of training that compiles; None for all else.
    """

    recipe: Recipe
    topology: Topology
    job: Job
    mesh: Mesh
    programs: Sequence[Compiled]
    collectives: Sequence[Sequence[Collective]]
    roofline: Roofline | None

    @property
    def limit(self) -> float:
        """Bytes that one device has for all of it."""
        return self.topology.chip.memory * USABLE[self.topology.chip.platform]

    @property
    def reason(self) -> str:
        """Why it does not fit; "" where it does."""
        for program in self.programs:
            if program.failure:
                return f"{program.name}: {_gb(program.total)} GB wanted ({program.failure:.160})"
            if program.total > self.limit:
                return f"{program.name}: {_gb(program.total)} GB on each device, of {_gb(self.limit)}"
        return ""

    @property
    def verdict(self) -> str:
        """`fits`, or why not and what to change."""
        if not self.reason:
            return "fits"
        return f"does not fit: {self.reason}; {', or '.join(self.remedies()) or 'take more devices'}"

    def remedies(self) -> Iterator[str]:
        """What would take less memory, in flags, the cheapest first."""
        largest = max(self.programs, key=lambda program: program.total)
        state = sum(largest.inputs.values())
        resources, stage = self.recipe.resources, self.recipe.current
        kernel = KERNELS[self.topology.chip.platform]
        if resources.attention == "xla" != kernel:
            yield f"--config.resources.attention={kernel}"
        if self.job == "train" and state < self.limit:
            rows = stage.batch_size // batch_multiple(self.mesh)
            if resources.remat != "full":
                yield "--config.resources.remat=full"
            if resources.microbatches < rows:
                more = next(n for n in range(resources.microbatches + 1, rows + 1) if rows % n == 0)
                yield f"--config.resources.microbatches={more}"
            elif resources.logits_chunk > 128:
                yield f"--config.resources.logits_chunk={resources.logits_chunk // 2}"
        if self.mesh.shape["data"] > 1:
            yield f"--config.resources.data={self.mesh.shape['data'] // 2} with a larger fsdp axis"
        if self.job == "train" and state > self.limit / 2 and stage.optimizer.moments_dtype == "float32":
            yield f"--config.stages.stage_{self.recipe.stage}.optimizer.moments_dtype=bfloat16"
        if self.job != "train":
            yield "--config.resources.tensor=2"
        yield "more devices"

    def to_json(self) -> dict[str, Any]:
        """All of it, fit for json."""
        stage, resources = self.recipe.current, self.recipe.resources
        return {
            "model": self.recipe.model_config.name,
            "stage": self.recipe.stage,
            "job": self.job,
            "topology": self.topology.name,
            "devices": self.mesh.size,
            "device": self.topology.chip.kind,
            "islands": self.topology.islands,
            "mesh": dict(self.mesh.shape),
            "batch_size": stage.batch_size,
            "places": stage.budget.tokens,
            "microbatches": resources.microbatches,
            "remat": resources.remat,
            "attention": resources.attention,
            "limit": self.limit,
            "checkpoint": self.programs[0].checkpoint,
            "programs": [
                {
                    "name": program.name,
                    "inputs": dict(program.inputs),
                    "temporaries": program.temporaries,
                    "total": program.total,
                    "failure": program.failure,
                    "collectives": [
                        {"kind": kind, "axes": axes, "dtype": dtype, "times": times, "near": near, "far": far}
                        for (kind, axes, dtype), (times, near, far) in _summed(moved).items()
                    ],
                }
                for program, moved in zip(self.programs, self.collectives, strict=True)
            ],
            "roofline": self.roofline and self.roofline.to_json(),
            "fits": not self.reason,
            "verdict": self.verdict,
        }

    def to_text(self) -> str:
        """For people; the last line is the verdict."""
        stage, resources, chip = self.recipe.current, self.recipe.resources, self.topology.chip
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        lines = [
            f"{self.recipe.model_config.name}, {self._what}, on {self.topology.name}: {self.mesh.size} x {chip.kind}"
            + (f" on {self.topology.islands} islands" if self.topology.islands > 1 else ""),
            f"mesh {axes}; attention {resources.attention}"
            + (f", remat {resources.remat}, {resources.microbatches} microbatches" if self.job == "train" else ""),
        ]
        if self.job == "train":
            lines.append(f"batch of {stage.batch_size} rows of {stage.budget.tokens} places")
        for program, moved in zip(self.programs, self.collectives, strict=True):
            lines += ["", f"{program.name}: memory of one device, GB (10^9 bytes)"]
            lines += [f"  {name:24}{_gb(size):>10}" for name, size in program.inputs.items()]
            if program.arguments is not None and (padding := program.arguments - sum(program.inputs.values())) > 0:
                lines.append(f"  {'padding of these':24}{_gb(padding):>10}")
            lines.append(f"  {'activations and others':24}{_gb(program.temporaries):>10}")
            lines.append(f"  {'in all':24}{_gb(program.total):>10} of {_gb(self.limit)}")
            if moved:
                lines.append(f"{program.name}: what one device sends, GB" + (" a step" if self.job == "train" else ""))
                lines.append(f"  {'':20}{'along':16}{'of':8}{'times':>8}{'near':>10}{'far':>10}")
                lines += [
                    f"  {kind:20}{'+'.join(axes):16}{dtype:8}{times:>8}{_gb(near):>10}{_gb(far):>10}"
                    for (kind, axes, dtype), (times, near, far) in _summed(moved).items()
                ]
        if self.roofline is not None:
            lines += ["", *_times(self.roofline)]
        return "\n".join([*lines, "", self.verdict])

    @property
    def _what(self) -> str:
        if self.job == "train":
            return f"stage {self.recipe.stage}"
        sizes = SAMPLED[self.job]
        return f"{self.job}: {sizes.rows} rows a device, prompts of {sizes.prompt} places, {sizes.new} ids"


def report(recipe: Recipe, topology: Topology, job: Job = "train") -> Report:
    """Compiles the job for the topology.

    Raises:
      JanusError: recipe and topology do not fit each other, the compiler is not installed, or nobody says what the
        chip can compute.
    """
    resources, chip = recipe.resources, topology.chip
    mesh = make_mesh(resources.data, resources.fsdp, resources.tensor, topology.devices())
    if job != "train":
        programs = list(compile_sampling(recipe, mesh, chip.platform, job))
        moved = [read_collectives(program.text, mesh, topology) if program.text else [] for program in programs]
        return Report(recipe, topology, job, mesh, programs, moved, None)
    peak, assembly = peak_of(recipe, chip), set_up_stage(recipe, mesh)
    program = compile_training(recipe, assembly, mesh, chip.platform)
    if not program.text:
        return Report(recipe, topology, job, mesh, [program], [[]], None)
    collectives = read_collectives(program.text, mesh, topology)
    best = roofline(recipe, peak, assembly.abstract.params, program.inputs, collectives, mesh, chip)
    return Report(recipe, topology, job, mesh, [program], [collectives], best)


def _summed(collectives: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...], str], tuple[int, float, float]]:
    """Times, and bytes near and far, by kind, axes and dtype; those that move most first."""
    sums: dict[Any, tuple[int, float, float]] = defaultdict(lambda: (0, 0.0, 0.0))
    for one in collectives:
        times, near, far = sums[one.kind, one.axes, one.dtype]
        sums[one.kind, one.axes, one.dtype] = (
            times + one.times,
            near + one.times * one.near,
            far + one.times * one.far,
        )
    return dict(sorted(sums.items(), key=lambda item: -(item[1][1] + item[1][2])))


def _times(roofline: Roofline) -> Iterator[str]:
    yield (
        f"operations of a step, 10^15: {roofline.useful / 1e15:.4g} that the samples need, "
        f"{roofline.done / 1e15:.4g} that are done"
    )
    yield (
        f"seconds: computing {roofline.computing:.4g}, near traffic {roofline.near:.4g}, "
        f"far traffic {roofline.far:.4g}, optimizer {roofline.updating:.4g}"
    )
    best, worst = roofline.at_best, roofline.at_worst
    yield (
        f"a step takes {best:.4g} to {worst:.4g} s, an MFU of {roofline.mfu(best):.0%} to {roofline.mfu(worst):.0%}; "
        f"{roofline.bound} takes longest"
    )
    yield f"if {'; '.join(ASSUMPTIONS)}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"
