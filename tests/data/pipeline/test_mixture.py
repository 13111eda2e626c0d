import itertools
import random

import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component, ComponentShard, open_records, shuffled
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


def worst_error(mixture):
    return max(map(abs, mixture.owed))


@pytest.mark.parametrize("weights", [*RECIPES, (0.1, 0.2, 0.3, 0.15, 0.25), (1, 1, 1, 1, 1000), (1,)])
def test_every_beginning_of_10000_samples_is_within_one_sample_of_the_ratio(weights):
    mixture = schedule(weights)
    for n in range(10_000):
        mixture.draw(0)
        if n < 1000 or n % 100 == 99:
            assert worst_error(mixture) < 1
    assert mixture.counts == [pytest.approx(10_000 * weight / sum(weights), abs=1) for weight in weights]


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(RECIPES, 2)))
def test_a_change_of_weights_leaves_the_ratio_within_one_sample(before, after):
    change = random.Random(str((before, after))).randrange(1, 60)
    mixture = schedule(before, after, until=[5])
    for n in range(400):
        mixture.draw(0 if n < change else 1)
        assert worst_error(mixture) < 1


def test_a_component_without_weight_gives_nothing():
    mixture = schedule((1, 0, 1), (0, 0, 1), until=[10])
    assert {mixture.draw(0) for _ in range(100)} == {0, 2}
    assert {mixture.draw(1) for _ in range(100)} == {2}


def test_it_goes_on_from_its_counts():
    mixture = schedule((2, 3, 5))
    for _ in range(37):
        mixture.draw(0)
    twin = mixture.copy()
    assert [mixture.draw(0) for _ in range(50)] == [twin.draw(0) for _ in range(50)]


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
def test_phases_that_make_no_sense_are_refused(phases, words):
    with pytest.raises(JanusError, match=words):
        check_phases(phases, ["a", "b"])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_a_shuffle_is_a_permutation(length):
    order = [shuffled(place, length, b"key") for place in range(length)]
    assert sorted(order) == list(range(length))
    assert length < 16 or order != sorted(order)


def test_processes_read_every_record_once_an_epoch_between_them():
    shares = [ComponentShard(23, index, 4, seed=0, name="c") for index in range(4)]
    read = [[share.locate(position) for position in range(len(share))] for share in shares]
    assert sorted(itertools.chain(*read)) == [(0, index) for index in range(23)]
    assert [[index % 4 for _, index in some] for some in read] == [[p] * len(shares[p]) for p in range(4)]


def test_each_epoch_each_seed_and_each_component_has_an_order_of_its_own():
    def order(epoch=0, seed=0, name="c"):
        share = ComponentShard(50, 0, 1, seed, name)
        return tuple(share.locate(epoch * 50 + place)[1] for place in range(50))

    orders = {order(), order(epoch=1), order(seed=1), order(name="d")}
    assert len(orders) == 4
    assert all(sorted(each) == list(range(50)) for each in orders)


def test_fewer_records_than_processes_are_refused():
    with pytest.raises(JanusError, match="'c' has 3 records, fewer than the 4 processes"):
        ComponentShard(3, 0, 4, 0, "c")


def test_a_folder_without_a_data_set_is_named(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(JanusError, match=rf"{folder}, of the component 'c'.*launch.prepare"):
            open_records(Component("c", folder))


def read_all(folder):
    opened = open_records(Component("c", folder))
    return [opened.read(index) for index in range(opened.length)]


def test_what_is_read_is_what_was_written(tmp_path):
    records = [text(1), understanding(2), generation(3, ids=range(5))]
    for read, record in zip(read_all(write(tmp_path / "set", records)), records, strict=True):
        fields, expected = read.to_example(), record.to_example()
        assert all(np.array_equal(fields[name], expected[name]) for name in expected)


def test_a_record_without_a_field_is_named_with_it(tmp_path):
    opened = open_records(Component("c", write(tmp_path / "set", [text(1), {"key": "k", "task": "text"}])))
    with pytest.raises(JanusError, match=r"Example 1 of .*set has no text, messages, images, image_tokens"):
        opened.read(1)


def test_a_damaged_shard_is_named(tmp_path):
    folder = write(tmp_path / "set", [text(n, 100) for n in range(3)])
    (shard,) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    for place in range(len(content) // 4, len(content) * 3 // 4, 97):
        content[place] ^= 255
    shard.write_bytes(content)
    with pytest.raises(JanusError, match=str(folder)):
        read_all(folder)
