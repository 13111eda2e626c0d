"""Flags, help, messages and exit codes of a small command, and of `janus-train`."""

import os
import signal
import subprocess
import sys

import pytest

import janus_jax
from tests.commands.conftest import environment, run

COMMAND = '''
"""Greets politely."""

import errno
import logging
import sys
import threading
import time

from absl import flags

from janus_jax.errors import Diverged, JanusError, Preempted, StorageFull
from janus_jax.commands import cli

NAME = flags.DEFINE_string("name", None, "who is greeted", required=True)
TIMES = flags.DEFINE_integer("times", 1, "how often", lower_bound=1)
LOUD = flags.DEFINE_bool("loud", False, "whether to shout")
cli.flag_group("Manner", LOUD)


def fill():
    raise OSError(errno.ENOSPC, "No space left on device", "disk/model")


def main(arguments):
    if NAME.value == "nobody":
        raise JanusError("--name nobody: there is no such person; name another.")
    for stop in (Diverged, Preempted, StorageFull):
        if NAME.value == stop.__name__:
            raise stop("the run had to stop.")
    if NAME.value == "full":
        thread = threading.Thread(target=fill)
        thread.start()
        thread.join()
        try:
            fill()
        except OSError as error:
            logging.getLogger("asyncio").exception("Task exception was never retrieved")
            raise RuntimeError("a save failed") from error
    if NAME.value == "broken":
        raise RuntimeError("a bug")
    if NAME.value == "forever":
        print("waiting", flush=True)
        time.sleep(60)
    for _ in range(TIMES.value):
        print("hello", NAME.value, *arguments)


if __name__ == "__main__":
    cli.run(main, positional=("PLACE",))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    (folder / "greet.py").write_text(COMMAND)
    return folder


def start(folder, *arguments):
    command = [sys.executable, "-m", "greet", *arguments]
    variables = environment(PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(folder, *arguments):
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_main_receives_positional_arguments(folder):
    assert finish(folder, "here", "--name", "Ann") == (0, "hello Ann here\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["here", "--name=Ann", "--times=-1"], ["--times", "-1"]),
        (["here", "--name=Ann", "--times=x"], ["--times=x: it must be a whole number"]),
        (["here", "--nane=Ann"], ["--nane is not a flag. Did you mean name? Flags: name, times, loud;"]),
        (["here"], ["--name", "required"]),
        (["--name=Ann"], ["PLACE"]),
        (["here", "there", "--name=Ann"], ["PLACE", "there"]),
        (["here", "--name=nobody"], ["no such person"]),
    ],
)
def test_user_errors_print_one_sentence_and_exit_with_2(folder, arguments, words):
    code, out, err = finish(folder, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("greet: ")
    assert all(word in err for word in words), err


@pytest.mark.parametrize(("name", "expected"), [("Diverged", 3), ("StorageFull", 74), ("Preempted", 75)])
def test_stopped_runs_print_one_sentence_and_exit_with_their_code(folder, name, expected):
    code, out, err = finish(folder, "here", "--name", name)
    assert (code, out, err) == (expected, "", "greet: the run had to stop.\n")


def test_full_disk_prints_one_sentence_without_tracebacks_of_threads_and_tasks(folder):
    code, _, err = finish(folder, "here", "--name=full")
    sentence = "greet: disk/model cannot be written, the disk is full; free some space and run the command again.\n"
    assert (code, err) == (74, sentence)


def test_output_to_a_full_disk_is_reported(folder):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "greet", "here", "--name=Ann"]
        variables = environment(PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))
        done = subprocess.run(command, env=variables, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (74, 1)
    assert done.stderr.startswith("greet: The disk of a file or of the output is full; free some space")


def test_unexpected_exceptions_print_a_traceback(folder):
    code, _, err = finish(folder, "here", "--name=broken")
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a bug" in err


def test_help_shows_the_docstring_and_the_flags_in_groups(folder):
    code, out, err = finish(folder, "--help")
    assert (code, err) == (0, "")
    assert "python -m greet PLACE" in out
    assert "Greets politely." in out
    flags = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert flags == ["--name", "--times", "--[no]loud"]
    assert out.index("Flags:") < out.index("--times") < out.index("Manner:") < out.index("--[no]loud")
    assert "who is greeted (required)" in out
    assert "(default: 1)" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "janus_pro_2b"], "no recipe 'janus_pro_2b'. Did you mean janus_pro_7b"),
        (["--config", "absent/mine.py"], "absent/mine.py is not a file"),
        (
            ["--config=janus_pro_7b", "--config.stages.stage_1.optimizer.lr=1"],
            "config.stages.stage_1.optimizer.lr does not exist. Did you mean learning_rate? Fields of "
            "config.stages.stage_1.optimizer: b1,",
        ),
        (["--config=janus_pro_7b", "--config.stages=1"], "--config.stages has fields; set one of them, as in --config"),
        (["--config.stage=1", "--config=janus_pro_7b"], "--config.stage must come after --config"),
        (["--config.stage=1"], "--config.stage changes a recipe, and --config is required"),
        (["--config=janus_pro_7b", "--config.stage=two"], "--config.stage=two: it must be a whole number"),
        (
            ["--config=janus_pro_7b", "--config.samples.prompts=(1,"],
            "prompts=(1,: it must be a tuple, such as ('a', 'b')",
        ),
    ],
)
def test_unknown_recipes_and_invalid_fields_are_user_errors(refuses, tmp_path, arguments, words):
    assert words in refuses("launch.train", *arguments, "--workdir=run", cwd=tmp_path)


def test_print_config_lists_the_fields_without_required_flags(tmp_path):
    done = run("launch.compile", "--config=janus_pro_7b", "--config.seed=5", "--print_config", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "config.seed = 5\n    Seed of parameters and data.\n" in done.stdout


def test_print_config_needs_a_recipe(refuses, tmp_path):
    assert "--config is required" in refuses("launch.train", "--print_config", cwd=tmp_path)


def test_help_of_a_command_shows_its_recipe_flag():
    out = run("launch.train", "--help").stdout
    assert "usage: janus-train" in out
    assert "--config RECIPE" in out


def test_version_is_printed_without_required_flags(folder):
    assert finish(folder, "--version") == (0, f"greet {janus_jax.__version__}\n", "")


def test_interrupt_exits_without_a_message(folder):
    # If the tests run in a shell's background, processes inherit that they ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(folder, "here", "--name=forever")
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")


def test_closed_output_exits_without_a_message(folder):
    process = start(folder, "here", "--name=Ann", "--times=1000000")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize(
    ("variable", "subfolder"), [("XDG_CACHE_HOME", "janus_jax/xla"), ("JAX_COMPILATION_CACHE_DIR", "")]
)
def test_compilation_cache_is_in_the_folder_of_the_environment(tmp_path, variable, subfolder):
    code = "import jax; from janus_jax.commands import cli; cli.enable_compilation_cache(); "
    code += "print(jax.config.jax_compilation_cache_dir)"
    variables = {name: value for name, value in environment().items() if name != "JAX_COMPILATION_CACHE_DIR"}
    variables[variable] = str(tmp_path)
    out = subprocess.check_output([sys.executable, "-c", code], env=variables, text=True)
    assert out.strip() == str(tmp_path / subfolder)
