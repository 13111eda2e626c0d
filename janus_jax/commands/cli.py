"""What every command shares: its flags, its help, and how it ends.

A command defines its flags with absl at the top of its module and ends with

    if __name__ == "__main__":
        cli.run(main, positional=("SRC", "DST"))

Exit codes (`janus_jax.errors.ExitCode` has them all): 0 done, 1 a fault in the program (with its traceback). All
others come with one sentence on stderr: 2 a mistake in what the user gave; 3 training diverged; 74 a disk is full;
75 the machine was taken away and all was saved, so that the same call goes on from there, or the other processes of a
cluster did not come. Without a word: 130 interrupted, 141 the reader of the output went away.
"""

import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags, logging

from janus_jax.cluster_env import find_place
from janus_jax.distributed import Cluster, JaxCluster
from janus_jax.errors import ExitCode, JanusError, Preempted, RunStopped

# Thousands of machines do not start, fetch an image or finish a save in the same minute.
_JOINING_SECONDS = 1800
# A process that has said nothing for so long is dead: longer than a host may stall, in garbage collection or on a disk.
_SILENT_SECONDS = 300

_ABSENT = "must have a value other than None."  # absl's words for a required flag that is not given.


def run(main: Callable[[Sequence[str]], None], *, positional: Sequence[str] = ()) -> None:
    """Parses `sys.argv`, calls `main` with the positional arguments (without the program's name), and exits.

    Args:
      main: the command; its module's docstring and flags are what `--help` shows.
      positional: the names of the positional arguments, all of them required, e.g. `("SRC", "DST")`.
    """
    logging.use_absl_handler()
    module = sys.modules[main.__module__]
    try:
        if {"-h", "-help", "--help"}.isdisjoint(sys.argv[1:]):
            main(_parse(sys.argv, positional))
        else:
            print(_help(module, positional))
        # Here and not at shutdown, where a vanished reader could no longer be answered.
        sys.stdout.flush()
    except JanusError as error:
        print(f"{_name(module)}: {error}", file=sys.stderr)
        sys.exit(ExitCode.USER_ERROR)
    except RunStopped as stopped:
        print(f"{_name(module)}: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The interpreter flushes stdout once more at shutdown: let it have somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.BROKEN_PIPE)
    sys.exit(ExitCode.SUCCESS)


def enable_compilation_cache() -> None:
    """Lets JAX keep what it compiles (if it took a second or more) from one run to the next.

    The place is `$JAX_COMPILATION_CACHE_DIR` if set, else `janus_jax/xla` in `$XDG_CACHE_HOME` (`~/.cache`).
    `JAX_ENABLE_COMPILATION_CACHE=0` turns it off. A place that cannot be made costs a warning, no more.
    """
    import jax  # Here, so that a command without arrays starts at once.

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus_jax" / "xla"
            place.mkdir(parents=True, exist_ok=True)
        # A user without a home, as containers have them, is a RuntimeError.
        except (OSError, RuntimeError) as error:
            logging.warning("What is compiled is not kept for the next run: %s", error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(place))


def join_cluster() -> Cluster:
    """Joins the processes of a cluster, before jax looks for devices. `launch.joining` says how they are found.

    Raises:
      JanusError: there is no cluster to be found, or the environment says half of where it is.
      Preempted: there is one, and its processes did not all come.
    """
    import jax

    place = find_place(os.environ)
    found: dict[str, Any] = {}
    if place is not None:
        found = {
            "coordinator_address": place.coordinator,
            "num_processes": place.count,
            "process_id": place.index,
            "local_device_ids": place.device,
            # Under SLURM jax would take one device a task, whatever is asked for.
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=_JOINING_SECONDS,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
            shutdown_timeout_seconds=_JOINING_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())
        raise Preempted(
            f"The processes of the cluster did not all join ({reason:.200}); give all of them the same command again."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise JanusError(
            f"--distributed finds no cluster ({str(error)[:200]}); start it under SLURM, on a TPU pod, or with "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set."
        ) from error
    return JaxCluster()


def _parse(argv: Sequence[str], positional: Sequence[str]) -> list[str]:
    try:
        arguments = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        raise JanusError(_sentence(error)) from error
    # What ml_collections makes of a --config.FIELD that there is not, or of a value of another kind.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        given = [argument for argument in argv if argument.startswith("--config.")]
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise JanusError(f"a flag does not fit the config ({reason}); given were {', '.join(given)}") from error
    if len(arguments) != len(positional):
        wanted = " ".join(positional) or "no arguments besides flags"
        raise JanusError(f"takes {wanted}, got {' '.join(arguments) or 'none'} (--help shows how it is called)")
    return arguments


def _sentence(error: flags.Error) -> str:
    text = " ".join(str(error).split())
    if text.endswith(_ABSENT):
        return f"{text.split('=', 1)[0]} is required"
    return text


def _name(module: ModuleType) -> str:
    name = module.__spec__.name if module.__spec__ else Path(sys.argv[0]).name
    package, _, command = name.rpartition(".")
    return f"launch.{command}" if package == "janus_jax.commands" else name


def _help(module: ModuleType, positional: Sequence[str]) -> str:
    usage = " ".join(["usage: python -m", _name(module), *positional, "[flags]"])
    return "\n".join([usage, "", (module.__doc__ or "").strip(), "", *_flag_lines(module)])


def _flag_lines(module: ModuleType) -> Iterator[str]:
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        kind = flag.flag_type().removeprefix("multi ").split()[0].upper()
        form = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name} {kind}"
        if any(validator.message.endswith(_ABSENT) for validator in flag.validators):
            note = " (required)"
        else:
            note = "" if flag.default in (None, []) else f" (default: {flag.default})"
        text = flag.help.partition(";\n")[0]  # absl adds a line to what may be given several times.
        yield f"  {form}"
        yield textwrap.fill(f"{text}{note}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
