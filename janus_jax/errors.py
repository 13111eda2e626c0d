"""Exceptions that end a command, exit codes, and suggestions for misspelled names."""

import difflib
import enum
from collections.abc import Iterable, Sequence
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """Exit codes of all commands.

    Attributes:
      SUCCESS: The command is done.
      INTERNAL_ERROR: Unexpected exception, printed with its traceback.
      USER_ERROR: Invalid input. The same command fails again.
      DIVERGED: Training has failed: the loss or the gradient is not finite.
      STORAGE_UNAVAILABLE: A bucket or a reward service has not answered for minutes, or a disk fails. Everything saved
        before is intact: run the command again later. The value is EX_UNAVAILABLE of sysexits.h.
      DISK_FULL: A disk is full. Everything saved before is intact: free some space and run the command again.
      PREEMPTED: The machine was preempted and everything is saved, or some processes of a cluster did not join in
        time. Run the command again. The value is EX_TEMPFAIL of sysexits.h.
      STALLED: A process or a device of the run is stuck or lost. Run the command again.
      INTERRUPTED: The user pressed Ctrl-C.
      BROKEN_PIPE: The program that reads the command's output has ended.
    """

    SUCCESS = 0
    INTERNAL_ERROR = 1
    USER_ERROR = 2
    DIVERGED = 3
    STORAGE_UNAVAILABLE = 69
    DISK_FULL = 74
    PREEMPTED = 75
    STALLED = 76
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class JanusError(ValueError):
    """User error. The message is one sentence: what is wrong, where, and what is allowed.

    Commands print the message and exit with code 2. Library callers can catch it as a `ValueError`.
    """


class ContextExceeded(JanusError):
    """A conversation is too long for the model's context."""


class DataChanged(JanusError):
    """The data, or the settings that determine its batches, differ from those of a saved position.

    Attributes:
      difference: The part of the message that describes the difference.
    """

    def __init__(self, difference: str) -> None:
        super().__init__(
            f"{difference}; change it back, or start a new order of the data from this step on with "
            f"--config.data.restart=True."
        )
        self.difference = difference


class RunStopped(Exception):
    """A run has to stop, but not because of a user error. Commands print the message and exit with `exit_code`."""

    exit_code: ClassVar[ExitCode]


class Diverged(RunStopped):
    """Training has failed: the loss or the gradient is not finite."""

    exit_code = ExitCode.DIVERGED


class StorageFull(RunStopped):
    """A disk is full. Everything saved before is intact."""

    exit_code = ExitCode.DISK_FULL


class StorageUnavailable(RunStopped):
    """A bucket or disk fails. Everything saved before is intact, and the same command continues the run."""

    exit_code = ExitCode.STORAGE_UNAVAILABLE


class RewardUnavailable(RunStopped):
    """A reward service does not answer. Everything saved before is intact, and the same command continues the run."""

    exit_code = ExitCode.STORAGE_UNAVAILABLE


class Preempted(RunStopped):
    """The machine is preempted. Everything is saved, and the same command continues the run."""

    exit_code = ExitCode.PREEMPTED


class Stalled(RunStopped):
    """A process or a device of the run is stuck or lost. The same command continues from the newest checkpoint."""

    exit_code = ExitCode.STALLED


class Interrupted(RunStopped):
    """The user pressed Ctrl-C. Everything is saved, and the same command continues the run."""

    exit_code = ExitCode.INTERRUPTED


def similar_names(name: str, names: Iterable[str]) -> list[str]:
    """Returns the names that `name` abbreviates ("lr": learning_rate), then those with a similar spelling."""
    names = list(dict.fromkeys(names))
    initials = [one for one in names if "".join(word[:1] for word in one.split("_")) == name]
    return list(dict.fromkeys([*initials, *difflib.get_close_matches(name, names, n=3)]))


def did_you_mean(suggestions: Sequence[str]) -> str:
    """Returns the sentence " Did you mean A, B or C?" with at most three suggestions, or "" if there are none."""
    if not suggestions:
        return ""
    *first, last = suggestions[:3]
    return f" Did you mean {', '.join(first)}{' or ' if first else ''}{last}?"
