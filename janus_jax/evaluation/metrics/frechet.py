"""The Fréchet distance between two sets of images' features (FID, arXiv 1706.08500, §2, eq. 6). No jax."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float

from janus_jax.errors import JanusError

FEATURES = 2048
"""Numbers that Inception makes of a picture."""
SIDE = 299
"""Pixels of a side of what it sees."""


class Moments(Protocol):
    """A mean and a covariance."""

    @property
    def mean(self) -> Float[np.ndarray, " D"]: ...

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]: ...


@dataclass(frozen=True)
class Gaussian:
    """A mean and a covariance that are known."""

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]


@dataclass
class FeatureStatistics:
    """Mean and covariance of features that come batch by batch.

    Attributes:
      dimensions: of a feature.
      count: features so far.
    """

    dimensions: int
    count: int = 0
    _sum: Float[np.ndarray, " D"] = field(init=False, repr=False)
    _products: Float[np.ndarray, "D D"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.dimensions)
        self._products = np.zeros((self.dimensions, self.dimensions))

    def add(self, features: Float[np.ndarray, "N D"]) -> None:
        """Takes in one batch."""
        features = np.asarray(features, np.float64)
        self.count += len(features)
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Of both together."""
        both = FeatureStatistics(self.dimensions, self.count + other.count)
        both._sum, both._products = self._sum + other._sum, self._products + other._products
        return both

    @property
    def mean(self) -> Float[np.ndarray, " D"]:
        return self._sum / self.count

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """Of the features as a sample: divided by one less than their number.

        Raises:
          JanusError: there are fewer than two.
        """
        if self.count < 2:
            raise JanusError(f"FID is of two images at least on each side; one side has {self.count}.")
        return (self._products - self.count * np.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(real: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    Raises:
      JanusError: a set has fewer than two images.
    """
    first, second = real.covariance, other.covariance
    # C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), whose roots are real, few samples or many.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root)
    distance = np.sum(np.square(real.mean - other.mean))
    return float(distance + np.trace(first) + np.trace(second) - 2 * np.sum(np.sqrt(np.maximum(mixed, 0))))
