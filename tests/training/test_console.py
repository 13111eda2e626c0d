"""Console of a run on terminals and in log files."""

import io

import jax
import pytest

from janus_jax.training import console as module
from janus_jax.training.console import Console, changed_fields, describe_state
from tests.training import stages

VALUES = {"loss": 2.345678, "tokens/s": 12345.6, "understanding": 3.2, "generation": 4.1, "mfu": 0.4, "samples/s": 3}


class Terminal(io.StringIO):
    """A fake terminal with the given number of columns."""

    encoding = "utf-8"

    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def isatty(self):
        return True

    @property
    def lines(self):
        """The text that each line of the terminal finally shows."""
        return [line.split("\r")[-1].rstrip() for line in self.getvalue().split("\n")]


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def terminal(columns, monkeypatch):
    stream = Terminal(columns)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda stream: (stream.columns, 24))
    return stream


def test_facts_are_aligned():
    stream = io.StringIO()
    Console(10, stream=stream).facts({"parameters": "2 M", "mesh": "data 1"})
    assert stream.getvalue() == "  parameters  2 M\n  mesh        data 1\n"


@pytest.mark.parametrize(("columns", "last"), [(60, "loss 2.346"), (80, "tokens/s 12.3k"), (120, "mfu 0.4")])
def test_remaining_time_is_visible_at_any_width(columns, last, monkeypatch):
    stream = terminal(columns, monkeypatch)
    with Console(20000, stream=stream) as console:
        with console.stepping(1):
            pass
        monkeypatch.setattr(console._bar, "_time", lambda: console._bar.start_t + 1000.0)
        console.progress(10001, VALUES)
    line = [line for line in stream.lines if line][-1]
    assert line.startswith(" 50% |█████     | 10,001/20,000     16:39 left  loss 2.346"), line
    assert line.endswith(last)
    assert len(line) < columns


def test_messages_are_above_the_bar(monkeypatch):
    stream = terminal(80, monkeypatch)
    with Console(2, stream=stream) as console:
        with console.stepping(1):
            pass
        console.progress(1, {})
        console.message("saved")
    assert stream.lines[-3] == "saved"
    assert "1/2" in stream.lines[-2]


def test_log_file_has_lines_without_carriage_returns(clock):
    stream = io.StringIO()
    with Console(5010, stream=stream) as console:
        with console.stepping(1000):
            clock[0] += 34
        console.progress(1000, {"loss": 1.0})
        clock[0] += 10
        console.progress(1010, {"loss": 1.0})
        clock[0] += 20
        console.progress(1030, {"loss": 1.0})
        clock[0] += 10
        console.progress(5010, {"loss": 1.0})
    assert stream.getvalue().splitlines() == [
        "compiling the training step ... 34.0 s",
        "step 1,000/5,010  loss 1",
        "step 1,030/5,010  1:06:20 left  loss 1",
        "step 5,010/5,010  loss 1",
    ]
    assert "\r" not in stream.getvalue()


def test_message_ends_a_line_that_waits_for_its_time(clock):
    stream = io.StringIO()
    console = Console(1, stream=stream)
    with console.timed("compiling"):
        console.message("a message")
    assert stream.getvalue() == "compiling ... \na message\ncompiling took 0.0 s\n"


def test_failed_action_ends_its_line():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), Console(1, stream=stream).timed("compiling"):
        raise ValueError("no")
    assert stream.getvalue() == "compiling ... \n"


def test_only_the_first_process_prints(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    stream = io.StringIO()
    with Console(10, stream=stream) as console:
        console.facts({"mesh": "one device"})
        with console.stepping(10):
            console.message("hello")
        console.progress(10, {"loss": 1.0})
    assert stream.getvalue() == ""


def test_facts_of_a_state():
    facts = describe_state(stages.abstract(), None)
    state = stages.abstract()
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.params, state.frozen)]
    assert facts["parameters"] == f"{sum(sizes):,}, of which {sizes[0]:,} are trained ({sizes[0] / sum(sizes):.2%})"
    assert facts["devices"] == "1 x cpu"


def test_changed_fields_are_named_with_both_values():
    saved = {"seed": 0, "stages": {"stage_1": {"steps": 4, "trained": ["a/*"]}}, "old": "x", "same": [1]}
    now = {"seed": 0, "stages": {"stage_1": {"steps": 8, "trained": ["a/*", "b/*"]}}, "same": [1], "new": None}
    assert changed_fields(saved, now) == [
        "config.stages.stage_1.steps was 4 and is 8",
        "config.stages.stage_1.trained was ['a/*'] and is ['a/*', 'b/*']",
        "config.new was not set and is None",
        "config.old was 'x' and is not set",
    ]
