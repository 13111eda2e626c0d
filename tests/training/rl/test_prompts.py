"""Prompts of reinforcement learning: files, functions and the order of batches."""

import json

import numpy as np
import pytest

from janus_jax.errors import DataChanged, JanusError
from janus_jax.training.rl.prompts import PromptBatches, RewardPrompt, read_prompts


def test_text_files_have_a_prompt_per_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red boat\n\n two birds: a pair \n", encoding="utf-8")
    assert read_prompts(str(file), "prompts") == [RewardPrompt("a red boat"), RewardPrompt("two birds: a pair")]


def test_other_fields_of_objects_are_metadata(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a boat", "tag": "single", "include": [1]}) + "\n")
    assert read_prompts(str(file), "prompts") == [RewardPrompt("a boat", {"tag": "single", "include": [1]})]


def test_functions_return_objects():
    assert read_prompts("tests.training.rl.recipes:prompts", "prompts")[2] == RewardPrompt(
        "boat boat lake.", {"number": 2}
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', r"prompts\.jsonl, prompt 1, has .*field prompt"),
        ('{"prompt": "a"}\n{"prompt": 3}', "prompt 2, has"),
        ("[3", "prompt 1, is not valid JSON"),
        ("", "has no prompts"),
    ],
)
def test_unusable_files_are_refused(content, message, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(JanusError, match=message):
        read_prompts(str(tmp_path / "prompts.jsonl"), "config.prompts")


def test_missing_prompts_are_reported(tmp_path):
    with pytest.raises(JanusError, match=r"config\.prompts is empty"):
        read_prompts("", "config.prompts")
    with pytest.raises(JanusError, match="missing"):
        read_prompts(str(tmp_path / "missing.txt"), "config.prompts")


PROMPTS = [RewardPrompt(f"{number}") for number in range(10)]


def batches(count, prompts=PROMPTS, seed=0, position=None):
    data = PromptBatches(prompts, 4, seed)
    if position is not None:
        data.set_state(position)
    return [next(data) for _ in range(count)], data.get_state()


def test_each_epoch_has_every_prompt_once_in_a_new_order():
    found, _ = batches(5)
    indices = np.concatenate([batch.indices for batch in found])
    assert sorted(indices[:10]) == sorted(indices[10:]) == list(range(10))
    assert list(indices[:10]) != list(indices[10:])
    assert [batch.number for batch in found] == list(range(5))


def test_batches_continue_at_a_saved_position():
    whole, _ = batches(6)
    _, position = batches(2)
    rest, _ = batches(4, position=position)
    for one, other in zip(whole[2:], rest, strict=True):
        assert one.number == other.number
        np.testing.assert_array_equal(one.indices, other.indices)


def test_changed_prompts_are_reported():
    _, position = batches(1)
    with pytest.raises(DataChanged, match="prompts"):
        batches(1, PROMPTS[1:], position=position)


def test_a_batch_may_be_larger_than_the_number_of_prompts():
    data = PromptBatches(PROMPTS[:3], 8, 0)
    assert len(next(data).indices) == 8
    assert set(next(data).indices) == {0, 1, 2}
