"""Selects the component of each example of a mixture."""

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
    """A range of steps with constant mixture weights.

    Attributes:
      until_step: First step after the phase; None for the last phase.
      weights: Relative number of examples by component name. Components without a weight are not read.
    """

    until_step: int | None
    weights: Mapping[str, float]


def check_phases(phases: Sequence[Phase], names: Sequence[str]) -> None:
    """Checks the order of the phases and the names and values of their weights.

    Raises:
      JanusError: The phases are not in order, a weight is not a number, or a component does not exist.
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
    """Deterministic sequence of components. Every prefix matches the weights to within one example.

    With k components, the count of each differs from its expectation by at most 1 - 1/(2k - 2), which is optimal. The
    rule is from Tijdeman (1980, "The chairman assignment problem"): among the components whose next example would not
    be too early, choose the one with the earliest deadline. Arithmetic is exact. Deficits carry over to the next phase.

    Attributes:
      phases: Mixture weights by step.
      names: Component names, in the order of their indices.
      phase_counts: Examples so far by phase.
      component_counts: Examples so far by component.
    """

    phases: Sequence[Phase]
    names: Sequence[str]
    phase_counts: list[int] = field(default_factory=list)
    component_counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.phase_counts = list(self.phase_counts) or [0] * len(self.phases)
        self.component_counts = list(self.component_counts) or [0] * len(self.names)
        shares = [self._shares(phase) for phase in self.phases]
        # Integers in units of 1 / _example of an example: exact like fractions, and faster.
        self._slack = math.lcm(*(share.denominator for share in itertools.chain(*shares)))
        self._example = self._slack * max(1, 2 * len(self.names) - 2)
        self._units = [[int(share * self._example) for share in phase] for phase in shares]
        # Expected count minus actual count of each component.
        self._deficits = [
            sum(n * units[c] for n, units in zip(self.phase_counts, self._units, strict=True)) - count * self._example
            for c, count in enumerate(self.component_counts)
        ]

    def phase(self, step: int) -> int:
        """Returns the index of the phase that contains `step`."""
        ends = (phase.until_step for phase in self.phases)
        return next(index for index, end in enumerate(ends) if end is None or step < end)

    def next_component(self, phase: int) -> int:
        """Returns the index of the component of the next example, and counts the example."""
        units = self._units[phase]
        self._deficits = [deficit + unit for deficit, unit in zip(self._deficits, units, strict=True)]
        chosen = min((c for c, unit in enumerate(units) if unit), key=lambda c: self._urgency(c, units[c]))
        self._deficits[chosen] -= self._example
        self.phase_counts[phase] += 1
        self.component_counts[chosen] += 1
        return chosen

    def copy(self) -> Self:
        """Returns an independent schedule that continues from here."""
        return dataclasses.replace(self)

    def _urgency(self, component: int, units: int) -> tuple[bool, int]:
        """Returns whether the next example is too early, and the negative number of examples until its deadline."""
        deficit = self._deficits[component]
        return deficit < self._slack, -((deficit + self._slack - self._example) // units)

    def _shares(self, phase: Phase) -> list[Fraction]:
        # Converted by its decimal string, so that 0.1 is exactly a tenth.
        weights = [Fraction(str(phase.weights.get(name, 0))) for name in self.names]
        return [weight / sum(weights) for weight in weights]
