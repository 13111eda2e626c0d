"""Replicas of the state that disagree end the run with the name of the device."""

import jax
import numpy as np
import pytest

from janus_jax.errors import Stalled
from janus_jax.sharding import make_mesh
from janus_jax.training.callbacks.replicas import ReplicaCheck
from janus_jax.training.state import abstract_state
from janus_jax.training.trainer import train
from tests.training import toy_run


def corrupt(array, device):
    """The array, with a flipped bit in the copy of one device."""
    parts = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device == device:
            data.reshape(-1).view(np.uint32)[0] ^= 1
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


@pytest.mark.parametrize(("sizes", "names"), [((4, 1, 1), [6]), ((2, 2, 1), [4, 6]), ((1, 1, 4), None)])
def test_device_with_other_values_ends_the_run_before_they_are_saved(sizes, names, tmp_path):
    mesh = make_mesh(*sizes, devices=[jax.devices()[index] for index in (0, 4, 2, 6)])
    task = toy_run.task(mesh)

    def step(state, ids):
        state, metrics = task.step(state, ids)
        if int(state.step) == 6:  # This step is saved. A further step would spread the wrong value.
            layers = state.params["layers"]
            weight = corrupt(layers["fc"]["weight"], jax.devices()[6])
            state = state.replace(params={"layers": layers | {"fc": layers["fc"] | {"weight": weight}}})
        return state, metrics

    callback = ReplicaCheck(task.abstract_state, mesh, 100)
    disturbed = toy_run.task(mesh, step=step, make_callbacks=lambda data: [callback])
    if names is None:
        train(disturbed, tmp_path)
        return
    with pytest.raises(Stalled) as error:
        train(disturbed, tmp_path)
    message = str(error.value)
    assert message.startswith("At step 6 the parameters on ")
    assert [index for index in range(8) if f"{jax.devices()[index]} of process 0" in message] == names
    result = train(toy_run.task(mesh, make_callbacks=lambda data: [callback]), tmp_path)
    assert int(result.state.step) == toy_run.STEPS
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 6, 8]


def test_one_device_and_disabled_checks_do_nothing():
    callback = ReplicaCheck(abstract_state(toy_run.toy.make, None, 0), None, 1)
    callback.before_save(None)
