"""Which component the next sample comes from: ratios that hold at every moment, and weights that change at a step."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Self

from janus_jax.errors import JanusError


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with weights of its own.

    Attributes:
      until_step: the first step after it; None for the last phase, which has no end.
      weights: samples in proportion, by component name; a component that is not named gives none.
    """

    until_step: int | None
    weights: Mapping[str, float]


def check_phases(phases: Sequence[Phase], names: Sequence[str]) -> None:
    """Checks phases against each other and against the names of the components.

    Raises:
      JanusError: they are not in order, or a weight is of no component or no number.
    """
    if not phases or any(phase.until_step is None for phase in phases[:-1]) or phases[-1].until_step is not None:
        raise JanusError("StreamConfig.phases must end with a phase whose until_step is None, and with no other.")
    ends = [0, *(phase.until_step for phase in phases if phase.until_step is not None)]
    if any(end <= before for before, end in itertools.pairwise(ends)):
        raise JanusError(f"The phases' until_step are {ends[1:]}; each must be larger than the one before, and than 0.")
    for phase in phases:
        for name, weight in phase.weights.items():
            if name not in names:
                raise JanusError(f"A phase gives a weight to {name!r}; the components are {', '.join(names)}.")
            if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                raise JanusError(f"The weight of {name!r} is {weight!r}; it must be a number of at least 0.")
        if not any(phase.weights.values()):
            raise JanusError(f"The phase until step {phase.until_step} gives no component a weight.")


@dataclass
class MixtureSchedule:
    """Draws components so that each has its share of every beginning of the sequence, to within one sample.

    Of k components none is ever more than 1 - 1/(2k - 2) samples from its share, which is the best there is; the rule
    is Tijdeman's (1980, "The chairman assignment problem"): among those whose next sample is not too early, the one
    that would be late first. Shares are fractions, so nothing drifts. What was owed when the weights change is still
    owed afterwards.

    Attributes:
      phases: the weights.
      names: of the components, in the order of their numbers.
      slots: samples drawn so far in each phase.
      counts: samples drawn so far of each component.
    """

    phases: Sequence[Phase]
    names: Sequence[str]
    slots: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = list(self.slots) or [0] * len(self.phases)
        self.counts = list(self.counts) or [0] * len(self.names)
        shares = [self._shares(phase) for phase in self.phases]
        # All is counted in units of which every share is a whole number: faster than fractions, and as exact.
        slackest = max(1, 2 * len(self.names) - 2)
        self._slack = math.lcm(*(share.denominator for share in itertools.chain(*shares)))
        self._sample = self._slack * slackest
        self._units = [[int(share * self._sample) for share in phase] for phase in shares]
        self._owed = [
            sum(n * units[c] for n, units in zip(self.slots, self._units, strict=True)) - count * self._sample
            for c, count in enumerate(self.counts)
        ]

    @property
    def owed(self) -> list[Fraction]:
        """How many samples more of each component the weights make of the samples so far than there were."""
        return [Fraction(owed, self._sample) for owed in self._owed]

    def phase(self, step: int) -> int:
        """The number of the phase that `step` is in."""
        ends = (phase.until_step for phase in self.phases)
        return next(index for index, end in enumerate(ends) if end is None or step < end)

    def draw(self, phase: int) -> int:
        """The number of the component that the next sample comes from."""
        units = self._units[phase]
        self._owed = [owed + unit for owed, unit in zip(self._owed, units, strict=True)]
        drawn = min((c for c, unit in enumerate(units) if unit), key=lambda c: self._urgency(c, units[c]))
        self._owed[drawn] -= self._sample
        self.slots[phase] += 1
        self.counts[drawn] += 1
        return drawn

    def copy(self) -> Self:
        """One that goes on from here by itself."""
        return dataclasses.replace(self, slots=list(self.slots), counts=list(self.counts))

    def _urgency(self, component: int, units: int) -> tuple[bool, int]:
        """Whether the component's next sample is too early now, and after how many more it would be late."""
        owed = self._owed[component]
        return owed < self._slack, -((owed + self._slack - self._sample) // units)

    def _shares(self, phase: Phase) -> list[Fraction]:
        # A weight is meant as it is written: 0.1 is a tenth, not the binary number next to it.
        weights = [Fraction(str(phase.weights.get(name, 0))) for name in self.names]
        return [weight / sum(weights) for weight in weights]
