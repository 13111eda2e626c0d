"""A training of the image tokenizer as plain numbers."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from janus_jax.config import Dtype, VQConfig
from janus_jax.errors import JanusError
from janus_jax.training.image_tokenizer.pca_init import check_principal
from janus_jax.training.image_tokenizer.receptive_field import Reach
from janus_jax.training.optimizers import OptimizerConfig

CodebookUpdate = Literal["gradient", "moving_average"]
EncoderStart = Literal["random", "principal"]


@dataclass(frozen=True)
class PixelWeights:
    """Of the terms that compare pixels in [-1, 1] with pixels; 0 leaves a term out.

    Attributes:
      l2, l1: of their differences.
      colourful: how many times as much as a grey pixel one of full chroma counts more, in l2 and l1: what stands out
        from a quiet background.
      edge: of the differences between neighbouring pixels.
    """

    l2: float = 1.0
    l1: float = 0.0
    colourful: float = 0.0
    edge: float = 0.0


@dataclass(frozen=True)
class LossWeights(PixelWeights):
    """Of the terms of the generator's loss; 0 leaves a term out, and what it needs is then not computed.

    Attributes:
      perceptual: of LPIPS, where its weights are given.
      codebook, commitment: of latents and codes on the unit sphere.
      entropy: see `losses.entropy_loss`; `entropy_temperature` is its softmax's.
      adversarial: of the hinge loss, from step `adversarial_start` on; 0 trains no discriminator.
    """

    perceptual: float = 1.0
    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    entropy_temperature: float = 0.01
    adversarial: float = 0.5
    adversarial_start: int = 20_000


@dataclass(frozen=True)
class CodebookRecipe:
    """How the codebook is learned.

    Attributes:
      update: "gradient" (the codebook loss moves it), or "moving_average" of the latents that chose each code.
      decay: of that average, and of the count of each code's use.
      kmeans_images: images from which latents and codes begin (`TokenizerTraining.start_from`), and an encoder that
        begins as principal components; 0 leaves them random.
      reseed_below: a code chosen less often than this share of the mean is put onto a latent; 0 never does.
    """

    update: CodebookUpdate = "gradient"
    decay: float = 0.99
    kmeans_images: int = 0
    reseed_below: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """What is trained, beside the tokenizer's own config.

    Attributes:
      encoder_reach: see `reach.reach_mask`.
      encoder_start: "random", or "principal" (see `principal.as_principal`).
      encoder_rate: share of the optimizer's steps that the encoder takes; 0 leaves it as it began, and its gradient is
        then not computed. An encoder that moves faster than its codebook ends with few codes.
      discriminator_channels, discriminator_downsamplings: see `patchgan.PatchGAN`.
    """

    encoder_reach: Reach = "full"
    encoder_start: EncoderStart = "random"
    encoder_rate: float = 1.0
    discriminator_channels: int = 64
    discriminator_downsamplings: int = 3


@dataclass(frozen=True)
class Data:
    """Where images come from.

    Attributes:
      world: pictures of the embedded shapes world, drawn at the start; 0 for prepared data sets.
      directories: of prepared data sets (`janus-prepare`) of any task whose records have images.
      split: which of their splits is read, also as "train[1000:]".
      eval_directories: to evaluate on; `directories` where there are none.
      eval_split: of those.
      flip: whether half of the images are mirrored.
      workers: processes that decode, on each host; 0 decodes between the steps.
      max_rejected: share of recent records without a readable image at which training stops.
    """

    world: int = 0
    directories: tuple[str, ...] = ()
    split: str = "train"
    eval_directories: tuple[str, ...] = ()
    eval_split: str = "train[:1000]"
    flip: bool = True
    workers: int = 8
    max_rejected: float = 0.1

    def __post_init__(self) -> None:
        if bool(self.world) == bool(self.directories):
            raise JanusError(
                "config.data takes either world, a number of pictures to draw, or directories of prepared data sets: "
                f"world is {self.world} and directories are {', '.join(self.directories) or 'none'}."
            )
        if self.world < 0 or self.workers < 0 or not 0 <= self.max_rejected < 1:
            raise JanusError(
                f"config.data has world {self.world}, workers {self.workers} and max_rejected {self.max_rejected}; the "
                f"first two must be 0 or more, the third from 0 to below 1."
            )


@dataclass(frozen=True)
class WeightFiles:
    """Networks that judge, as files of the PyTorch world; without its file a judge is left out.

    Attributes:
      vgg16: torchvision's state dict, for LPIPS.
      lpips: the lpips package's `weights/v0.1/vgg.pth`, for LPIPS.
      inception: pytorch-fid's `pt_inception-2015-12-05`, for rFID.
    """

    vgg16: str = ""
    lpips: str = ""
    inception: str = ""

    def __post_init__(self) -> None:
        if bool(self.vgg16) != bool(self.lpips):
            missing = "lpips" if self.vgg16 else "vgg16"
            raise JanusError(f"config.weights.{missing} is empty; LPIPS needs both vgg16 and lpips, or neither.")


@dataclass(frozen=True)
class Intervals:
    """In steps. Whatever they are, the last step is reported, evaluated and saved.

    Attributes:
      report, evaluate, save: 0 for the end alone.
      eval_images: that are evaluated on.
    """

    report: int = 100
    evaluate: int = 5000
    save: int = 5000
    eval_images: int = 1000

    def __post_init__(self) -> None:
        if min(self.report, self.evaluate, self.save) < 0 or self.eval_images < 2:
            raise JanusError(f"config.intervals are {self}; none may be below 0, and eval_images not below 2.")


@dataclass(frozen=True)
class TokenizerRecipe:
    """What `launch.train_tokenizer` runs.

    Attributes:
      model: the tokenizer's own numbers.
      batch_size: images a step, over all devices and processes.
      ema_decay: of the average of the weights that is exported; 0 exports the weights themselves.
      seed: of parameters and data.
      dtype: of the computation; parameters, losses and the search for codes are float32.
    """

    model: VQConfig
    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    discriminator_optimizer: OptimizerConfig
    data: Data
    losses: LossWeights = field(default_factory=LossWeights)
    codebook: CodebookRecipe = field(default_factory=CodebookRecipe)
    architecture: Architecture = field(default_factory=Architecture)
    weights: WeightFiles = field(default_factory=WeightFiles)
    intervals: Intervals = field(default_factory=Intervals)
    ema_decay: float = 0.9999
    seed: int = 0
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise JanusError(f"config has {self.steps} steps of batch_size {self.batch_size}; both must be positive.")
        if not 0 <= self.ema_decay < 1:
            raise JanusError(f"config.ema_decay is {self.ema_decay}; it must be from 0 to below 1.")
        if self.architecture.encoder_start == "principal":
            check_principal(self.model, self.model.z_channels)
            if not self.codebook.kmeans_images:
                raise JanusError(
                    "config.architecture.encoder_start is 'principal', which takes images to begin from; set "
                    "config.codebook.kmeans_images, to 1000 or so."
                )
        if not 0 <= self.architecture.encoder_rate <= 1:
            raise JanusError(f"config.architecture.encoder_rate is {self.architecture.encoder_rate}; it is a share.")
        if not 0 <= self.codebook.decay < 1:
            raise JanusError(f"config.codebook.decay is {self.codebook.decay}; it must be from 0 to below 1.")
        for name, weight in asdict(self.losses).items():
            if not weight >= 0:
                raise JanusError(f"config.losses.{name} is {weight}; it must be 0 or more.")
