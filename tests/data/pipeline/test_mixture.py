import itertools
import random
import re
from fractions import Fraction

import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component, ComponentShard, open_records, permute
from janus_jax.data.pipeline.mixture import MixtureSchedule, Phase, check_phases
from janus_jax.errors import JanusError
from tests.data.prepared import generation, text, understanding, write

RECIPES = [(1, 0, 1), (2, 3, 5), (7, 3, 10), (1, 0, 3), (5, 1, 4), (14, 6, 80), (21, 9, 70)]


def schedule(*weights, until=()):
    names = [str(number) for number in range(len(weights[0]))]
    phases = [
        Phase(end, dict(zip(names, share, strict=True)))
        for share, end in itertools.zip_longest(weights, until, fillvalue=None)
    ]
    return MixtureSchedule(phases, names)


def largest_error(mixture):
    """Largest difference of a component's count from its exact expectation."""
    expected = [Fraction(0)] * len(mixture.names)
    for count, phase in zip(mixture.phase_counts, mixture.phases, strict=True):
        weights = [Fraction(str(phase.weights[name])) for name in mixture.names]
        expected = [e + count * weight / sum(weights) for e, weight in zip(expected, weights, strict=True)]
    return max(abs(e - count) for e, count in zip(expected, mixture.component_counts, strict=True))


@pytest.mark.parametrize("weights", [*RECIPES, (0.1, 0.2, 0.3, 0.15, 0.25), (1, 1, 1, 1, 1000), (1,)])
def test_every_prefix_of_10000_examples_matches_the_ratio_to_within_one(weights):
    mixture = schedule(weights)
    for n in range(10_000):
        mixture.next_component(0)
        if n < 1000 or n % 100 == 99:
            assert largest_error(mixture) < 1
    assert mixture.component_counts == [pytest.approx(10_000 * weight / sum(weights), abs=1) for weight in weights]


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(RECIPES, 2)))
def test_a_change_of_weights_keeps_the_ratio_to_within_one_example(before, after):
    change = random.Random(str((before, after))).randrange(1, 60)
    mixture = schedule(before, after, until=[5])
    for n in range(400):
        mixture.next_component(0 if n < change else 1)
        assert largest_error(mixture) < 1


def test_a_component_without_weight_gives_no_examples():
    mixture = schedule((1, 0, 1), (0, 0, 1), until=[10])
    assert {mixture.next_component(0) for _ in range(100)} == {0, 2}
    assert {mixture.next_component(1) for _ in range(100)} == {2}


def test_a_phase_ends_before_its_step():
    mixture = schedule((1, 1), (1, 2), (1, 3), until=[100, 250])
    assert [mixture.phase(step) for step in (0, 99, 100, 249, 250, 10**9)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], "must end with a phase"),
        ([Phase(10, {"a": 1})], "must end with a phase"),
        ([Phase(None, {"a": 1}), Phase(None, {"a": 1})], "must end with a phase"),
        ([Phase(10, {"a": 1}), Phase(10, {"a": 1}), Phase(None, {"a": 1})], "larger than the one before"),
        ([Phase(0, {"a": 1}), Phase(None, {"a": 1})], "larger than the one before"),
        ([Phase(None, {"c": 1})], "'c'; the components are a, b"),
        ([Phase(None, {"a": -1})], "'a' is -1"),
        ([Phase(None, {"a": float("nan")})], "'a' is nan"),
        ([Phase(None, {"a": 0})], "gives no component a weight"),
    ],
)
def test_invalid_phases_raise(phases, words):
    with pytest.raises(JanusError, match=words):
        check_phases(phases, ["a", "b"])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_a_shuffle_is_a_permutation(length):
    order = [permute(index, length, b"key") for index in range(length)]
    assert sorted(order) == list(range(length))
    assert length < 16 or order != sorted(order)


def test_shards_read_every_record_once_per_epoch():
    shards = [ComponentShard(23, index, 4, seed=0, name="c") for index in range(4)]
    read = [[shard.locate(position) for position in range(len(shard))] for shard in shards]
    assert sorted(itertools.chain(*read)) == [(0, index) for index in range(23)]
    assert [[index % 4 for _, index in records] for records in read] == [[s] * len(shards[s]) for s in range(4)]


def test_the_order_depends_on_epoch_seed_and_component():
    def order(epoch=0, seed=0, name="c"):
        shard = ComponentShard(50, 0, 1, seed, name)
        return tuple(shard.locate(epoch * 50 + step)[1] for step in range(50))

    orders = {order(), order(epoch=1), order(seed=1), order(name="d")}
    assert len(orders) == 4
    assert all(sorted(each) == list(range(50)) for each in orders)


def test_fewer_records_than_shards_raise():
    with pytest.raises(JanusError, match="'c' has 3 records, fewer than the 4 data shards"):
        ComponentShard(3, 0, 4, 0, "c")


def test_a_folder_without_a_data_set_raises(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(JanusError, match=rf"{folder}, the source of component 'c'.*janus-prepare"):
            open_records(Component("c", folder))


@pytest.mark.parametrize("split", ["validation", "train[:1000]", "train[-4:]", "train[:x]", "train[3:]", "train[:0]"])
def test_a_split_that_a_healthy_dataset_lacks_is_named_with_those_it_has(tmp_path, split):
    folder = write(tmp_path / "set", [text(n) for n in range(3)])
    with pytest.raises(JanusError, match=rf"{re.escape(repr(split))}.*its splits are train \(3 records\)") as raised:
        open_records(Component("c", folder, split=split))
    assert "damaged" not in str(raised.value)


def test_a_part_of_a_split_is_read(tmp_path):
    folder = write(tmp_path / "set", [text(n) for n in range(20)])
    assert [open_records(Component("c", folder, split=f"train[{part}]")).length for part in ("5%:", ":5%")] == [19, 1]


def read_all(folder):
    opened = open_records(Component("c", folder))
    return [opened.read(index) for index in range(opened.length)]


def test_records_read_back_as_written(tmp_path):
    records = [text(1), understanding(2), generation(3, tokens=range(5))]
    for read, record in zip(read_all(write(tmp_path / "set", records)), records, strict=True):
        fields, expected = read.to_example(), record.to_example()
        assert all(np.array_equal(fields[name], expected[name]) for name in expected)


def test_a_record_with_missing_fields_raises(tmp_path):
    opened = open_records(Component("c", write(tmp_path / "set", [text(1), {"key": "k", "task": "text"}])))
    with pytest.raises(JanusError, match=r"Example 1 of .*has no text, messages, images, alternatives, image_tok"):
        opened.read(1)


def test_a_damaged_shard_raises(tmp_path):
    folder = write(tmp_path / "set", [text(n, 100) for n in range(3)])
    (shard,) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    for index in range(len(content) // 4, len(content) * 3 // 4, 97):
        content[index] ^= 255
    shard.write_bytes(content)
    with pytest.raises(JanusError, match=str(folder)):
        read_all(folder)
