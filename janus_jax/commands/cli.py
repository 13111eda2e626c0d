"""Command-line conventions: flag parsing, `--help`, `--version`, user errors and exit codes.

A command defines its flags with absl at the top of its module and has a function

    def run() -> None:
        cli.run(main, name="janus-convert", positional=("SRC", "DST"))

which is the entry point of its console script. After a `JanusError` or `RunStopped`, the command prints the
message to stderr and exits with its code (`janus_jax.errors.ExitCode`); after any other exception it prints the
traceback and exits with 1.
"""

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from absl import flags, logging

import janus_jax
from janus_jax.coordination import leave
from janus_jax.errors import ExitCode, JanusError, RunStopped, did_you_mean, similar_names
from janus_jax.storage import CHECK_DISK, failed_disk, hide_storage_traces, is_disk_full

_REQUIRED = "must have a value other than None."  # absl's message for a required flag without a value

_groups: dict[str, str] = {}  # flag name -> title of its group in --help

flags.disclaim_key_flags()  # --help lists the flags of `define_action` among those of the command.


class _Action(NamedTuple):
    function: Callable[[], None]
    needs: str


_actions: dict[str, _Action] = {}  # flag name -> function that runs in place of the command


def flag_group(title: str, *holders: "flags.FlagHolder[Any]") -> None:
    """Lists these flags under a separate title in `--help`."""
    _groups.update({holder.name: title for holder in holders})


def define_action(name: str, text: str, action: Callable[[], None], needs: str) -> None:
    """Defines a boolean flag that makes a command call a function and exit.

    Args:
      name: Name of the flag.
      text: Help of the flag.
      action: Function that is called after the flags are parsed.
      needs: Name of the flag that the function needs. No other flags are required.
    """
    flags.DEFINE_boolean(name, False, text)
    _actions[name] = _Action(action, needs)


def define_value_action(name: str, text: str, action: Callable[[str], None]) -> None:
    """Defines a flag with a value that makes a command call a function of the value and exit. No flags are required."""
    holder = flags.DEFINE_string(name, None, text)
    _actions[name] = _Action(lambda: action(holder.value or ""), needs=name)


def run(
    main: Callable[[Sequence[str]], None],
    *,
    name: str | None = None,
    positional: Sequence[str] = (),
    actions: Mapping[str, Callable[[], None]] | None = None,
) -> None:
    """Parses `sys.argv`, calls `main` with the positional arguments (without the program's name), and exits.

    Args:
      main: The command. `--help` shows the docstring and the flags of its module.
      name: Name of the command in messages; default: the name of the module.
      positional: Names of the positional arguments, all required, such as `("SRC", "DST")`.
      actions: Functions that run in place of `main` if their flag is given, such as `{"--list": list_benchmarks}`. The
        other flags are then not parsed.
    """
    logging.use_absl_handler()
    hide_storage_traces()
    # Makes the user's modules importable (--source MODULE:NAME). At the end, so that they hide no installed package.
    sys.path.append(os.getcwd())
    module = sys.modules[main.__module__]
    name = name or (module.__spec__.name if module.__spec__ else Path(sys.argv[0]).name)
    actions = {
        **dict.fromkeys(("-h", "-help", "--help"), lambda: print(_help(module, name, positional))),
        "--version": lambda: print(name, janus_jax.__version__),
        **(actions or {}),
    }
    try:
        if chosen := [actions[argument] for argument in sys.argv[1:] if argument in actions]:
            chosen[0]()
        else:
            _parse_and_run(main, module, positional)
        # Here, because an error of the interpreter's own flush at shutdown cannot be caught.
        sys.stdout.flush()
    except JanusError as error:
        _exit(ExitCode.DISK_FULL if is_disk_full(error) else ExitCode.USER_ERROR, f"{name}: {error}")
    except RunStopped as stopped:
        _exit(stopped.exit_code, f"{name}: {stopped}")
    except KeyboardInterrupt:
        _exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        _exit(ExitCode.BROKEN_PIPE)
    except Exception as error:
        if is_disk_full(error):
            _exit(ExitCode.DISK_FULL, f"{name}: {_full_disk(error)}")
        if reason := failed_disk(error):
            _exit(ExitCode.STORAGE_UNAVAILABLE, f"{name}: A file cannot be read or written ({reason}); {CHECK_DISK}")
        raise
    _exit(ExitCode.SUCCESS)


def _exit(code: ExitCode, message: str = "") -> NoReturn:
    with contextlib.suppress(OSError):
        if message:
            print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes it again at shutdown: to the null device, which raises no error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == ExitCode.STORAGE_UNAVAILABLE:
        leave(code)  # Threads that still wait for the storage would delay the exit by minutes.
    sys.exit(code)


def _full_disk(error: BaseException | None) -> str:
    while error is not None:
        if file := getattr(error, "filename", None):
            return f"{file} cannot be written, the disk is full; free some space and run the command again."
        error = error.__cause__ or error.__context__
    return "The disk of a file or of the output is full; free some space and run the command again."


def use_cpu() -> None:
    """Makes jax use the CPU only: accelerators are not needed, and initializing them could fail or take long."""
    import jax  # Imported here so that commands without arrays start quickly.

    jax.config.update("jax_platforms", "cpu")


def enable_compilation_cache(folder: Path | None = None) -> None:
    """Makes JAX store programs that took at least one second to compile, so that later runs load them.

    The cache is `$JAX_COMPILATION_CACHE_DIR`, if it is set. `JAX_ENABLE_COMPILATION_CACHE=0` disables it. If the folder
    cannot be made, a warning is logged.

    Args:
      folder: The cache; None for `janus_jax/xla` in `$XDG_CACHE_HOME` (`~/.cache`).
    """
    import jax  # Imported here so that commands without arrays start quickly.

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "janus_jax" / "xla"
            folder.mkdir(parents=True, exist_ok=True)
        # RuntimeError: the user has no home directory, as in some containers.
        except (OSError, RuntimeError) as error:
            logging.warning("Compiled programs are not kept for the next run: %s", error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))


def _parse_and_run(main: Callable[[Sequence[str]], None], module: ModuleType, positional: Sequence[str]) -> None:
    for name, action in _actions.items():
        if any(argument.partition("=")[0] == f"--{name}" for argument in sys.argv):
            for other in flags.FLAGS:
                if other != action.needs:
                    flags.FLAGS[other].validators.clear()
            _parse(sys.argv, (), module)
            action.function()
            return
    main(_parse(sys.argv, positional, module))


def _parse(argv: Sequence[str], positional: Sequence[str], module: ModuleType) -> list[str]:
    try:
        arguments = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise JanusError(_unknown_flag(error.flagname, module)) from None
    except flags.Error as error:
        # absl wraps errors of a flag's parser. The message of a JanusError is complete without absl's.
        if isinstance(error.__context__, JanusError):
            raise error.__context__ from None
        raise JanusError(_sentence(error)) from error
    # ml_collections raises these for a --config.FIELD=VALUE with a value of the wrong type.
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        overrides = [argument for argument in argv if argument.startswith("--config.")]
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise JanusError(f"One of {', '.join(overrides)} does not fit the config ({reason}).") from error
    if len(arguments) != len(positional):
        expected = " ".join(positional) or "only flags"
        raise JanusError(f"The command takes {expected}, got {' '.join(arguments) or 'no arguments'}; see --help.")
    return arguments


def _unknown_flag(name: str, module: ModuleType) -> str:
    names = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)]
    if name.startswith("config.") and "config" in names:
        return f"--{name} changes a recipe, and --config is required."
    return f"--{name} is not a flag.{did_you_mean(similar_names(name, names))} Flags: {', '.join(names)}; see --help."


_REWORDED = {
    r"(.*) must have a value other than None\..*": r"\1 is required",  # absl
    r"(.*): invalid literal for int\(\).*": r"\1: it must be a whole number",
    r"(.*): could not convert string to float.*": r"\1: it must be a number",
    r"(.*): \('Non-boolean argument to boolean flag', .*": r"\1: it must be True or False",
    # ml_collections
    r"(.*): Error while parsing string: .* as tuple\..*": r"\1: it must be a tuple, such as ('a', 'b')",
    r"Found (--[\w.]+).* before a value for (--\w+) was specified": r"\1 must come after \2; change their order",
    r"flag (--[\w.]+)=.* as a ConfigDict.*": r"\1 has fields; set one of them, as in \1.FIELD=VALUE",
}
"""Our words, by a pattern of the messages of libraries."""


def _sentence(error: flags.Error) -> str:
    text = " ".join(str(error).split())
    for pattern, words in _REWORDED.items():
        if match := re.fullmatch(pattern, text):
            return match.expand(words)
    return text


def _help(module: ModuleType, name: str, positional: Sequence[str]) -> str:
    program = f"python -m {name}" if name == getattr(module.__spec__, "name", None) else name
    usage = " ".join(["usage:", program, *positional, "[flags]"])
    groups: dict[str, list[str]] = {}
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        groups.setdefault(_groups.get(flag.name, "Flags"), []).extend(_flag_lines(flag))
    sections = ["\n".join([f"{title}:", *lines]) for title, lines in groups.items()]
    return "\n\n".join([usage, (module.__doc__ or "").strip(), *sections])


def _flag_lines(flag: "flags.Flag[Any]") -> Iterator[str]:
    kind = flag.flag_type().removeprefix("multi ").split()[0].upper()
    yield f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name} {kind}"
    if any(validator.message.endswith(_REQUIRED) for validator in flag.validators):
        note = " (required)"
    else:
        note = "" if flag.default in (None, []) else f" (default: {flag.default})"
    text = flag.help.partition(";\n")[0]  # absl appends a line to the help of repeatable flags.
    yield textwrap.fill(f"{text}{note}", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
