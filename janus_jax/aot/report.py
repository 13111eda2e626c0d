"""Compiles a recipe for a topology, and reports memory, traffic and an estimate of the step time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import jax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from janus_jax.accelerators import resolve_attention
from janus_jax.aot.collectives import Collective
from janus_jax.aot.compile import RL_PROMPT_LENGTH, Program, compile_training
from janus_jax.aot.roofline import device_peak_flops, estimate_step
from janus_jax.aot.sampling import SAMPLING_SHAPES, SamplingWorkload, compile_rollout, compile_sampling
from janus_jax.aot.topologies import Topology
from janus_jax.config import Quantization
from janus_jax.errors import JanusError
from janus_jax.sharding import make_mesh, num_data_shards
from janus_jax.training.init_from import open_initialisation
from janus_jax.training.recipe import Recipe
from janus_jax.training.setup import set_up_stage

Workload = Literal["train"] | SamplingWorkload


def compile_report(
    recipe: Recipe, topology: Topology, workload: Workload = "train", *, quantization: Quantization = "none"
) -> dict[str, Any]:
    """Compiles a training step or a sampling workload for a topology.

    Args:
      quantization: Quantization of the weights for sampling. If the recipe starts from a folder with weights of 8 bits,
        "none" stands for their format.

    Returns:
      A report that can be written as JSON. Sizes are in bytes on each device.
        programs: Memory and traffic of each program. Collectives are summed over kind, axes and dtype; they run `count`
          times per step and send `ici_bytes` within a slice or node and `dcn_bytes` to other slices or nodes.
        roofline: Fields of `Roofline`; None for sampling and reinforcement learning, and if the program needs more
          memory than a device has.
        verdict: `fits`, or the reason why the workload does not fit and what to change.
      The other fields repeat the settings.

    Raises:
      JanusError: The recipe does not fit the topology, the compiler is not installed, or the accelerator's peak FLOP/s
        is not known.
    """
    accelerator = topology.accelerator
    opened = open_initialisation(recipe, None)
    recipe = opened.recipe.on_platform(accelerator.platform)
    for checkpoint in opened.checkpoints.values():
        if workload == "train":
            checkpoint.check_unquantized("training")
        quantization = checkpoint.sampling_quantization(quantization)
    if workload == "train" and quantization != "none":
        raise JanusError("--quantization is for sampling; use it with --workload generate, chat or evaluate.")
    resources, stage = recipe.resources, recipe.current
    mesh = make_mesh(resources.data, resources.fsdp, resources.tensor, topology.devices())
    roofline, checkpoint_bytes = None, 0
    if workload == "train":
        peak, setup = device_peak_flops(recipe, accelerator), set_up_stage(recipe, mesh)
        checkpoint_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(setup.abstract))
        program = compile_training(recipe, setup, mesh, topology)
        programs = [program]
        if stage.rl is not None:
            programs += compile_rollout(recipe, setup, mesh, topology)
        elif not program.error:
            trained = flatten_dict(setup.abstract.params, sep="/")
            roofline = estimate_step(recipe, accelerator, mesh, program=program, trained=trained, peak=peak)
    else:
        programs = compile_sampling(recipe, mesh, topology, workload, quantization)
    reason = memory_problem(programs, accelerator.usable_memory)
    fixes = ", or ".join(remedies(recipe, topology, mesh, programs, workload)) if reason else ""
    return {
        "model": recipe.model_config.name,
        "stage": recipe.stage,
        "workload": workload,
        "topology": topology.name,
        "devices": mesh.size,
        "device": accelerator.kind,
        "slices": topology.num_slices,
        "mesh": dict(mesh.shape),
        "batch_size": stage.batch_size,
        "sequence_length": _sequence_length(recipe),
        "microbatches": resources.microbatches,
        "remat": resources.remat,
        "quantization": quantization,
        "attention": resolve_attention(resources.attention, accelerator),
        "memory_limit": accelerator.usable_memory,
        "checkpoint_bytes": checkpoint_bytes,
        "programs": [
            {
                "name": program.name,
                "inputs": dict(program.inputs),
                "padding": program.padding,
                "temporaries": program.temporaries,
                "total": program.total,
                "error": program.error,
                "traffic": _traffic(program.collectives),
            }
            for program in programs
        ],
        "roofline": roofline and asdict(roofline),
        "fits": not reason,
        "verdict": f"does not fit: {reason}; {fixes}" if reason else "fits",
    }


def _sequence_length(recipe: Recipe) -> int:
    if recipe.current.rl is None:
        return recipe.current.budget.tokens
    return RL_PROMPT_LENGTH + recipe.model_config.num_gen_tokens


def _traffic(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    """Returns the sums of collectives with equal kind, axes and dtype, in descending order of the bytes sent."""
    sums: dict[tuple[Any, ...], dict[str, Any]] = {}
    for one in collectives:
        names = {"kind": one.kind, "axes": one.axes, "dtype": one.dtype}
        total = sums.setdefault(tuple(names.values()), names | {"count": 0, "ici_bytes": 0.0, "dcn_bytes": 0.0})
        total["count"] += one.count
        total["ici_bytes"] += one.count * one.ici_bytes
        total["dcn_bytes"] += one.count * one.dcn_bytes
    return sorted(sums.values(), key=lambda total: -(total["ici_bytes"] + total["dcn_bytes"]))


def report_text(report: Mapping[str, Any]) -> str:
    """Formats a report as text for a terminal. The verdict is the last line."""
    return "\n".join([*_heading(report), *_programs(report), *_roofline(report["roofline"]), "", report["verdict"]])


def _heading(report: Mapping[str, Any]) -> Iterator[str]:
    workload, step, training = f"stage {report['stage']}", "", report["workload"] == "train"
    if training:
        step = f", remat {report['remat']}, {report['microbatches']} microbatches"
    else:
        shape = SAMPLING_SHAPES[report["workload"]]
        workload = f"{report['workload']}: {shape.prompts} prompts of {shape.prompt_length} tokens on each device, "
        workload += f"{shape.new_tokens} new tokens"
        workload += "" if report["quantization"] == "none" else f", weights in {report['quantization']}"
    slices = f" in {report['slices']} slices" if report["slices"] > 1 else ""
    yield f"{report['model']}, {workload}, on {report['topology']}: {report['devices']} x {report['device']}{slices}"
    axes = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    yield f"mesh {axes}; attention {report['attention']}{step}"
    if training:
        yield f"batch of {report['batch_size']} sequences of {report['sequence_length']} tokens"


def _programs(report: Mapping[str, Any]) -> Iterator[str]:
    for program in report["programs"]:
        yield from ("", f"{program['name']}: memory of one device, GB (10^9 bytes)")
        for name, size in {**program["inputs"], "padding": program["padding"]}.items():
            if size:
                yield f"  {name:24}{_gb(size):>10}"
        yield f"  {'temporaries':24}{_gb(program['temporaries']):>10}"
        yield f"  {'total':24}{_gb(program['total']):>10} of {_gb(report['memory_limit'])}"
        if program["traffic"]:
            yield f"{program['name']}: bytes that one device sends, GB" + " per step" * (report["workload"] == "train")
            yield f"  {'':20}{'axes':16}{'dtype':8}{'count':>8}{'ICI':>10}{'DCN':>10}"
        for one in program["traffic"]:
            sent = f"{_gb(one['ici_bytes']):>10}{_gb(one['dcn_bytes']):>10}"
            yield f"  {one['kind']:20}{'+'.join(one['axes']):16}{one['dtype']:8}{one['count']:>8}{sent}"


def _roofline(roofline: Mapping[str, Any] | None) -> Iterator[str]:
    if roofline is None:
        return
    yield ""
    yield "FLOPs of a step, 10^15: model {:.4g}, hardware {:.4g}".format(
        *(roofline[name] / 1e15 for name in ("model_flops", "hardware_flops"))
    )
    seconds = (f"{name} {roofline[f'{name.lower()}_seconds']:.4g}" for name in ("compute", "ICI", "DCN", "optimizer"))
    yield f"seconds: {', '.join(seconds)}"
    step, mfu = (
        " to ".join(format(roofline[key][bound], form) for bound in ("overlapped", "serial"))
        for key, form in (("step_seconds", ".4g"), ("mfu", ".0%"))
    )
    yield f"step time {step} s, MFU {mfu}, bound by {roofline['bound']}"
    yield f"assumptions: {'; '.join(roofline['assumptions'])}"


def memory_problem(programs: Sequence[Program], limit: float) -> str:
    """Returns the reason why a program does not fit into `limit` bytes, or "" if all programs fit."""
    for program in programs:
        if program.error:
            return f"{program.name}: {_gb(program.total)} GB needed ({program.error:.160})"
        if program.total > limit:
            return f"{program.name}: {_gb(program.total)} GB on each device, of {_gb(limit)}"
    return ""


def remedies(
    recipe: Recipe, topology: Topology, mesh: Mesh, programs: Sequence[Program], workload: Workload
) -> Iterator[str]:
    """Yields changes of the recipe that reduce its memory use, as flags, in ascending order of their cost."""
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
