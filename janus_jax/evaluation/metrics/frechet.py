"""Fréchet distance between two sets of image features (FID, arXiv 1706.08500, §2, eq. 6). Does not import jax."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from janus_jax.errors import JanusError

FEATURE_DIM = 2048
"""Size of Inception's feature vectors."""
INPUT_SIZE = 299
"""Width and height of Inception's input in pixels."""


@dataclass(frozen=True)
class Gaussian:
    """Normal distribution of feature vectors."""

    mean: Float[np.ndarray, " D"]
    covariance: Float[np.ndarray, "D D"]


@dataclass
class FeatureStatistics:
    """Mean and covariance of feature vectors, accumulated over batches.

    Attributes:
      dim: Size of a feature vector.
      count: Number of feature vectors.
    """

    dim: int
    count: int = 0
    _sum: Float[np.ndarray, " D"] = field(init=False, repr=False)
    _products: Float[np.ndarray, "D D"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.dim)
        self._products = np.zeros((self.dim, self.dim))

    def add(self, features: Float[np.ndarray, "N D"]) -> None:
        """Adds a batch of feature vectors."""
        features = np.asarray(features, np.float64)
        self.count += len(features)
        self._sum += features.sum(axis=0)
        self._products += features.T @ features

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Returns the statistics of the union of two sets."""
        both = FeatureStatistics(self.dim, self.count + other.count)
        both._sum, both._products = self._sum + other._sum, self._products + other._products
        return both

    def gaussian(self) -> Gaussian:
        """Returns the mean and the unbiased sample covariance.

        Raises:
          JanusError: There are fewer than two feature vectors.
        """
        if self.count < 2:
            raise JanusError(f"FID needs at least two images in each of the compared sets; one has {self.count}.")
        mean = self._sum / self.count
        return Gaussian(mean, (self._products - self.count * np.outer(mean, mean)) / (self.count - 1))


def frechet_distance(first: Gaussian, second: Gaussian) -> float:
    """Returns |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) for means m1, m2 and covariances C1, C2."""
    # C1 C2 has the eigenvalues of the symmetric matrix C1^(1/2) C2 C1^(1/2), whose square roots are real.
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ second.covariance @ root)
    distance = np.sum(np.square(first.mean - second.mean))
    trace = np.trace(first.covariance) + np.trace(second.covariance)
    return float(distance + trace - 2 * np.sum(np.sqrt(np.maximum(eigenvalues, 0))))
