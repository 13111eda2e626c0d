"""Selects the component of each example of a mixture."""

import itertools
import math
import sys
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import grain

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


class Mixture(grain.transforms.DatasetSelectionMap):
    """Maps the index of an example to its component and its position there. Every prefix matches the weights.

    With k components, the count of each differs from its expectation by at most 1 - 1/(2k - 2) examples, which is
    optimal. The rule is from Tijdeman (1980, "The chairman assignment problem"): among the components whose next
    example would not be too early, choose the one with the earliest deadline. Arithmetic is exact. Deficits carry over
    from earlier phases.

    The sequence is periodic. It is computed up to the end of its first period, as far as it is read.

    Args:
      phases: Mixture weights by step.
      names: Component names, in the order of their indices.
      phase: Index of the phase.
      phase_counts: Examples of each phase before index 0.
      component_counts: Examples of each component before index 0.
      first: Components and positions that come before the sequence.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        names: Sequence[str],
        phase: int = 0,
        *,
        phase_counts: Sequence[int] = (),
        component_counts: Sequence[int] = (),
        first: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._first = list(first)
        self._counts = list(component_counts) or [0] * len(names)
        shares = [_shares(phase, names) for phase in phases]
        # Integers in units of 1 / _example of an example: exact like fractions, and faster.
        self._slack = math.lcm(*(share.denominator for share in itertools.chain(*shares)))
        self._example = self._slack * max(1, 2 * len(names) - 2)
        units = [[int(share * self._example) for share in shares_of_phase] for shares_of_phase in shares]
        # Expected count minus actual count of each component.
        self._deficits = [
            sum(n * of_phase[c] for n, of_phase in zip(phase_counts, units, strict=bool(phase_counts)))
            - count * self._example
            for c, count in enumerate(self._counts)
        ]
        self._units = units[phase]
        # After this number of examples, every expected count has grown by a whole number.
        self._round = math.lcm(*(share.denominator for share in shares[phase]))
        self._per_round = [int(share * self._round) for share in shares[phase]]
        self._deficits_before: list[int] = []  # At the start of the current round.
        self._components, self._positions = array("I"), array("Q")
        self._is_complete = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        if index < len(self._first):
            return self._first[index]
        rounds, index = 0, index - len(self._first)
        if index >= len(self._components):
            with self._lock:
                while index >= len(self._components) and not self._is_complete:
                    self._append()
            if (excess := index - len(self._components)) >= 0:
                rounds = excess // self._round + 1
                index -= rounds * self._round
        component = self._components[index]
        return component, self._positions[index] + rounds * self._per_round[component]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _append(self) -> None:
        """Appends the next example. Must hold the lock."""
        if len(self._components) % self._round == 0:
            # The next round would repeat the last one.
            if self._deficits == self._deficits_before:
                self._is_complete = True
                return
            self._deficits_before = self._deficits
        self._deficits = [deficit + unit for deficit, unit in zip(self._deficits, self._units, strict=True)]
        chosen = min((c for c, unit in enumerate(self._units) if unit), key=self._urgency)
        self._deficits[chosen] -= self._example
        # The position first: another thread reads both as soon as the component is there.
        self._positions.append(self._counts[chosen])
        self._components.append(chosen)
        self._counts[chosen] += 1

    def _urgency(self, component: int) -> tuple[bool, int]:
        """Returns whether the next example is too early, and the negative number of examples until its deadline."""
        deficit = self._deficits[component]
        return deficit < self._slack, -((deficit + self._slack - self._example) // self._units[component])


def _shares(phase: Phase, names: Sequence[str]) -> list[Fraction]:
    # Converted by its decimal string, so that 0.1 is exactly a tenth.
    weights = [Fraction(str(phase.weights.get(name, 0))) for name in names]
    return [weight / sum(weights) for weight in weights]
