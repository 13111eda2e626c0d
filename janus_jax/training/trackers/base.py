"""Trackers: classes that show a run, registered by name.

    @register_tracker("losses")
    class Losses(Tracker):
        def scalars(self, step, values):
            print(step, values)

A tracker overrides the methods for what it shows. The first process calls them in order, in a thread of the tracker's
own (`trackers.threads`). They may block and raise exceptions without an effect on the training.
"""

import functools
import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from janus_jax.registries import find_registered, register

DEFAULT_TRACKERS = ("tensorboard",)

_GIT_SECONDS = 20


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes:
      id: Id of the run. A resumed run keeps it.
      folder: Folder of the run.
      config: Configuration as JSON values.
      start_step: Step at which the run starts or resumes. The values of later steps, which an interrupted run has shown
        already, follow once more.
      message: Prints a line to the console.
      files: Local folder for the tracker's files: `folder`, or one that is uploaded if `folder` is on a bucket.
    """

    id: str
    folder: Path
    config: Mapping[str, Any]
    start_step: int
    message: Callable[[str], None]
    files: Path

    @functools.cached_property
    def versions(self) -> Mapping[str, str]:
        """Versions of janus_jax and jax, and `git_commit` if there is one (`git_commit`)."""
        versions = {name: importlib.metadata.version(name) for name in ("janus_jax", "jax")}
        commit = git_commit(Path.cwd()) or git_commit(Path(__file__).parent)
        return versions | ({"git_commit": commit} if commit else {})


class Tracker:
    """Shows a run. The methods of this class do nothing.

    If `start` raises an exception, no other method is called. After an exception of another method the calls continue.
    """

    @classmethod
    def check(cls, field: str) -> None:
        """Checks the requirements of the tracker, such as packages, before any device is used.

        Args:
          field: Config field that names the tracker, for messages.

        Raises:
          JanusError: Something is missing.
        """

    def start(self, run: TrackedRun) -> None:
        """Starts to show a run, or continues to show a resumed one."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows metrics."""

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows Markdown texts."""

    def images(
        self, step: int, name: str, images: Sequence[UInt8[np.ndarray, "H W 3"]], captions: Sequence[str]
    ) -> None:
        """Shows images, which may differ in size.

        Args:
          captions: One caption for each image, such as its prompt; or none.
        """

    def answers(self, step: int, name: str, answers: Sequence[tuple[str, str]]) -> None:
        """Shows pairs of a question and an answer."""

    def finish(self, succeeded: bool) -> None:
        """Shows the rest.

        Args:
          succeeded: Whether the run has ended without an exception. A run that is preempted or interrupted has not.
        """


T = TypeVar("T", bound=type[Tracker])

TRACKERS: dict[str, type[Tracker]] = {}
"""All registered trackers by name."""


def register_tracker(name: str) -> Callable[[T], T]:
    """Class decorator that registers a tracker, so that `config.trackers` finds it by its name.

    Raises:
      JanusError: A tracker of this name is registered already.
    """

    def decorate(tracker: T) -> T:
        register(TRACKERS, name, tracker, "tracker")
        return tracker

    return decorate


def find_trackers(names: Sequence[str]) -> Mapping[str, type[Tracker]]:
    """Returns the trackers of a run by name, and checks that they can be used. Uses no device.

    Args:
      names: Value of `config.trackers`: names, or `MODULE:NAME` (`find_registered`).

    Raises:
      JanusError: A name is unknown, or a package is missing.
    """
    found = {name: find_registered(TRACKERS, name, "config.trackers") for name in names}
    for name, tracker in found.items():
        tracker.check(f"config.trackers {name}")
    return found


def git_commit(folder: Path) -> str | None:
    """Returns the commit of a git repository, followed by `-dirty` if files differ from it; None without a commit."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
