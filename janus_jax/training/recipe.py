"""A recipe: a model and the stages that train it. All of it is data; the loop does what it says.

Janus (arXiv 2410.13848, §3.2 and §4.1), Janus-Pro (arXiv 2501.17811, §2.2 and §3.1), JanusFlow (arXiv
2411.07975, §3.3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from janus_jax.config import AttentionKernel, Dtype, Execution, ModelConfig, RematPolicy, preset
from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.data.pipeline.stream import StreamConfig
from janus_jax.errors import JanusError
from janus_jax.processing import Task
from janus_jax.training.checkpointing import RetentionPolicy
from janus_jax.training.lora import Lora
from janus_jax.training.losses.rectified_flow import ALIGNER, FlowLossConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.train_step import Microbatching

ADAPTORS_AND_HEAD = ("und_adaptor/*", "gen_embed/*", "gen_adaptor/*", "gen_head/*")
"""What stage I trains. That `gen_embed` is part of it is inferred: nothing has trained it before."""

ALL_BUT_ENCODERS = (*ADAPTORS_AND_HEAD, "llm/*")
"""What stage II trains: all but SigLIP and the image tokenizer."""

ALL_BUT_TOKENIZER = (*ALL_BUT_ENCODERS, "und_encoder/*")
"""What stage III trains."""

LINEAR_LAYERS_AND_FLOW = (
    "und_adaptor/*",
    "beg_of_und/*",
    "gen_encoder/*",
    "gen_adaptor/*",
    "gen_decoder_adaptor/*",
    "gen_decoder/*",
    f"{ALIGNER}/*",
)
"""What stage I of JanusFlow trains (arXiv 2411.07975, §3.3): its linear layers, generation encoder and decoder.

That the embedding before an image to understand is part of it is inferred: nothing has trained it before.
"""

FLOW_ALL_BUT_ENCODER = (*LINEAR_LAYERS_AND_FLOW, "llm/*")
"""What its stage II trains: all but SigLIP and the VAE."""

FLOW_ALL_BUT_VAE = (*FLOW_ALL_BUT_ENCODER, "und_encoder/*")
"""What its stage III trains."""


RANDOM = "random"
"""In place of the folder of a part that nothing is to be read for."""


@dataclass(frozen=True)
class Initialisation:
    """Where parameters come from when a stage begins that has no checkpoint of its own yet.

    Attributes:
      source: "parts", the folders of an LLM, a SigLIP and an image tokenizer or VAE, with all else drawn at random;
        "stage", the stage before, in the same workdir; "model", the folder of a whole model; "random", nowhere.
      model: the folder of "model", in any layout that `janus_jax.load` reads.
      llm, und_encoder, gen_encoder, vae: the folders of "parts", in any layout that `checkpoints_convert` reads; RANDOM
        for a part to draw from the seed. A Janus has no `vae`, a JanusFlow no `gen_encoder`.
      ids_from_codebook: of "parts": whether ids of images to generate begin with the tokenizer's codes as embeddings
        and in the image head, rather than with random numbers.
    """

    source: Literal["parts", "stage", "model", "random"] = "stage"
    model: str = ""
    llm: str = ""
    und_encoder: str = ""
    gen_encoder: str = ""
    vae: str = ""
    ids_from_codebook: bool = False

    def folders(self, config: ModelConfig) -> Mapping[str, str]:
        """The folders that `source` reads for this model, by the names of their fields."""
        names = {"parts": config.pretrained_parts, "model": ("model",)}.get(self.source, ())
        return {name: folder for name in names if (folder := getattr(self, name)) != RANDOM}

    def check(self, where: str, config: ModelConfig) -> None:
        """Refuses a source whose folders are not named, or a codebook that is in none.

        Raises:
          JanusError: the sentence names the field.
        """
        if self.ids_from_codebook and "gen_encoder" not in self.folders(config):
            raise JanusError(f"{where}.ids_from_codebook needs {where}.gen_encoder, the folder of an image tokenizer.")
        for name, folder in self.folders(config).items():
            if not folder:
                raise JanusError(
                    f"{where}.{name} is empty; name the folder of the checkpoint to start from, or {RANDOM}."
                )


@dataclass(frozen=True)
class Precision:
    """In what numbers are kept and computed. What trains is kept in float32, always.

    Attributes:
      compute: activations and matrix products.
      frozen: what does not train.
      tokenizer: the computation of image ids, or of latents, that did not come with the data.
    """

    compute: Dtype = "bfloat16"
    frozen: Dtype = "bfloat16"
    tokenizer: Dtype = "bfloat16"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
      trained: patterns of the parameters that train (see `partition`); all else is frozen.
      optimizer: learning rate, schedule, warm-up, decay, clip.
      steps: that the schedule is made for.
      stop_at: step at which training ends; None for `steps`.
      batch_size: rows of a batch, each `budget.tokens` long.
      phases: samples of each component in proportion, by step.
      supervision: which text is learnt.
      drop_condition: share of the generation samples whose prompt becomes pad tokens.
      first_sentence: share of the captions that lose all but their first sentence.
      random_crop: whether the part of an image to generate along its long side is drawn; else it is the middle.
      budget: what a row has room for.
      precision: see there.
      initialisation: see there.
      ema_decay: of a moving average of the parameters; 0 for none.
      lora: adapters of frozen matrices that train besides; its rank 0 for none.
    """

    trained: tuple[str, ...]
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    phases: tuple[Phase, ...]
    stop_at: int | None = None
    supervision: Supervision = Supervision.TEXT
    drop_condition: float = 0.1
    first_sentence: float = 0.25
    random_crop: bool = False
    budget: Budget = field(default_factory=Budget)
    precision: Precision = field(default_factory=Precision)
    initialisation: Initialisation = field(default_factory=Initialisation)
    ema_decay: float = 0.0
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise JanusError(f"A stage has {self.steps} steps of batch_size {self.batch_size}; both must be positive.")
        if not 0 < self.last_step <= self.steps:
            raise JanusError(f"A stage's stop_at is {self.stop_at}; it must be from 1 to steps, {self.steps}.")
        if not 0 <= self.ema_decay < 1:
            raise JanusError(f"A stage's ema_decay is {self.ema_decay}; it must be from 0 to below 1.")
        if not self.trained and not self.lora.rank:
            raise JanusError("A stage's trained is empty and its lora.rank is 0; name parts, or give a rank.")

    @property
    def last_step(self) -> int:
        """At which training ends."""
        return self.steps if self.stop_at is None else self.stop_at


@dataclass(frozen=True)
class PreparedDataset:
    """A prepared data set of the mixture.

    Attributes:
      directory: its folder (`janus-prepare`).
      task: what its records teach.
      split: which of its splits is read, also as "train[1000:]".
      held_out: the split that the model is evaluated on, also as "train[:1000]"; "" for none.
    """

    directory: str = ""
    task: Task | None = None
    split: str = "train"
    held_out: str = ""


@dataclass(frozen=True)
class Samples:
    """What the model is asked to answer and to draw now and then, always the same, so that one sees it learn.

    Attributes:
      questions: pairs of an image's file and a question about it; "" in place of the file for a question about none.
        What is answered is the likeliest.
      prompts: of images, one each.
      guidance_scale, temperature, steps: of the images (`Pretrained.generate`), where the model has them: a Janus draws
        without steps, a JanusFlow without a temperature.
      max_new_tokens: of an answer.
      seed: of the images.
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
                raise JanusError(f"config.samples.questions holds {pair!r}; each is a pair (image file, question).")
        if not all(prompt.strip() for prompt in self.prompts):
            raise JanusError("config.samples.prompts holds an empty prompt; take it out, or say what to draw.")
        if not 0 <= self.guidance_scale <= 1e6:
            raise JanusError(f"config.samples.guidance_scale is {self.guidance_scale}; it must be from 0 to 1e6.")
        if self.temperature != 0 and not 1e-6 <= self.temperature <= 1e6:
            raise JanusError(f"config.samples.temperature is {self.temperature}; it must be 0 or from 1e-6 to 1e6.")
        if self.steps < 1:
            raise JanusError(f"config.samples.steps is {self.steps}; it must be 1 or more.")
        if self.max_new_tokens < 1:
            raise JanusError(f"config.samples.max_new_tokens is {self.max_new_tokens}; it must be 1 or more.")
        if not 0 <= self.seed < 2**32:
            raise JanusError(f"config.samples.seed is {self.seed}; it must be from 0 to 2**32 - 1.")


@dataclass(frozen=True)
class Evaluation:
    """Benchmarks that are run on the model as it is trained.

    Attributes:
      benchmarks: pairs of a benchmark's name (`launch.evaluate --list`) and the folder of its data.
      limit: questions of each, drawn by the recipe's seed, the same ones each time; 0 for all.
      batch_size: questions at a time.
    """

    benchmarks: tuple[tuple[str, str], ...] = ()
    limit: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        for pair in self.benchmarks:
            if len(pair) != 2 or not all(pair):
                raise JanusError(f"config.evaluation.benchmarks holds {pair!r}; each is a pair (name, data's folder).")
        if self.limit < 0 or self.batch_size < 1:
            raise JanusError(
                f"config.evaluation has limit {self.limit} and batch_size {self.batch_size}; the first must be 0 or "
                f"more, the second 1 or more."
            )


@dataclass(frozen=True)
class Intervals:
    """In steps. Whatever they are, the last step is reported, evaluated, sampled from, benchmarked and saved.

    Attributes:
      report, evaluate, sample, benchmark, save: 0 for the end alone.
      evaluate_batches: of the sources' held-out splits, the same ones each time.
      profile: the first step (counted from 1) and the number of steps that are traced; no steps for no trace.
    """

    report: int = 10
    evaluate: int = 1000
    sample: int = 1000
    benchmark: int = 0
    save: int = 1000
    evaluate_batches: int = 8
    profile: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if min(self.report, self.evaluate, self.sample, self.benchmark, self.save) < 0 or self.evaluate_batches < 1:
            raise JanusError(f"config.intervals are {self}; none may be below 0, and evaluate_batches not below 1.")
        if len(self.profile) != 2 or min(self.profile) < 0 or (self.profile[1] and not self.profile[0]):
            raise JanusError(
                f"config.intervals.profile is {self.profile}; it must be (first step, number of steps), as in (10, 3)."
            )


@dataclass(frozen=True)
class Resources:
    """How the machine is used. Nothing here changes what is learnt, but for rounding.

    Attributes:
      data, fsdp, tensor: sizes of the mesh's axes (`sharding.make_mesh`); -1 takes what is left.
      attention, remat, scan_unroll: see `Execution`.
      microbatches, logits_chunk: see `step.Microbatching`.
      data_workers: processes that read ahead, on each host.
      peak_flops: FLOP/s of one device, which the MFU is reckoned with; None for that of `accelerators.peak_flops`.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    attention: AttentionKernel = "xla"
    remat: RematPolicy = "full"
    scan_unroll: int = 1
    microbatches: int = 1
    logits_chunk: int = 512
    data_workers: int = 8
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        if self.peak_flops is not None and not 0 < self.peak_flops < math.inf:
            raise JanusError(f"config.resources.peak_flops is {self.peak_flops}; it must be above 0, or left out.")


@dataclass(frozen=True)
class Recipe:
    """What `janus-train` runs.

    Attributes:
      model: name of a preset. `architecture` stands in its place where a model is none of them.
      stage: which of the stages to run, counted from 1.
      stages: the stages, in order.
      sources: the data, by the names that the stages' phases use.
      precomputed_image_tokens: target images come as ids, or a JanusFlow's as latents, prepared with `launch.prepare
        --tokenizer`.
      tokenizer: folder of `tokenizer.json`; "" for the one that the run has already, or that lies with the model or
        the LLM that it starts from.
      seed: of parameters and data.
      data_shards: that the data are dealt into when a stage begins; a run may go on with any number of processes that
        divides them. 0 for as many as it begins with.
      max_skipped: steps of a stage that may be left out because their gradient is not finite; one more ends the run.
      intervals, samples, evaluation, keep, resources: see there.
      architecture: a model's own numbers.
      flow: how a JanusFlow learns its flow; None for its paper's way.
    """

    model: str
    stages: tuple[Stage, ...]
    sources: Mapping[str, PreparedDataset]
    stage: int = 1
    precomputed_image_tokens: bool = False
    tokenizer: str = ""
    seed: int = 0
    data_shards: int = 0
    max_skipped: int = 0
    intervals: Intervals = field(default_factory=Intervals)
    samples: Samples = field(default_factory=Samples)
    evaluation: Evaluation = field(default_factory=Evaluation)
    keep: RetentionPolicy = field(default_factory=RetentionPolicy)
    resources: Resources = field(default_factory=Resources)
    architecture: ModelConfig | None = None
    flow: FlowLossConfig | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.stage <= len(self.stages):
            raise JanusError(f"config.stage is {self.stage}; the recipe has stages 1 to {len(self.stages)}.")
        for name in ("data_shards", "max_skipped"):
            if getattr(self, name) < 0:
                raise JanusError(f"config.{name} is {getattr(self, name)}; it must be 0 or more.")

    @property
    def current(self) -> Stage:
        """The stage to run."""
        return self.stages[self.stage - 1]

    @property
    def model_config(self) -> ModelConfig:
        """The model's numbers.

        Raises:
          JanusError: there is no preset of that name.
        """
        return self.architecture or preset(self.model)

    @property
    def execution(self) -> Execution:
        """How the stage's model is run."""
        r = self.resources
        return Execution(
            self.current.precision.compute, "float32", r.attention, r.remat, layers="scanned", scan_unroll=r.scan_unroll
        )

    @property
    def microbatching(self) -> Microbatching:
        """How the stage's step is cut."""
        r = self.resources
        return Microbatching(r.microbatches, r.logits_chunk, self.current.precision.tokenizer)

    @property
    def stream(self) -> StreamConfig:
        """What the stage reads: those sources that its phases give a weight.

        Raises:
          JanusError: a source that is needed is unknown or has no folder.
        """
        stage = self.current
        used = sorted({name for phase in stage.phases for name, weight in phase.weights.items() if weight})
        for name in used:
            if name not in self.sources:
                raise JanusError(
                    f"config.stages.stage_{self.stage}.phases give a weight to {name!r}; the sources are "
                    f"{', '.join(self.sources)}."
                )
            if not self.sources[name].directory:
                raise JanusError(
                    f"config.sources.{name}.directory is empty; name the prepared data set, or set its weights in "
                    f"config.stages.stage_{self.stage}.phases to 0."
                )
        return StreamConfig(
            components=tuple(
                Component(name, source.directory, task=source.task, split=source.split)
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
        )

    @property
    def held_out(self) -> StreamConfig | None:
        """What the stage is evaluated on: its sources' held-out splits, in the proportion that it ends with.

        None where there are none.
        """
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
        return replace(stream, components=components, phases=(phase,), drop_condition=0.0, first_sentence=0.0)


SOURCES: Mapping[str, PreparedDataset] = {
    "understanding": PreparedDataset(task=Task.UNDERSTANDING),
    "text": PreparedDataset(task=Task.TEXT),
    "generation": PreparedDataset(task=Task.GENERATION),
    "imagenet": PreparedDataset(task=Task.GENERATION),
}
"""The papers' kinds of data: images with text about them, text alone, text with images of it, classes with images."""

SAMPLES = Samples(
    prompts=(
        "A red apple beside a green bottle on a wooden table.",
        "Two dogs running on a beach at sunset.",
        "A steam train crossing a stone bridge, oil painting.",
        "A portrait of an old fisherman, black and white photograph.",
    )
)
"""What is drawn to see a model learn: colours, a number, a style. Questions need files of one's own."""
