"""A recipe: a model, its data and its training stages.

Papers: Janus (arXiv 2410.13848, sections 3.2 and 4.1), Janus-Pro (arXiv 2501.17811, sections 2.2 and 3.1), JanusFlow
(arXiv 2411.07975, section 3.3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from janus_jax.config import (
    PRESETS,
    AttentionKernel,
    Dtype,
    Execution,
    JanusFlowConfig,
    ModelConfig,
    RematPolicy,
    preset,
)
from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.checkpointing import RetentionPolicy
from janus_jax.training.config_dicts import check_values
from janus_jax.training.incidents import IncidentOptions
from janus_jax.training.losses.rectified_flow import FlowLossConfig
from janus_jax.training.stage_config import Precision, Stage, concrete
from janus_jax.training.trackers import DEFAULT_TRACKERS
from janus_jax.training.train_step import Microbatching
from janus_jax.training.watchdog import Limits


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset of the mixture.

    Attributes:
      directory: Folder that `janus-prepare` wrote; or `MODULE:NAME`, a function that returns a grain
        `RandomAccessDataSource` of records.
      task: Task of its records.
      split: Training split, or a slice of it such as "train[1000:]".
      held_out: Split for the held-out loss, or a slice such as "train[:1000]"; "" for none.
      transforms: Transforms of the records, each as `MODULE:NAME`: a `grain.transforms.Map` or `RandomMap`, or a
        function from record to record.
    """

    directory: str = ""
    task: Task | None = None
    split: str = "train"
    held_out: str = ""
    transforms: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataOptions:
    """Use of the data.

    Attributes:
      restart: Whether a resumed run starts a new order of the data if the data or the settings that determine its
        batches have changed. Otherwise such a run ends with an error. If nothing has changed, this has no effect.
    """

    restart: bool = False


@dataclass(frozen=True)
class Samples:
    """Questions and prompts that the model answers at intervals.

    Attributes:
      questions: Pairs (image file, question); an empty file name for a question without an image. Decoding is greedy.
      prompts: Image prompts. One image is generated for each.
      guidance_scale: Guidance scale of the images.
      temperature: Sampling temperature of the images (Janus).
      steps: Integration steps of the images (JanusFlow).
      max_new_tokens: Maximum length of an answer.
      seed: Seed of the images.
    """

    questions: tuple[tuple[str, str], ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scale: float = 5.0
    temperature: float = 1.0
    steps: int = 30
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for pair in self.questions:
            if len(pair) != 2 or not pair[1].strip():
                raise JanusError(f"config.samples.questions has {pair!r}; each must be a pair (image file, question).")
        if not all(prompt.strip() for prompt in self.prompts):
            raise JanusError("config.samples.prompts has an empty prompt; remove it.")
        check_values(
            self,
            "config.samples",
            ("guidance_scale", 0 <= self.guidance_scale <= 1e6, "from 0 to 1e6"),
            ("temperature", self.temperature == 0 or 1e-6 <= self.temperature <= 1e6, "0 or from 1e-6 to 1e6"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
            steps=1,
            max_new_tokens=1,
        )


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks that run at intervals.

    Attributes:
      benchmarks: Pairs (benchmark name, folder of its data); `janus-evaluate --list` shows the names.
      limit: Number of questions per benchmark, a random subset fixed by the recipe's seed; 0 for all.
      batch_size: Questions per batch.
    """

    benchmarks: tuple[tuple[str, str], ...] = ()
    limit: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for pair in self.benchmarks:
            if len(pair) != 2 or not all(pair):
                raise JanusError(f"config.evaluation.benchmarks has {pair!r}; each must be a pair (name, folder).")
        check_values(self, "config.evaluation", limit=0, batch_size=1)


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps. The last step always reports, evaluates, samples, runs benchmarks and saves.

    Attributes:
      report: Steps between reports of metrics. Here and in the next four fields 0 means the last step only.
      evaluate: Steps between computations of the held-out loss.
      sample: Steps between samples.
      benchmark: Steps between benchmark runs.
      save: Steps between checkpoints.
      evaluate_batches: Number of batches for the held-out loss, the same each time.
      profile: First step to trace, counted from 1, and number of steps; 0 steps disable the trace.
    """

    report: int = 10
    evaluate: int = 1000
    sample: int = 1000
    benchmark: int = 0
    save: int = 1000
    evaluate_batches: int = 8
    profile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        is_traceable = len(self.profile) == 2 and min(self.profile) >= 0 and (self.profile[0] or not self.profile[1])
        profile = ("profile", bool(is_traceable), "(first step, number of steps), as in (10, 3)")
        minimums = {"report": 0, "evaluate": 0, "sample": 0, "benchmark": 0, "save": 0, "evaluate_batches": 1}
        check_values(self, "config.intervals", profile, **minimums)


@dataclass(frozen=True)
class Resources(Limits):
    """Use of the hardware. These values do not change the result, up to rounding.

    Attributes:
      data: Size of the data axis of the mesh (`sharding.make_mesh`). One of the three axes may be -1: it takes the
        remaining devices.
      fsdp: Size of the fsdp axis.
      tensor: Size of the tensor axis.
      attention: See `Execution`.
      remat: See `Execution`.
      scan_unroll: See `Execution`.
      microbatches: See `Microbatching`.
      logits_chunk: See `Microbatching`.
      data_workers: Processes per host that read, decode and tokenize; 0 for none.
      data_threads: Threads that do so, in each of these processes, or in the training process if there are none.
      compilation_cache: Folder of compiled programs, which shorten the next start: "workdir" for `compiled` in the
        workdir, which all processes share; "user" for one in the user's cache folder; "auto" for "workdir" with
        --distributed and "user" without. $JAX_COMPILATION_CACHE_DIR replaces it.
      check_replicas: Steps between comparisons of the state's replicas (`callbacks.replicas`), which find devices that
        compute wrong values; they then also run before each save. 0 disables them.
      peak_flops: FLOP/s of one device, the reference of MFU; None for the value in `accelerators.peak_flops`.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    attention: AttentionKernel = "auto"
    remat: RematPolicy = "full"
    scan_unroll: int = 1
    microbatches: int = 1
    logits_chunk: int = 512
    data_workers: int = 8
    data_threads: int = 1
    compilation_cache: Literal["auto", "workdir", "user"] = "auto"
    check_replicas: int = 0
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_valid = self.peak_flops is None or 0 < self.peak_flops < math.inf
        check_values(
            self,
            "config.resources",
            ("peak_flops", is_valid, "above 0, or None"),
            data_workers=0,
            data_threads=0,
            check_replicas=0,
        )


@dataclass(frozen=True)
class Recipe:
    """A recipe, run by `janus-train`.

    Attributes:
      stages: The stages, in order.
      sources: Datasets by name. The phases of the stages refer to these names.
      model: Name of a preset, such as "janus_pro_1b"; "" for the model in `initialisation.model`, or that of the
        previous stage.
      stage: Stage to run, counted from 1.
      data: Use of the data.
      precomputed_image_tokens: Reads image tokens, or latents for JanusFlow, from the data. `janus-prepare --tokenizer`
        adds them.
      tokenizer: Folder or hub id of `tokenizer.json`; "" for that of the run or of the initial checkpoint.
      seed: Seed of parameters and data.
      data_shards: Number of data shards, fixed when a stage starts. A resumed run may use any number of processes that
        divides it. 0 for the number of processes at the start.
      max_skipped: Steps of a stage that may be skipped because of a non-finite gradient. One more ends the run.
      intervals: Intervals of reports, samples and checkpoints.
      samples: Questions and prompts that the model answers during training.
      evaluation: Benchmarks that run during training.
      keep: Retention policy of the checkpoints.
      incidents: Which steps are recorded, so that `janus-train --replay` can repeat them.
      trackers: Trackers that show the run: tensorboard, wandb, or `MODULE:NAME` for one of your own.
      resources: Use of the hardware.
      architecture: Config of a model that is not a preset, in place of `model`.
      flow: Settings of the flow loss of JanusFlow; None for those of the paper.
    """

    stages: tuple[Stage, ...]
    sources: Mapping[str, PreparedDataset]
    model: str = ""
    stage: int = 1
    data: DataOptions = field(default_factory=DataOptions)
    precomputed_image_tokens: bool = False
    tokenizer: str = ""
    seed: int = 0
    data_shards: int = 0
    max_skipped: int = 0
    intervals: Intervals = field(default_factory=Intervals)
    samples: Samples = field(default_factory=Samples)
    evaluation: Evaluation = field(default_factory=Evaluation)
    keep: RetentionPolicy = field(default_factory=RetentionPolicy)
    incidents: IncidentOptions = field(default_factory=IncidentOptions)
    trackers: tuple[str, ...] = DEFAULT_TRACKERS
    resources: Resources = field(default_factory=Resources)
    architecture: ModelConfig | None = None
    flow: FlowLossConfig | None = None

    def __post_init__(self) -> None:
        stage = ("stage", 1 <= self.stage <= len(self.stages), f"from 1 to {len(self.stages)}")
        check_values(self, "config", stage, data_shards=0, max_skipped=0)

    @property
    def current(self) -> Stage:
        """The stage to run."""
        return self.stages[self.stage - 1]

    @property
    def model_config(self) -> ModelConfig:
        """Config of the model.

        Raises:
          JanusError: The preset does not exist, or neither a preset nor an architecture is set.
        """
        if self.architecture is None and not self.model:
            raise JanusError(
                f"config.model is empty; set it to a preset ({', '.join(PRESETS)}), or start from a whole model with "
                f"config.stages.stage_{self.stage}.initialisation.source=model and .model=FOLDER."
            )
        return self.architecture or preset(self.model)

    @property
    def used_sources(self) -> Mapping[str, PreparedDataset]:
        """The sources with a weight in the current stage."""
        weights = [phase.weights for phase in self.current.phases]
        return {name: source for name, source in self.sources.items() if any(one.get(name) for one in weights)}

    def check_tasks(self) -> None:
        """Checks that the model supports the tasks of the current stage.

        Raises:
          JanusError: The model is a JanusFlow, and a source has edits or conversations with generated images, or the
            budget has context images.
        """
        if not isinstance(self.model_config, JanusFlowConfig):
            return
        reason = (
            "A sequence of JanusFlow ends with its target image and has no images as latents in its context; use a "
            "Janus or Janus-Pro model."
        )
        for name, source in self.used_sources.items():
            if source.task in (Task.EDITING, Task.INTERLEAVED):
                task = source.task.value
                raise JanusError(f"config.sources.{name}.task is {task}, which JanusFlow does not support. {reason}")
        if self.current.budget.context_images:
            where = f"config.stages.stage_{self.stage}.budget.context_images"
            raise JanusError(f"{where} is {self.current.budget.context_images}; JanusFlow needs 0. {reason}")

    def replace_current(self, **fields: Any) -> "Recipe":
        """Replaces fields of the current stage."""
        stages = list(self.stages)
        stages[self.stage - 1] = replace(self.current, **fields)
        return replace(self, stages=tuple(stages))

    def on_platform(self, platform: str) -> "Recipe":
        """Replaces the dtypes "auto" of the current stage with those of a platform of jax, such as "cpu"."""
        dtype: Dtype = "float32" if platform == "cpu" else "bfloat16"
        return self.replace_current(precision=self.current.precision.replace_auto(Precision(dtype, dtype, dtype)))

    @property
    def execution(self) -> Execution:
        """How the model of the current stage is executed. The dtypes must not be "auto" (`on_platform`)."""
        r, dtype = self.resources, concrete(self.current.precision.compute)
        return Execution(dtype, "float32", r.attention, r.remat, layers="scanned", scan_unroll=r.scan_unroll)

    @property
    def microbatching(self) -> Microbatching:
        """How the step of the current stage is split. The dtypes must not be "auto" (`on_platform`)."""
        r = self.resources
        return Microbatching(r.microbatches, r.logits_chunk, concrete(self.current.precision.tokenizer))

    @property
    def stream(self) -> StreamConfig:
        """Training data of the current stage: the sources with a weight in its phases.

        Raises:
          JanusError: A source is unknown or has no folder.
        """
        stage = self.current
        used = sorted({name for phase in stage.phases for name, weight in phase.weights.items() if weight})
        for name in used:
            if name not in self.sources:
                raise JanusError(
                    f"config.stages.stage_{self.stage}.phases has a weight for {name!r}; the sources are "
                    f"{', '.join(self.sources)}."
                )
            if not self.sources[name].directory:
                raise JanusError(
                    f"config.sources.{name}.directory is empty; set it to a prepared dataset, or set its weights in "
                    f"config.stages.stage_{self.stage}.phases to 0."
                )
        return StreamConfig(
            components=tuple(
                Component(name, source.directory, task=source.task, split=source.split, transforms=source.transforms)
                for name, source in ((name, self.sources[name]) for name in used)
            ),
            batch_size=stage.batch_size,
            budget=stage.budget,
            phases=tuple(
                Phase(phase.until_step, {name: phase.weights.get(name, 0) for name in used}) for phase in stage.phases
            ),
            supervision=stage.supervision,
            seed=self.seed,
            precomputed_image_tokens=self.precomputed_image_tokens,
            drop_condition=stage.drop_condition,
            first_sentence=stage.first_sentence,
            random_crop=stage.random_crop,
            editing=stage.editing.format,
            interleaved_features=stage.editing.interleaved_features,
        )

    @property
    def held_out(self) -> StreamConfig | None:
        """Held-out data of the current stage, with the weights of its last phase; None for no held-out data."""
        stream, weights = self.stream, self.current.phases[-1].weights
        splits = {name: source.held_out for name, source in self.sources.items() if source.held_out}
        components = tuple(
            replace(component, split=splits[component.name])
            for component in stream.components
            if component.name in splits and weights.get(component.name)
        )
        if not components:
            return None
        phase = Phase(None, {component.name: weights[component.name] for component in components})
        editing = replace(stream.editing, drop_source=0.0, drop_instruction=0.0)
        undropped = replace(stream, drop_condition=0.0, first_sentence=0.0, editing=editing)
        return replace(undropped, components=components, phases=(phase,))


SOURCES: Mapping[str, PreparedDataset] = {
    "understanding": PreparedDataset(task=Task.UNDERSTANDING),
    "text": PreparedDataset(task=Task.TEXT),
    "generation": PreparedDataset(task=Task.GENERATION),
    "imagenet": PreparedDataset(task=Task.GENERATION),
}
"""Datasets of the papers: images with text about them, text, captions with images, class names with images."""

SAMPLES = Samples(
    prompts=(
        "A red apple beside a green bottle on a wooden table.",
        "Two dogs running on a beach at sunset.",
        "A steam train crossing a stone bridge, oil painting.",
        "A portrait of an old fisherman, black and white photograph.",
    )
)
"""Default prompts: colors, a number and a style."""
