import itertools
import pickle
import random
import re
from fractions import Fraction

import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component, RecordSource, shard_records
from janus_jax.data.pipeline.mixture import Mixture, Phase, check_phases
from janus_jax.errors import JanusError
from tests.data.prepared import generation, text, understanding, write

RECIPES = [(1, 0, 1), (2, 3, 5), (7, 3, 10), (1, 0, 3), (5, 1, 4), (14, 6, 80), (21, 9, 70)]


def phases(*weights, until=()):
    names = [str(number) for number in range(len(weights[0]))]
    return names, [
        Phase(end, dict(zip(names, share, strict=True)))
        for share, end in itertools.zip_longest(weights, until, fillvalue=None)
    ]


def errors(names, phases, lengths):
    """Yields, after each example, the largest difference of a component's count from its exact expectation.

    Args:
      lengths: Number of examples of each phase.
    """
    counts, expected, begun = [0] * len(names), [Fraction(0)] * len(names), []
    for number, (phase, length) in enumerate(zip(phases, lengths, strict=True)):
        mixture = Mixture(
            phases,
            names,
            number,
            phase_counts=[*begun, *[0] * (len(phases) - number)],
            component_counts=list(counts),
        )
        weights = [Fraction(str(phase.weights[name])) for name in names]
        for index in range(length):
            component, position = mixture[index]
            assert position == counts[component]
            counts[component] += 1
            expected = [e + weight / sum(weights) for e, weight in zip(expected, weights, strict=True)]
            yield max(abs(e - count) for e, count in zip(expected, counts, strict=True))
        begun.append(length)


@pytest.mark.parametrize("weights", [*RECIPES, (0.1, 0.2, 0.3, 0.15, 0.25), (1, 1, 1, 1, 1000), (1,)])
def test_every_prefix_of_10000_examples_matches_the_ratio_to_within_one(weights):
    assert max(errors(*phases(weights), [10_000])) < 1


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(RECIPES, 2)))
def test_a_change_of_weights_keeps_the_ratio_to_within_one_example(before, after):
    change = random.Random(str((before, after))).randrange(1, 60)
    assert max(errors(*phases(before, after, until=[5]), [change, 400])) < 1


def test_a_component_without_weight_gives_no_examples():
    names, two = phases((1, 0, 1), (0, 0, 1), until=[10])
    assert {Mixture(two, names, 0)[index][0] for index in range(100)} == {0, 2}
    assert {Mixture(two, names, 1)[index][0] for index in range(100)} == {2}


def test_the_mixture_is_a_function_of_the_index():
    """Any order of reading gives the same examples, also after a move to a worker."""
    names, one = phases((2, 3, 5.5))
    in_order, mixture = Mixture(one, names), Mixture(one, names)
    expected = [in_order[index] for index in range(2000)]
    shuffled = random.Random(0).sample(range(2000), 2000)
    assert [mixture[index] for index in shuffled] == [expected[index] for index in shuffled]
    moved = pickle.loads(pickle.dumps(Mixture(one, names)))
    assert [moved[index] for index in (1999, 0)] == [expected[1999], expected[0]]


def test_a_distant_index_is_computed_from_the_period():
    names, one = phases((2, 3, 5))
    component, position = Mixture(one, names)[10**15 + 7]
    assert (component, position) == (
        Mixture(one, names)[7][0],
        Mixture(one, names)[7][1] + 10**14 * (2, 3, 5)[component],
    )


def test_given_examples_come_first():
    names, one = phases((1, 1))
    mixture = Mixture(one, names, phase_counts=[3], component_counts=[2, 1], first=[(1, 0), (0, 1)])
    assert [mixture[index] for index in range(4)] == [(1, 0), (0, 1), (1, 1), (0, 2)]


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


def order(length=50, index=0, count=1, seed=0, name="c", epochs=1):
    """Returns the numbers of the records of a data shard, in its order."""
    records = shard_records([Component(name, [text(n) for n in range(length)])], seed, index, count)
    return [int(records[position].key.removeprefix("text")) for position in range(epochs * len(records))]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 100, 1000])
def test_a_shuffle_is_a_permutation(length):
    assert sorted(order(length)) == list(range(length))
    assert length < 16 or order(length) != sorted(order(length))


def test_shards_read_every_record_once_per_epoch():
    shards = [order(23, index, 4, epochs=2) for index in range(4)]
    for epoch in range(2):
        read = [shard[len(shard) // 2 * epoch : len(shard) // 2 * (epoch + 1)] for shard in shards]
        assert sorted(itertools.chain(*read)) == list(range(23))


def test_the_order_depends_on_epoch_seed_and_component():
    two_epochs = order(epochs=2)
    orders = [two_epochs[:50], two_epochs[50:], order(seed=1), order(name="d")]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(each) == list(range(50)) for each in orders)


def test_fewer_records_than_shards_raise():
    with pytest.raises(JanusError, match="'c' has 3 records, fewer than the 4 data shards"):
        order(3, 0, 4)


def test_a_folder_without_a_data_set_raises(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(JanusError, match=rf"{folder}, the source of component 'c'.*janus-prepare"):
            RecordSource(Component("c", folder))


@pytest.mark.parametrize("split", ["validation", "train[:1000]", "train[-4:]", "train[:x]", "train[3:]", "train[:0]"])
def test_a_split_that_a_healthy_dataset_lacks_is_named_with_those_it_has(tmp_path, split):
    folder = write(tmp_path / "set", [text(n) for n in range(3)])
    with pytest.raises(JanusError, match=rf"{re.escape(repr(split))}.*its splits are train \(3 records\)") as raised:
        RecordSource(Component("c", folder, split=split))
    assert "damaged" not in str(raised.value)


def test_a_part_of_a_split_is_read(tmp_path):
    folder = write(tmp_path / "set", [text(n) for n in range(20)])
    assert [len(RecordSource(Component("c", folder, split=f"train[{part}]"))) for part in ("5%:", ":5%")] == [19, 1]


def read_all(folder):
    records = RecordSource(Component("c", folder))
    return [records[index] for index in range(len(records))]


def test_records_read_back_as_written(tmp_path):
    records = [text(1), understanding(2), generation(3, tokens=range(5))]
    for read, record in zip(read_all(write(tmp_path / "set", records)), records, strict=True):
        fields, expected = read.to_example(), record.to_example()
        assert all(np.array_equal(fields[name], expected[name]) for name in expected)


def test_a_record_with_missing_fields_raises(tmp_path):
    records = RecordSource(Component("c", write(tmp_path / "set", [text(1), {"key": "k", "task": "text"}])))
    with pytest.raises(JanusError, match=r"Example 1 of .*has no text, messages, images, alternatives, image_tok"):
        records[1]


def test_a_damaged_shard_raises(tmp_path):
    folder = write(tmp_path / "set", [text(n, 100) for n in range(3)])
    (shard,) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    for index in range(len(content) // 4, len(content) * 3 // 4, 97):
        content[index] ^= 255
    shard.write_bytes(content)
    with pytest.raises(JanusError, match=str(folder)):
        read_all(folder)
