"""Rewards are found by name, get their options, and their values are checked and summed."""

import sys
import types
from dataclasses import dataclass

import numpy as np
import pytest

from janus_jax.errors import ExitCode, JanusError, RunStopped
from janus_jax.rewards import REWARDS, RewardConfig, WeightedRewards, make_reward, register_reward

PROMPTS = ("a red circle", "a blue square")
IMAGES = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (51, 255)])
METADATA = ({"bonus": 1.0}, {"bonus": 2.0})


def brightness(prompts, images, metadata, scale=1.0):
    return scale * images.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    """The importable module `scores`, in which the tests define rewards."""
    module = types.ModuleType("scores")
    module.brightness = brightness
    monkeypatch.setitem(sys.modules, "scores", module)
    for name in list(REWARDS):
        monkeypatch.setitem(REWARDS, name, REWARDS[name])
    yield module
    REWARDS.pop("mine", None)


def test_a_function_is_a_reward():
    values = make_reward("scores:brightness")(PROMPTS, IMAGES, METADATA)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [0.2, 1.0], rtol=1e-6)


def test_a_function_takes_options_after_its_three_arguments():
    values = make_reward("scores:brightness", ["scale=0.5"])(PROMPTS, IMAGES, METADATA)
    np.testing.assert_allclose(values, [0.1, 0.5], rtol=1e-6)


def test_a_function_reads_the_metadata(scores):
    scores.bonus = lambda prompts, images, metadata: [one["bonus"] for one in metadata]
    assert make_reward("scores:bonus")(PROMPTS, IMAGES, METADATA).tolist() == [1, 2]


def register_mine():
    @register_reward("mine")
    @dataclass(frozen=True)
    class Mine:
        urls: tuple[str, ...]
        count: int = 1
        strict: bool = False
        limit: float | None = None

        def __call__(self, prompts, images, metadata):
            return np.full(len(prompts), self.count + self.strict + (self.limit or 0) + 10 * len(self.urls))


def test_the_options_of_a_class_are_its_fields():
    register_mine()
    reward = make_reward("mine", ["urls=a, b", "count=3", "strict=true", "limit=0.5"])
    assert reward(PROMPTS, IMAGES, METADATA).tolist() == [24.5, 24.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["urls=a", "cuont=3"], r"judge mine has no option 'cuont'. Did you mean count\? Options: urls, count"),
        (["urls=a", "count=3.5"], "judge mine: the option count is '3.5'; it must be a whole number"),
        (["urls=a", "strict=maybe"], "the option strict is 'maybe'; it must be true or false"),
        (["urls"], "the option 'urls' has no value; give NAME=VALUE"),
        ([], "judge mine needs the option urls"),
    ],
)
def test_wrong_options_are_named(options, message):
    register_mine()
    with pytest.raises(JanusError, match=message):
        make_reward("mine", options, "judge")


def test_a_name_is_registered_once():
    register_mine()
    with pytest.raises(JanusError, match="A reward named mine is registered already"):
        register_mine()


def test_unknown_names_are_refused():
    with pytest.raises(JanusError, match="judge brightnes is unknown; use"):
        make_reward("brightnes", field="judge")
    with pytest.raises(JanusError, match="judge scores:sharpness is unknown"):
        make_reward("scores:sharpness", field="judge")
    with pytest.raises(JanusError, match="No module named 'scoers'"):
        make_reward("scoers:brightness", field="judge")


def test_the_model_is_passed_to_a_reward_that_asks_it(scores):
    def ask(prompts, images, metadata, *, model):
        return [model()] * len(prompts)

    scores.ask = ask
    assert make_reward("scores:ask", model=lambda: 7)(PROMPTS, IMAGES, METADATA).tolist() == [7, 7]
    with pytest.raises(JanusError, match="scores:ask asks the model itself, and there is none"):
        make_reward("scores:ask")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"The reward scores:values returned values of shape \[1\] for 2 images"),
        (1.0, r"returned values of shape \[\]"),
        ([1.0, float("nan")], "is nan for image 1, whose prompt is 'a blue square'; return finite numbers"),
        ([float("-inf"), 0.0], "is -inf for image 0"),
        (["good", "bad"], r"returned \['good', 'bad'\]; return one number"),
        (None, "return finite numbers|of shape"),
    ],
)
def test_wrong_values_are_refused(scores, values, message):
    scores.values = lambda prompts, images, metadata: values
    with pytest.raises(JanusError, match=message):
        make_reward("scores:values")(PROMPTS, IMAGES, METADATA)


def test_an_exception_is_reported_with_its_place(scores):
    def broken(prompts, images, metadata):
        return metadata[0]["missing"]

    scores.broken = broken
    with pytest.raises(JanusError, match=r"The reward scores:broken failed at .*test_rewards.py:\d+ \(KeyError: 'mi"):
        make_reward("scores:broken")(PROMPTS, IMAGES, METADATA)


def test_an_orderly_stop_is_not_a_user_error(scores):
    class Gone(RunStopped):
        exit_code = ExitCode.STALLED

    def stop(prompts, images, metadata):
        raise Gone

    scores.stop = stop
    with pytest.raises(Gone):
        make_reward("scores:stop")(PROMPTS, IMAGES, METADATA)


def test_rewards_are_weighted_and_summed():
    rewards = WeightedRewards(
        [
            RewardConfig("scores:brightness", weight=2.0),
            RewardConfig("scores:brightness", weight=-1.0, options=("scale=0.5",), label="dim"),
        ]
    )
    total, by_source = rewards(PROMPTS, IMAGES, METADATA)
    np.testing.assert_allclose(total, [0.3, 1.5], rtol=1e-6)
    assert list(by_source) == ["brightness", "dim"]
    np.testing.assert_allclose(by_source["dim"], [0.1, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([], "config.rewards is empty"),
        ([RewardConfig("scores:brightness")] * 2, "two rewards with the curve brightness; give one of them a label"),
        ([RewardConfig("scores:brightness", weight=float("nan"))], "the weight of scores:brightness is nan"),
    ],
)
def test_wrong_sums_are_refused(configs, message):
    with pytest.raises(JanusError, match=message):
        WeightedRewards(configs, "config.rewards")
