"""Trackers, which show a run while it trains: one module each, registered in `TRACKERS`."""

from janus_jax.training.trackers import tensorboard, weights_and_biases
from janus_jax.training.trackers.base import (
    DEFAULT_TRACKERS,
    TRACKERS,
    TrackedRun,
    Tracker,
    find_trackers,
    register_tracker,
)
from janus_jax.training.trackers.threads import TrackerThreads

__all__ = [
    "DEFAULT_TRACKERS",
    "TRACKERS",
    "TrackedRun",
    "Tracker",
    "TrackerThreads",
    "find_trackers",
    "register_tracker",
    "tensorboard",
    "weights_and_biases",
]
