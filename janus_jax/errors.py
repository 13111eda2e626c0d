"""What ends a program that is not at fault: a mistake that a person can mend, or a run that had to stop."""

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """How commands end: the one place that says so.

    Attributes:
      SUCCESS: all is well.
      INTERNAL_ERROR: a fault in the program, with its traceback.
      USER_ERROR: in what the user gave; the same call will fail again.
      DIVERGED: training came to nothing sensible: a loss that is not finite, too many bad records.
      DISK_FULL: a disk is full. Make room and call again: nothing that was saved before is lost.
      PREEMPTED: the machine was taken away, and all was saved; or the processes of a cluster did not all come
        (sysexits' EX_TEMPFAIL): call again.
      INTERRUPTED: by Ctrl-C.
      BROKEN_PIPE: the reader of the output went away.
    """

    SUCCESS = 0
    INTERNAL_ERROR = 1
    USER_ERROR = 2
    DIVERGED = 3
    DISK_FULL = 74
    PREEMPTED = 75
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class JanusError(ValueError):
    """A mistake in the user's input, told in one sentence: what is wrong, where, and what would be right.

    Commands print the sentence and end with exit code 2; a library caller catches it as a `ValueError`.
    """


class RunStopped(Exception):
    """A run that had to stop, told in one sentence; commands print it and end with `exit_code`."""

    exit_code: ClassVar[ExitCode]


class Diverged(RunStopped):
    """Training came to nothing sensible: a loss that is not finite, too many bad records."""

    exit_code = ExitCode.DIVERGED


class StorageFull(RunStopped):
    """A disk is full; what was saved before is as it was."""

    exit_code = ExitCode.DISK_FULL


class Preempted(RunStopped):
    """The machine is taken away; all was saved, and the same call goes on from there."""

    exit_code = ExitCode.PREEMPTED
