"""Configures what a stream of batches reads and how it packs it."""

from dataclasses import dataclass, field

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase, check_phases
from janus_jax.data.pipeline.packing import Budget
from janus_jax.errors import JanusError
from janus_jax.processing import EDITING_STYLES, EditingStyle, Task


@dataclass(frozen=True)
class StreamConfig:
    """Configures what a stream reads and how it builds batches.

    Attributes:
      components: Datasets of the mixture.
      batch_size: Sequences per batch, summed over all shards.
      budget: Capacity of a packed sequence.
      phases: Mixture weights by step; () uses the components' weights at every step.
      supervision: Which text tokens are targets.
      seed: Seed of the order and of all randomness per record.
      precomputed_image_tokens: Whether to read the image tokens that `janus-prepare --tokenizer` stored. Batches then
        have `gen_ids`, and `gen_images` is empty. For JanusFlow: whether to read the stored latents into `gen_latents`,
        in addition to `gen_images`. If False, stored tokens and latents are ignored.
      drop_condition: See `ExampleBuilder`.
      first_sentence: See `ExampleBuilder`.
      random_crop: See `ExampleBuilder`.
      editing: See `ExampleBuilder`.
      interleaved_features: See `ExampleBuilder`.
      lookahead: Number of examples among which the packer selects those of the next sequence.
      max_rejected: Largest share of each `recent` records that may be rejected before the run stops, in [0, 1).
      recent: Number of records to which `max_rejected` applies.
      first_step: Training step of the first batch, which selects its phase.
    """

    components: tuple[Component, ...]
    batch_size: int
    budget: Budget = field(default_factory=Budget)
    phases: tuple[Phase, ...] = ()
    supervision: Supervision = Supervision.TEXT
    seed: int = 0
    precomputed_image_tokens: bool = False
    drop_condition: float = 0.1
    first_sentence: float = 0.25
    random_crop: bool = False
    editing: EditingStyle = EDITING_STYLES["janus_4o"]
    interleaved_features: bool = False
    lookahead: int = 24
    max_rejected: float = 0.1
    recent: int = 1000
    first_step: int = 0

    def __post_init__(self) -> None:
        if not self.components:
            raise JanusError("StreamConfig.components is empty; name at least one prepared dataset.")
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise JanusError(f"Two components are called {name!r}; names must be unique.")
        for name, least in (("batch_size", 1), ("lookahead", 1), ("recent", 1), ("seed", 0)):
            if (value := getattr(self, name)) < least:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be at least {least}.")
        for name, below in (("drop_condition", 1.0), ("first_sentence", 1.0), ("max_rejected", 1 - 1e-9)):
            if not 0 <= (value := getattr(self, name)) <= below:
                raise JanusError(f"StreamConfig.{name} is {value}; it must be a share from 0 to {round(below)}.")
        check_phases(self.all_phases, names)

    @property
    def has_context_images(self) -> bool:
        """Whether examples may be edits or conversations with generated images."""
        tasks = {component.task for component in self.components}
        return self.budget.context_images > 0 or bool(tasks & {Task.EDITING, Task.INTERLEAVED})

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """`phases`, or one phase with the components' weights."""
        return self.phases or (Phase(None, {component.name: component.weight for component in self.components}),)
