"""Which processes the others wait for; tests/training/test_faults.py runs several processes."""

import pytest

from janus_jax.training.peers import late_processes


@pytest.mark.parametrize(
    ("states", "late"),
    [
        ([(7, "barrier"), (7, "data"), (7, "barrier")], [1]),
        ([(8, "step"), (7, "step"), (8, "data")], [1]),
        ([(7, "step"), (7, "step"), (7, "step")], []),
        ([(7, "step"), (7, "step"), (7, "save")], [2]),
        ([(7, "barrier"), (7, "step"), (7, "barrier")], [1]),
        ([(1, "compile"), (1, "compile"), (0, "restore")], [2]),
    ],
)
def test_late_processes_are_those_that_the_others_wait_for(states, late):
    table = {index: {"step": step, "phase": phase} for index, (step, phase) in enumerate(states)}
    assert late_processes(table | {9: {"ended": True}}) == late
