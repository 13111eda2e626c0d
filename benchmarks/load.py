"""Times of requests of concurrent clients."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Load:
    """Result of one measurement.

    Attributes:
      seconds: Duration of all requests.
      first: Seconds until the first text or image of each request.
      complete: Seconds until the end of each request.
    """

    seconds: float
    first: list[float]
    complete: list[float]


def percentiles(loads: Sequence[Load]) -> list[str]:
    """Returns the 50th and the 95th percentile of `first`, then those of `complete`, of all measurements."""
    times = ([one for load in loads for one in getattr(load, name)] for name in ("first", "complete"))
    return [f"{seconds:.2f}" for part in times for seconds in np.percentile(part, [50, 95])]
