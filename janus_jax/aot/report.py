"""Compiles a recipe for a topology, and reports memory, traffic and a roofline estimate."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from janus_jax.aot.collectives import Collective, read_collectives
from janus_jax.aot.compile import Program, compile_training
from janus_jax.aot.roofline import Roofline, device_peak_flops, estimate_step
from janus_jax.aot.sampling import SAMPLING_SHAPES, SamplingWorkload, compile_sampling
from janus_jax.aot.topologies import Topology
from janus_jax.sharding import make_mesh, num_data_shards
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage

Workload = Literal["train"] | SamplingWorkload


@dataclass(frozen=True)
class Traffic:
    """All collectives of one kind, set of mesh axes and dtype.

    Attributes:
      count: Executions per step.
      ici_bytes: Bytes that a device sends within its slice.
      dcn_bytes: Bytes that a device sends to other slices.
    """

    kind: str
    axes: tuple[str, ...]
    dtype: str
    count: int
    ici_bytes: float
    dcn_bytes: float


@dataclass(frozen=True)
class ProgramReport:
    """Memory and traffic of one program on each device; see `compile.Program`."""

    name: str
    inputs: Mapping[str, int]
    padding: int
    temporaries: int
    total: int
    error: str
    traffic: tuple[Traffic, ...]


@dataclass(frozen=True)
class CompileReport:
    """Report of a workload on a topology.

    Attributes:
      sequence_length: Tokens in a packed sequence.
      memory_limit: Bytes that one device has for a program.
      checkpoint_bytes: Bytes of the training state on all devices; 0 for sampling.
      programs: The step, or prefill and decode.
      roofline: Estimate for a training step; None for sampling and if compilation ran out of memory.
      fits: Whether every program fits into the memory limit.
      verdict: `fits`, or the reason why not and what to change.
    """

    model: str
    stage: int
    workload: Workload
    topology: str
    devices: int
    device: str
    slices: int
    mesh: Mapping[str, int]
    batch_size: int
    sequence_length: int
    microbatches: int
    remat: str
    attention: str
    memory_limit: float
    checkpoint_bytes: int
    programs: tuple[ProgramReport, ...]
    roofline: Roofline | None
    fits: bool
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain values for json."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Returns the report for people; the verdict is the last line."""
        return "\n".join([*self._heading(), *self._program_lines(), *self._roofline_lines(), "", self.verdict])

    def _heading(self) -> Iterator[str]:
        training = self.workload == "train"
        workload = f"stage {self.stage}"
        if self.workload != "train":
            shape = SAMPLING_SHAPES[self.workload]
            workload = f"{self.workload}: {shape.prompts} prompts of {shape.prompt_length} tokens on each device, "
            workload += f"{shape.new_tokens} new tokens"
        slices = f" in {self.slices} slices" if self.slices > 1 else ""
        yield f"{self.model}, {workload}, on {self.topology}: {self.devices} x {self.device}{slices}"
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        step = f", remat {self.remat}, {self.microbatches} microbatches" if training else ""
        yield f"mesh {axes}; attention {self.attention}{step}"
        if training:
            yield f"batch of {self.batch_size} sequences of {self.sequence_length} tokens"

    def _program_lines(self) -> Iterator[str]:
        for program in self.programs:
            yield from ("", f"{program.name}: memory of one device, GB (10^9 bytes)")
            for name, size in program.inputs.items():
                yield f"  {name:24}{_gb(size):>10}"
            if program.padding:
                yield f"  {'padding':24}{_gb(program.padding):>10}"
            yield f"  {'temporaries':24}{_gb(program.temporaries):>10}"
            yield f"  {'total':24}{_gb(program.total):>10} of {_gb(self.memory_limit)}"
            if program.traffic:
                yield f"{program.name}: bytes that one device sends, GB" + " per step" * (self.workload == "train")
                yield f"  {'':20}{'axes':16}{'dtype':8}{'count':>8}{'ICI':>10}{'DCN':>10}"
            for one in program.traffic:
                axes = "+".join(one.axes)
                sent = f"{_gb(one.ici_bytes):>10}{_gb(one.dcn_bytes):>10}"
                yield f"  {one.kind:20}{axes:16}{one.dtype:8}{one.count:>8}{sent}"

    def _roofline_lines(self) -> Iterator[str]:
        if self.roofline is None:
            return
        r = self.roofline
        yield ""
        yield f"FLOPs of a step, 10^15: model {r.model_flops / 1e15:.4g}, hardware {r.hardware_flops / 1e15:.4g}"
        yield (
            f"seconds: compute {r.compute_seconds:.4g}, ICI {r.ici_seconds:.4g}, DCN {r.dcn_seconds:.4g}, "
            f"optimizer {r.optimizer_seconds:.4g}"
        )
        yield (
            f"step time {r.step_seconds.overlapped:.4g} to {r.step_seconds.serial:.4g} s, "
            f"MFU {r.mfu.overlapped:.0%} to {r.mfu.serial:.0%}, bound by {r.bound}"
        )
        yield f"assumptions: {'; '.join(r.assumptions)}"


def compile_report(recipe: Recipe, topology: Topology, workload: Workload = "train") -> CompileReport:
    """Compiles a workload for a topology and reports on it.

    Raises:
      JanusError: The recipe does not fit the topology, the compiler is not installed, or the accelerator's peak FLOP/s
        is not known.
    """
    resources, stage, accelerator = recipe.resources, recipe.current, topology.accelerator
    mesh = make_mesh(resources.data, resources.fsdp, resources.tensor, topology.devices())
    roofline, checkpoint_bytes = None, 0
    if workload != "train":
        programs = compile_sampling(recipe, mesh, accelerator.platform, workload)
        collectives = [_collectives(program, mesh, topology) for program in programs]
    else:
        peak, setup = device_peak_flops(recipe, accelerator), set_up_stage(recipe, mesh)
        checkpoint_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.abstract))
        program = compile_training(recipe, setup, mesh, accelerator.platform)
        programs, collectives = [program], [_collectives(program, mesh, topology)]
        if program.hlo:
            roofline = estimate_step(
                recipe,
                accelerator,
                mesh,
                program=program,
                collectives=collectives[0],
                trained=flatten_dict(setup.abstract.params, sep="/"),
                peak=peak,
            )
    reason = misfit(programs, accelerator.usable_memory)
    fixes = ", or ".join(remedies(recipe, topology, mesh, programs, workload)) if reason else ""
    return CompileReport(
        model=recipe.model_config.name,
        stage=recipe.stage,
        workload=workload,
        topology=topology.name,
        devices=mesh.size,
        device=accelerator.kind,
        slices=topology.num_slices,
        mesh=dict(mesh.shape),
        batch_size=stage.batch_size,
        sequence_length=stage.budget.tokens,
        microbatches=resources.microbatches,
        remat=resources.remat,
        attention=resources.attention,
        memory_limit=accelerator.usable_memory,
        checkpoint_bytes=checkpoint_bytes,
        programs=tuple(map(_program_report, programs, collectives)),
        roofline=roofline,
        fits=not reason,
        verdict=f"does not fit: {reason}; {fixes}" if reason else "fits",
    )


def _collectives(program: Program, mesh: Mesh, topology: Topology) -> list[Collective]:
    return read_collectives(program.hlo, mesh, topology) if program.hlo else []


def _program_report(program: Program, collectives: Sequence[Collective]) -> ProgramReport:
    """Adds up the collectives by kind, axes and dtype, those that move most first."""
    sums: dict[tuple[str, tuple[str, ...], str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for one in collectives:
        total = sums[one.kind, one.axes, one.dtype]
        for index, amount in enumerate((one.count, one.count * one.ici_bytes, one.count * one.dcn_bytes)):
            total[index] += amount
    traffic = [Traffic(*key, int(count), ici, dcn) for key, (count, ici, dcn) in sums.items()]
    return ProgramReport(
        name=program.name,
        inputs=dict(program.inputs),
        padding=program.padding,
        temporaries=program.temporaries,
        total=program.total,
        error=program.error,
        traffic=tuple(sorted(traffic, key=lambda one: -(one.ici_bytes + one.dcn_bytes))),
    )


def misfit(programs: Sequence[Program], limit: float) -> str:
    """Returns the reason why the programs do not fit into `limit` bytes, or "" if they do."""
    for program in programs:
        if program.error:
            return f"{program.name}: {_gb(program.total)} GB needed ({program.error:.160})"
        if program.total > limit:
            return f"{program.name}: {_gb(program.total)} GB on each device, of {_gb(limit)}"
    return ""


def remedies(
    recipe: Recipe, topology: Topology, mesh: Mesh, programs: Sequence[Program], workload: Workload
) -> Iterator[str]:
    """Yields changes that take less memory, as flags, the cheapest first."""
    state = sum(max(programs, key=lambda program: program.total).inputs.values())
    resources, stage = recipe.resources, recipe.current
    training, limit, attention = workload == "train", topology.accelerator.usable_memory, topology.accelerator.attention
    if resources.attention == "xla" != attention:
        yield f"--config.resources.attention={attention}"
    if training and state < limit:
        per_device = stage.batch_size // num_data_shards(mesh)
        if resources.remat != "full":
            yield "--config.resources.remat=full"
        if resources.microbatches < per_device:
            more = next(n for n in range(resources.microbatches + 1, per_device + 1) if per_device % n == 0)
            yield f"--config.resources.microbatches={more}"
        elif resources.logits_chunk > 128:
            yield f"--config.resources.logits_chunk={resources.logits_chunk // 2}"
    if mesh.shape["data"] > 1:
        yield f"--config.resources.data={mesh.shape['data'] // 2} with a larger fsdp axis"
    if training and state > limit / 2 and stage.optimizer.moments_dtype == "float32":
        yield f"--config.stages.stage_{recipe.stage}.optimizer.moments_dtype=bfloat16"
    if not training:
        yield "--config.resources.tensor=2"
    yield "more devices"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3f}"
