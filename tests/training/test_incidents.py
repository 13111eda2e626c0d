"""Steps with a non-finite gradient or a loss spike are recorded and can be repeated."""

import os
from dataclasses import replace

import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.sharding import make_mesh
from janus_jax.training.checkpointing import RetentionPolicy
from janus_jax.training.incidents import IncidentOptions, Incidents, incident_steps
from janus_jax.training.replay import read_incident, replay
from janus_jax.training.trainer import train
from tests.training import toy_run


def found(tmp_path, losses, **options):
    """Steps that are incidents among these losses."""
    incidents = Incidents(tmp_path, IncidentOptions(window=8, **options), {})
    for step, loss in enumerate(losses, 1):
        incidents.check(step, {"loss": loss, "finite": float(np.isfinite(loss))}, loss, np.ones(3))
    return incident_steps(tmp_path)


CALM = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9]


def test_spikes_and_non_finite_losses_are_incidents(tmp_path):
    assert found(tmp_path, [*CALM, 5.0, 1.0, float("nan"), 1.0, 0.1]) == [7, 9]


def test_first_losses_and_small_changes_are_no_incidents(tmp_path):
    assert found(tmp_path, [5.0, 1.0, 1.1, *CALM, 1.3, 0.5]) == []


def test_a_limited_number_of_incidents_is_recorded(tmp_path):
    assert found(tmp_path, [float("inf")] * 5, keep=2) == [1, 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on four devices with an incident after its first checkpoint, which only the incident keeps."""
    folder = tmp_path_factory.mktemp("runs") / "stage_1"
    options = IncidentOptions(z_score=1e-6, window=4, keep=1)
    task = toy_run.task(make_mesh(2, 2, 2), incidents=options, keep=RetentionPolicy(last=2), last_step=12)
    train(task, folder)
    return task, folder


@pytest.mark.slow
def test_recorded_step_is_repeated_bit_for_bit(run, capsys):
    task, folder = run
    (step,) = incident_steps(folder)
    assert step > 2
    incident = read_incident(folder / "incidents" / f"step_{step}")
    assert incident.checkpoint() in (step - 1, step - 2)
    assert sorted(map(int, os.listdir(folder / "checkpoints"))) == [incident.checkpoint(), 10, 12]
    assert replay(task, incident)
    shown = capsys.readouterr().out
    assert "the batch is that of the incident" in shown
    assert "differs" not in shown


def test_replay_with_other_data_or_values_reports_the_difference(run, capsys):
    task, folder = run
    (step,) = incident_steps(folder)
    incident = read_incident(folder / "incidents" / f"step_{step}")
    assert not replay(task, replace(incident, metrics=incident.metrics | {"loss": 1.0}))
    assert "recorded 1.0, differs" in capsys.readouterr().out


def test_folder_without_incident_is_an_error(tmp_path):
    with pytest.raises(JanusError, match=r"has no readable incident\.json"):
        read_incident(tmp_path)
