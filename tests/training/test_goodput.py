"""Every second of a run is accounted for, across its restarts."""

import itertools
import json
import time

import pytest

from janus_jax.errors import JanusError
from janus_jax.training.goodput import Start, read_starts, report, time_spent
from janus_jax.training.trainer import train
from tests.training import toy_run

# Steps 1 to 8 in 80 s of steps, saved after 4 and 8; then steps 5 to 10 again, because 8 was damaged.
FIRST = Start(1000, 0, 1100, 8, {"start": 5, "compile": 10, "step": 80, "save": 5}, {"4": 40, "8": 80}, 16)
SECOND = Start(1130, 4, 1190, 10, {"start": 5, "restore": 5, "step": 50}, {}, 12, is_warm=True)
THIRD = Start(1200, 10, 1220, 12, {"start": 5, "step": 15}, {"12": 15}, 9)


def test_parts_of_the_time_sum_to_the_duration():
    spent = time_spent([FIRST, SECOND])
    assert spent["lost"] == 40
    assert spent["step"] == 40 + 50
    assert spent["down"] == 30
    assert sum(spent.values()) == 1190 - 1000


def test_all_later_starts_decide_which_steps_are_lost():
    # The third start resumes before everything that the second one has done.
    spent = time_spent([FIRST, SECOND, Start(1200, 4, 1220, 6, {"step": 20})])
    assert (spent["lost"], spent["step"]) == (40 + 50, 40 + 20)
    # Starts that end before they have restored a state lose no steps.
    assert time_spent([FIRST, Start(1105, ended=1110, seconds={"start": 5}), SECOND, THIRD])["lost"] == 40


def test_run_and_its_restart_are_recorded_to_the_second(tmp_path):
    def sleep(number):
        time.sleep(0.3 if number == 3 else 0)

    begin = time.time()
    train(toy_run.task(numbers=lambda: toy_run.Numbers(sleep), last_step=4), tmp_path / "stage_1")
    train(toy_run.task(last_step=6), tmp_path / "stage_1")
    elapsed = time.time() - begin
    first, second = read_starts(tmp_path / "stage_1")
    assert (first.first_step, first.step, second.first_step, second.step) == (0, 4, 4, 6)
    assert 0.3 <= first.seconds["data"] < first.to_first_step + 0.6
    assert sum(time_spent([first, second]).values()) == pytest.approx(elapsed, abs=0.5)
    lines = [json.loads(line) for line in (tmp_path / "stage_1" / "metrics.jsonl").read_text().splitlines()]
    parts = {name: value for name, value in lines[-1].items() if name.startswith("goodput")}
    assert parts["goodput"] > 0
    assert sum(parts.values()) == pytest.approx(1)
    text = report(tmp_path)
    assert "in 2 starts" in text
    assert [line.split()[3:6] for line in text.splitlines()[-2:]] == [["0", "to", "4"], ["4", "to", "6"]]


def test_report_of_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(JanusError, match="has no goodput folder"):
        report(tmp_path)


def test_unreadable_record_is_left_out(tmp_path):
    folder = tmp_path / "goodput"
    folder.mkdir()
    for number, text in zip(itertools.count(1), ["{", '{"started": 1}', '{"other": 1}']):
        (folder / f"{number:04d}.json").write_text(text)
    assert [start.started for start in read_starts(tmp_path)] == [1]
