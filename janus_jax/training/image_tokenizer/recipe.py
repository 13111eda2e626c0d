"""Recipes for training image tokenizers: VQ tokenizers and VAEs."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from janus_jax.config import Dtype, VAEConfig, VQConfig
from janus_jax.errors import JanusError
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.trackers import DEFAULT_TRACKERS

CodebookUpdate = Literal["gradient", "moving_average"]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the reconstruction losses, on pixels in [-1, 1]. A weight of 0 disables the term.

    Attributes:
      l2: Mean squared error.
      l1: Mean absolute error.
      edge: Mean absolute error of the differences of neighboring pixels.
      perceptual: LPIPS distance. The term is omitted if `NetworkFiles` has no files for it.
    """

    l2: float = 1.0
    l1: float = 0.0
    edge: float = 0.0
    perceptual: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in asdict(self).items():
            if not weight >= 0:
                raise JanusError(f"config.losses.{name} is {weight}; it must be 0 or more.")


@dataclass(frozen=True)
class VQLossWeights(LossWeights):
    """Weights of the losses of a VQ tokenizer.

    Attributes:
      codebook: Loss that moves codes toward their latents, both on the unit sphere.
      commitment: Loss that moves latents toward their codes.
      entropy: Loss that favors certain assignments and an even use of the codes; see `losses.entropy_loss`.
      entropy_temperature: Temperature of the softmax in the entropy loss.
      adversarial: Hinge loss against the discriminator. With 0 there is no discriminator.
      adversarial_start: Step at which the discriminator starts to train and the adversarial loss is added.
    """

    codebook: float = 1.0
    commitment: float = 0.25
    entropy: float = 0.0
    entropy_temperature: float = 0.01
    adversarial: float = 0.5
    adversarial_start: int = 20_000


@dataclass(frozen=True)
class VAELossWeights(LossWeights):
    """Weights of the losses of a VAE.

    Attributes:
      kl: KL divergence of an image's latents from a standard normal (arXiv 2112.10752, appendix G).
    """

    kl: float = 1e-6


@dataclass(frozen=True)
class CodebookRecipe:
    """How the codebook is trained.

    Attributes:
      update: "gradient" trains the codes by the codebook loss; "moving_average" sets each code to the average of the
        latents assigned to it.
      decay: Decay of the moving averages of the codes and of their usage counts.
      kmeans_images: Number of images from whose latents k-means computes the initial codebook. 0 initializes randomly.
      reseed_below: Codes used less often than this fraction of the mean are replaced by latents of the batch. 0
        replaces none.
    """

    update: CodebookUpdate = "gradient"
    decay: float = 0.99
    kmeans_images: int = 0
    reseed_below: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise JanusError(f"config.codebook.decay is {self.decay}; it must be at least 0 and below 1.")


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """Discriminator of a VQ tokenizer; see `patchgan.PatchGAN`.

    Attributes:
      optimizer: Optimizer of the discriminator.
      base_channels: Channels of the first convolution.
      num_downsamplings: Convolutions of stride 2. With 3 a logit depends on 70x70 pixels, with 2 on 34x34.
    """

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-4))
    base_channels: int = 64
    num_downsamplings: int = 3


@dataclass(frozen=True)
class ImageData:
    """Images for training and evaluation.

    By default, evaluation uses the first 5% of `directories`, which are not trained on.

    Attributes:
      directories: Prepared datasets (`janus-prepare`) of any task. One image of each record is used.
      split: Split of these datasets, for example "train[1000:]". Empty: "train[5%:]", or "train" if there are
        `eval_directories`.
      eval_directories: Datasets for evaluation; empty uses `directories`.
      eval_split: Split of the evaluation datasets. Empty: "train[:5%]" of `directories`, or "train" of
        `eval_directories`.
      flip: Whether crops are mirrored with probability 0.5.
      workers: Number of processes per host that decode images. 0 decodes in the training process.
      max_rejected: Training stops if a larger fraction of the recent records has no readable image.
      restart: Whether a resumed run starts a new order of the data if the data have changed.
    """

    directories: tuple[str, ...] = ()
    split: str = ""
    eval_directories: tuple[str, ...] = ()
    eval_split: str = ""
    flip: bool = True
    workers: int = 8
    max_rejected: float = 0.1
    restart: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or not 0 <= self.max_rejected < 1:
            raise JanusError(
                f"config.data has workers {self.workers} and max_rejected {self.max_rejected}; workers must be 0 or "
                f"more, max_rejected at least 0 and below 1."
            )

    @property
    def training_split(self) -> str:
        """Split of the training datasets."""
        return self.split or ("train" if self.eval_directories else "train[5%:]")

    @property
    def evaluation_split(self) -> str:
        """Split of the evaluation datasets."""
        return self.eval_split or ("train" if self.eval_directories else "train[:5%]")


@dataclass(frozen=True)
class NetworkFiles:
    """PyTorch weight files of the pretrained networks in losses and metrics. An empty path disables its network.

    Attributes:
      vgg16: torchvision's state dict, for LPIPS.
      lpips: `weights/v0.1/vgg.pth` of the lpips package, for LPIPS.
      inception: `pt_inception-2015-12-05` of pytorch-fid, for rFID.
    """

    vgg16: str = ""
    lpips: str = ""
    inception: str = ""

    def __post_init__(self) -> None:
        if bool(self.vgg16) != bool(self.lpips):
            missing = "lpips" if self.vgg16 else "vgg16"
            raise JanusError(f"config.networks.{missing} is empty; LPIPS needs both vgg16 and lpips, or neither.")


@dataclass(frozen=True)
class Intervals:
    """Intervals in steps. With 0 the action runs at the last step only.

    Attributes:
      report: Steps between two reports of metrics.
      evaluate: Steps between two evaluations.
      save: Steps between two checkpoints.
      eval_images: Number of images per evaluation.
    """

    report: int = 100
    evaluate: int = 5000
    save: int = 5000
    eval_images: int = 1000

    def __post_init__(self) -> None:
        if min(self.report, self.evaluate, self.save) < 0 or self.eval_images < 2:
            raise JanusError(f"config.intervals are {self}; all must be 0 or more, and eval_images 2 or more.")


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Fields shared by the recipes for image tokenizers.

    Attributes:
      steps: Training steps.
      batch_size: Images per step, over all devices and processes.
      optimizer: Optimizer of the tokenizer.
      losses: Weights of the loss terms.
      data: Training and evaluation images.
      networks: Files of the pretrained networks in losses and metrics.
      intervals: Intervals of reports, evaluations and checkpoints.
      trackers: Trackers that show the run: tensorboard, wandb, or `MODULE:NAME` for one of your own.
      pca_images: Number of images from whose patches the encoder is initialized, as their principal components
        (`pca_init`). An encoder trained from random values takes long to keep colors. 0 initializes randomly.
      trained: Patterns of the trained parameters, for example "decoder/*". Other parameters keep their initial values.
      ema_decay: Decay of the moving average of the trained parameters. The average is the result of the training. 0
        disables it.
      seed: Seed of initialization, data order and noise.
      dtype: Dtype of the computation. Parameters, losses and the codebook lookup are float32.
    """

    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    losses: LossWeights = field(default_factory=LossWeights)
    data: ImageData = field(default_factory=ImageData)
    networks: NetworkFiles = field(default_factory=NetworkFiles)
    intervals: Intervals = field(default_factory=Intervals)
    trackers: tuple[str, ...] = DEFAULT_TRACKERS
    pca_images: int = 0
    trained: tuple[str, ...] = ("*",)
    ema_decay: float = 0.9999
    seed: int = 0
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise JanusError(f"config has {self.steps} steps of batch_size {self.batch_size}; both must be positive.")
        if self.pca_images < 0:
            raise JanusError(f"config.pca_images is {self.pca_images}; it must be 0 or more.")
        if not 0 <= self.ema_decay < 1:
            raise JanusError(f"config.ema_decay is {self.ema_decay}; it must be at least 0 and below 1.")


@dataclass(frozen=True, kw_only=True)
class VQRecipe(AutoencoderRecipe):
    """Recipe for a VQ tokenizer (LlamaGen, arXiv 2406.06525, §2.1).

    Attributes:
      model: Architecture of the tokenizer.
      codebook: How the codebook is trained.
      discriminator: Discriminator of the adversarial loss.
    """

    model: VQConfig
    losses: VQLossWeights = field(default_factory=VQLossWeights)
    codebook: CodebookRecipe = field(default_factory=CodebookRecipe)
    discriminator: DiscriminatorRecipe = field(default_factory=DiscriminatorRecipe)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.image_size


@dataclass(frozen=True, kw_only=True)
class VAERecipe(AutoencoderRecipe):
    """Recipe for a VAE.

    Attributes:
      model: Architecture of the VAE.
      image_size: Side of the images in pixels.
    """

    model: VAEConfig
    image_size: int
    losses: VAELossWeights = field(default_factory=VAELossWeights)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.model.downsampling:
            raise JanusError(
                f"config.image_size is {self.image_size}; it must be a multiple of {self.model.downsampling}, the "
                f"downsampling of the VAE."
            )
