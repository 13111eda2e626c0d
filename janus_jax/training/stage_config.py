"""A training stage: its parameters, data, dtypes and schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from janus_jax.config import Dtype, ModelConfig
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.errors import JanusError
from janus_jax.processing import EditingFormat, EditingStyle, editing_style
from janus_jax.training.config_dicts import check_values
from janus_jax.training.lora import Lora
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.rl.config import PolicyOptimization

RANDOM = "random"
"""Value of a folder in `Initialisation` for parameters that are initialized randomly."""


@dataclass(frozen=True)
class Initialisation:
    """Initial parameters of a stage that has no checkpoint yet.

    Attributes:
      source: "parts" reads the folders of an LLM, a SigLIP and an image tokenizer or VAE, and initializes the rest
        randomly. "stage" continues from the previous stage in the same workdir. "model" reads the folder of a whole
        model. "random" initializes everything randomly.
      model: Folder or hub id for "model", in any layout that `janus_jax.load` reads.
      llm: Folder or hub id for "parts", in any layout that `checkpoints_convert` reads, or "random".
      und_encoder: The same for SigLIP.
      gen_encoder: The same for the image tokenizer of Janus.
      vae: The same for the VAE of JanusFlow.
      image_tokens_from_codebook: For "parts": initializes the embeddings and head of image tokens from the codebook of
        the image tokenizer instead of randomly.
    """

    source: Literal["parts", "stage", "model", "random"] = "stage"
    model: str = ""
    llm: str = ""
    und_encoder: str = ""
    gen_encoder: str = ""
    vae: str = ""
    image_tokens_from_codebook: bool = False

    def folders(self, config: ModelConfig) -> Mapping[str, str]:
        """Returns the folders that `source` reads for this model, by field name."""
        names = {"parts": config.pretrained_parts, "model": ("model",)}.get(self.source, ())
        return {name: folder for name in names if (folder := getattr(self, name)) != RANDOM}

    def check(self, where: str, config: ModelConfig) -> None:
        """Checks that the required folders are set.

        Args:
          where: Name of this field in error messages.
          config: Config of the model.

        Raises:
          JanusError: A folder is missing.
        """
        if self.image_tokens_from_codebook and "gen_encoder" not in self.folders(config):
            raise JanusError(f"{where}.image_tokens_from_codebook needs an image tokenizer; set {where}.gen_encoder.")
        for name, folder in self.folders(config).items():
            if not folder:
                raise JanusError(f"{where}.{name} is empty; set it to the folder of a checkpoint, or to {RANDOM}.")


AutoDtype = Literal["auto", Dtype]


@dataclass(frozen=True)
class Precision:
    """Dtypes. Trained parameters are always float32.

    Attributes:
      compute: Dtype of activations and matrix products. Here and in the next two fields, "auto" is float32 on a CPU,
        where bfloat16 products are ten times slower, and bfloat16 elsewhere. A resumed run keeps its dtypes.
      frozen: Dtype of frozen parameters.
      tokenizer: Dtype of the image tokenizer or VAE, which is used if the data has no precomputed image tokens or
        latents.
    """

    compute: AutoDtype = "auto"
    frozen: AutoDtype = "auto"
    tokenizer: AutoDtype = "auto"

    def replace_auto(self, dtypes: "Precision") -> "Precision":
        """Replaces each "auto" with the value of the same field in `dtypes`."""
        values = {name: vars(dtypes)[name] if value == "auto" else value for name, value in vars(self).items()}
        return Precision(**values)


def concrete(dtype: AutoDtype) -> Dtype:
    """Returns a dtype of a recipe in which "auto" has been replaced.

    Raises:
      ValueError: The dtype is "auto".
    """
    if dtype == "auto":
        raise ValueError('The dtype is "auto"; call Recipe.on_platform first.')
    return dtype


@dataclass(frozen=True)
class Editing:
    """Sequences of edits, and of conversations in which the assistant generates images.

    Attributes:
      style: Format of edits (`processing.editing`): "janus_4o" writes a source image as features of the understanding
        encoder and as image tokens, "janus_pro_r1_edit" as image tokens only.
      drop_source: Fraction of source images whose image tokens are replaced with padding. None for the published value
        of the style: 0.5 and 0.
      drop_instruction: Fraction of edits whose instruction is replaced with padding. None for the published value of
        the style: 0 and 0.1.
      interleaved_features: In conversations, repeats each image that the assistant generates as an input image.
    """

    style: EditingFormat = "janus_4o"
    drop_source: float | None = None
    drop_instruction: float | None = None
    interleaved_features: bool = False

    def __post_init__(self) -> None:
        _ = self.format
        for name in ("drop_source", "drop_instruction"):
            share = getattr(self, name)
            check_values(self, "stage.editing", (name, share is None or 0 <= share <= 1, "from 0 to 1, or None"))

    @property
    def format(self) -> EditingStyle:
        """The format with the probabilities of this config."""
        names = ("drop_source", "drop_instruction")
        given = {name: share for name in names if (share := getattr(self, name)) is not None}
        return replace(editing_style(self.style), **given)


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
      trained: Patterns of trained parameters (`param_paths.partition`). All others are frozen.
      optimizer: Optimizer and learning rate schedule.
      steps: Length of the schedule.
      batch_size: Sequences per batch, each with `budget.tokens` tokens. With `rl`: images per step.
      phases: Mixture weights of the data by step.
      stop_at: Step at which training ends; None for `steps`.
      supervision: Which text tokens are targets.
      drop_condition: Fraction of generation examples whose prompt is replaced with padding.
      first_sentence: Fraction of captions cut to their first sentence.
      random_crop: Crops target images at a random position along their long side instead of the center.
      editing: Sequences of edits.
      budget: Capacity of a sequence.
      precision: Dtypes.
      initialisation: Initial parameters.
      ema_decay: Decay of the moving average of the parameters; 0 disables it.
      lora: Adapters that are trained in addition; rank 0 disables them.
      rl: Settings of reinforcement learning on image generation, which replaces training on data; None for training on
        data.
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
    editing: Editing = field(default_factory=Editing)
    budget: Budget = field(default_factory=Budget)
    precision: Precision = field(default_factory=Precision)
    initialisation: Initialisation = field(default_factory=Initialisation)
    ema_decay: float = 0.0
    lora: Lora = field(default_factory=Lora)
    rl: PolicyOptimization | None = None

    def __post_init__(self) -> None:
        check_values(
            self,
            "stage",
            ("stop_at", 0 < self.last_step <= self.steps, f"from 1 to steps, {self.steps}"),
            ("ema_decay", 0 <= self.ema_decay < 1, "from 0 to below 1"),
            steps=1,
            batch_size=1,
        )
        if not self.trained and not self.lora.rank:
            raise JanusError("stage.trained is empty and its lora.rank is 0; set one of them.")
        if self.rl is not None:
            self.rl.check_batch(self.batch_size)

    @property
    def last_step(self) -> int:
        """Step at which training ends."""
        return self.steps if self.stop_at is None else self.stop_at
