"""The training step: its time, its share of what the device could do, its memory, and how long it compiles.

    python -m benchmarks.train
    python -m benchmarks.train --model janus_pro_1b --stages 1,2,3

The first command takes a small model in float32 on two cores, and runs in turns with it an equal step of transformers'
Janus on PyTorch (`train_peer.py`): the same weights, text and understanding samples, trained parts, clipping and AdamW.
Ours lie packed in rows, the peer's have a row each. Samples that are alike, all 256 places long, cost neither of them
any padding; of unlike ones the peer's rows are as long as the longest. Before anything is timed, the losses of the
first steps of both must agree. Ratios are medians over pairs of neighbouring steps: what else the machine does meets
both.

The second, on an accelerator, takes a released model's shape with random weights, in bfloat16, rows of 4096 places with
two images to understand, three to generate (which the tokenizer reads) and text. `compile_24_over_4` is how much longer
the step of a narrow model takes to compile with 24 layers than with 4. The last line is one JSON object with every
figure.
"""

import dataclasses
import functools
import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any, cast, get_args

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict

from benchmarks.rows import Layout, batch_of, unlike_rows
from benchmarks.shared import machine, use_cores, weights
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
from janus_jax.models.backbone import Params
from janus_jax.models.janus import Janus
from janus_jax.training.flops import amounts, peak_flops, step_costs
from janus_jax.training.optimizers import MomentsDtype, OptimizerConfig, make_optimizer
from janus_jax.training.param_paths import partition
from janus_jax.training.recipe import ADAPTORS_AND_HEAD, ALL_BUT_ENCODERS, ALL_BUT_TOKENIZER
from janus_jax.training.state import TrainState, state_from_params
from janus_jax.training.train_step import (
    Microbatching,
    Step,
    abstract_train_state,
    make_train_step,
    put_batch,
    random_train_state,
)

if TYPE_CHECKING:
    from benchmarks.train_peer import Theirs

_MODEL = flags.DEFINE_string("model", None, "measure a released model's shape instead of the small one")
_STAGES = flags.DEFINE_list("stages", ["1", "2", "3"], "whose trained parts train")
_ROWS = flags.DEFINE_integer("rows", 8, "rows of a batch", lower_bound=1)
_MICROBATCHES = flags.DEFINE_integer("microbatches", 1, "parts of the batch, one after the other", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", None, get_args(Dtype), "of the computation (float32 on a CPU, bfloat16 elsewhere)")
_MOMENTS = flags.DEFINE_enum("moments", "float32", get_args(MomentsDtype), "dtype of the optimizer's moments")
_ATTENTION = flags.DEFINE_enum("attention", "xla", get_args(AttentionKernel), "our attention kernel")
_REMAT = flags.DEFINE_enum("remat", None, get_args(RematPolicy), "remat policy (none for the small model, else full)")
_PAIRS = flags.DEFINE_integer("pairs", 7, "timed steps", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 2, "processor cores to run the small model on", lower_bound=1)
_PEAK = flags.DEFINE_float("peak_flops", None, "FLOP/s of the device; by default those that are known of it")
_PEER = flags.DEFINE_bool("peer", True, "run transformers as well, on a CPU, if it is installed")
_COMPILING = flags.DEFINE_bool("compiling", True, "measure how the compile time grows with depth")

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
BAR, COMPILE_BAR = 0.9, 1.2
MOST_DIFFERENCE = 1e-4
CHECKED_STEPS = 3
TRAINED = {"1": ADAPTORS_AND_HEAD, "2": ALL_BUT_ENCODERS, "3": ALL_BUT_TOKENIZER}

SMALL_ROWS = Layout(places=512, und_images=1, gen_images=0, prompt=12, answer=48)
REAL_ROWS = Layout(places=4096, und_images=2, gen_images=3, prompt=32, answer=96)
NARROW_ROWS = Layout(places=256, und_images=1, gen_images=1, prompt=16, answer=32)


class Ours:
    """This project's step."""

    def __init__(self, step: Step, state: TrainState, batch: Batch) -> None:
        self.state, self.batch = state, batch
        self._step = step
        begin = time.perf_counter()
        self._compiled = step.lower(state, put_batch(batch, None)).compile()
        self.compile_seconds = time.perf_counter() - begin

    def __call__(self) -> float:
        """One more step; its loss before it."""
        self.state, metrics = self._compiled(self.state, put_batch(self.batch, None))
        return float(jax.block_until_ready((self.state, metrics["loss"]))[1])

    @property
    def peak_bytes(self) -> int:
        """Of the step: its arguments, what it gives, and what it needs between."""
        memory = self._compiled.memory_analysis()
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return int(kept + memory.temp_size_in_bytes)


@dataclass
class Figure:
    """A stage's step, and the peer's.

    Attributes:
      ours, theirs: take a step, to its end; theirs None where there is no peer.
      filled: the share of our rows' places that hold a sample.
      flops: of a step.
      tokens: of a batch.
      difference: the largest of the losses of the first steps, relative.
      seconds, seconds_theirs: of the timed steps.
    """

    ours: Ours
    theirs: "Theirs | None"
    filled: float
    flops: float
    tokens: float
    difference: float = math.nan
    seconds: list[float] = field(default_factory=list)
    seconds_theirs: list[float] = field(default_factory=list)

    def measure(self, pairs: int) -> None:
        """Compares the first steps, and times those after.

        Raises:
          JanusError: the losses are not those of the same computation.
        """
        for _ in range(CHECKED_STEPS):
            loss = self.ours()
            if self.theirs is not None:
                expected = self.theirs()
                self.difference = max(abs(loss / expected - 1), self.difference if self.difference > 0 else 0)
        if self.difference > MOST_DIFFERENCE:
            raise JanusError(
                f"The losses differ by {self.difference:.1e}, so the two steps are not equal; see to that."
            )
        for _ in range(pairs):
            self.seconds.append(_seconds(self.ours))
            if self.theirs is not None:
                self.seconds_theirs.append(_seconds(self.theirs))

    def report(self, peak: float | None) -> dict[str, float]:
        """Every figure by name."""
        seconds = median(self.seconds)
        figures = {
            "ms": seconds * 1e3,
            "ms_least": min(self.seconds) * 1e3,
            "tokens_per_second": self.tokens / seconds,
            "teraflops": self.flops / seconds / 1e12,
            "peak_gib": self.ours.peak_bytes / 2**30,
            "compile_s": self.ours.compile_seconds,
            "filled": self.filled,
        }
        if peak is not None:
            figures["mfu"] = self.flops / seconds / peak
        if self.theirs is not None:
            ratios = [one / other for one, other in zip(self.seconds, self.seconds_theirs, strict=True)]
            figures |= {
                "peer_ms": median(self.seconds_theirs) * 1e3,
                "peer_ms_least": min(self.seconds_theirs) * 1e3,
                "ratio": median(ratios),
                "ratio_of_least": min(self.seconds) / min(self.seconds_theirs),
                "difference": self.difference,
                "peer_filled": self.tokens / self.theirs.places,
            }
        return figures


def _seconds(run: Callable[[], Any]) -> float:
    gc.collect()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _stacked(config: JanusConfig) -> Params:
    """The weights as training has them."""
    tree: Params = {}
    for unit, array in weights(config):
        node = functools.reduce(lambda node, key: node.setdefault(key, {}), unit.leaf.keys[:-1], tree)
        name = unit.leaf.keys[-1]
        if unit.layer is None:
            node[name] = array
        else:
            node.setdefault(name, np.empty((unit.leaf.layers, *array.shape), np.float32))[unit.layer] = array
    return tree


def compile_seconds(config: JanusConfig, depth: int) -> float:
    """Of stage III's step with so many layers in both transformers."""
    config = dataclasses.replace(
        config,
        llm=dataclasses.replace(config.llm, depth=depth),
        und_encoder=dataclasses.replace(config.und_encoder, depth=depth),
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4), 100)
    model = Janus(config, Execution(remat="full"))
    abstract = abstract_train_state(model, ALL_BUT_TOKENIZER, optimizer, None)
    step = make_train_step(model, optimizer, Microbatching(), abstract, None)
    batch = NARROW_ROWS.batch(config, 2)
    jax.clear_caches()
    return _seconds(lambda: step.lower(abstract, batch).compile())


def _compiling() -> dict[str, float]:
    pairs = [(compile_seconds(NARROW, 4), compile_seconds(NARROW, 24)) for _ in range(3)]
    few, many = (min(times) for times in zip(*pairs, strict=True))
    return {"compile_4_s": few, "compile_24_s": many, "compile_24_over_4": many / few}


def _figure(config: JanusConfig, stage: str, execution: Execution, batch: Batch, with_peer: bool) -> Figure:
    # The peer leaves parameters alone that no gradient reaches, and no image is generated here.
    trained = [part for part in TRAINED[stage] if not (with_peer and part.startswith("gen"))]
    recipe = OptimizerConfig(learning_rate=1e-4, weight_decay=0.1, moments_dtype=cast(MomentsDtype, _MOMENTS.value))
    optimizer, model = make_optimizer(recipe, 100), Janus(config, execution)
    abstract = abstract_train_state(model, trained, optimizer, None, frozen_dtype=execution.dtype)
    if with_peer:
        state = state_from_params(*partition(_stacked(config), trained), optimizer, abstract)
    else:
        state = random_train_state(model, trained, optimizer, abstract, jax.random.key(0))
    cut = Microbatching(_MICROBATCHES.value, tokenizer_dtype=execution.dtype)
    held = amounts(batch, config)
    theirs = None
    if with_peer:
        from benchmarks.train_peer import Theirs

        theirs = Theirs(config, trained, recipe, batch, _CORES.value)
    return Figure(
        Ours(make_train_step(model, optimizer, cut, abstract, None), state, batch),
        theirs,
        float(batch.is_token.mean()),
        held.at(step_costs(config, flatten_dict(abstract.params, sep="/"))),
        held.places,
    )


def main(_: Sequence[str]) -> None:
    """Prints a table and one line of JSON."""
    if wrong := [stage for stage in _STAGES.value if stage not in TRAINED]:
        raise JanusError(f"--stages holds {wrong[0]!r}; the stages are {', '.join(TRAINED)}.")
    small = _MODEL.value is None
    cores = use_cores(_CORES.value) if small else None
    config, layout = (SMALL, SMALL_ROWS) if _MODEL.value is None else (janus_preset(_MODEL.value), REAL_ROWS)
    batches = {"alike": layout.batch(config, _ROWS.value)}
    if small:
        batches["unlike"] = batch_of(config, unlike_rows(config, _ROWS.value, layout.places), layout.places)
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    dtype = cast(Dtype, _DTYPE.value or ("float32" if on_cpu else "bfloat16"))
    remat = cast(RematPolicy, _REMAT.value or ("none" if small else "full"))
    # As the recipes of small models have it.
    unroll = config.llm.depth if small else 1
    execution = Execution(dtype, "float32", cast(AttentionKernel, _ATTENTION.value), remat, scan_unroll=unroll)
    with_peer = (
        _PEER.value
        and small
        and on_cpu
        and dtype == "float32"
        and bool(find_spec("torch") and find_spec("transformers"))
    )
    peak = _PEAK.value or peak_flops(device.device_kind, dtype)
    report: dict[str, Any] = {
        "model": config.name,
        "rows": _ROWS.value,
        "places": layout.places,
        "dtype": dtype,
        "remat": remat,
        "cores": cores,
        **machine(*(("torch", "transformers") if with_peer else ())),
    }
    print(
        f"{'stage':5} {'samples':>7} {'ms':>8} {'peer':>8} {'ratio':>6} {'bar':>4} {'tokens/s':>9} {'TFLOP/s':>8} "
        f"{'MFU':>6} {'peak GiB':>8} {'compile s':>9} {'filled':>6} {'peer':>6} {'difference':>10}"
    )
    for stage, (samples, batch) in itertools.product(_STAGES.value, batches.items()):
        figure = _figure(config, stage, execution, batch, with_peer)
        figure.measure(_PAIRS.value)
        got = figure.report(peak)
        nan = math.nan
        print(
            f"{stage:5} {samples:>7} {got['ms']:8.1f} {got.get('peer_ms', nan):8.1f} {got.get('ratio', nan):6.3f} "
            f"{BAR:4} {got['tokens_per_second']:9.0f} {got['teraflops']:8.3g} {got.get('mfu', nan):6.3f} "
            f"{got['peak_gib']:8.2f} {got['compile_s']:9.1f} {got['filled']:6.2f} "
            f"{got.get('peer_filled', nan):6.2f} {got.get('difference', nan):10.1e}",
            flush=True,
        )
        report |= {f"stage_{stage}_{samples}_{name}": value for name, value in got.items()}
        del figure
    if _COMPILING.value:
        report |= _compiling()
        print(
            f"compiling: {report['compile_24_s']:.1f} s with 24 layers, {report['compile_4_s']:.1f} s with 4, "
            f"{report['compile_24_over_4']:.2f} times that (at most {COMPILE_BAR})"
        )
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
