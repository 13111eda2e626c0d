import dataclasses
import itertools

import jax
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, NO_POSITION
from janus_jax.data.pipeline.examples import ExampleBuilder
from janus_jax.data.pipeline.mixture import Mixture, Phase
from janus_jax.data.pipeline.packing import Budget, pack, select_examples, truncate
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from janus_jax.processing import Task
from tests import tiny
from tests.data.prepared import generation, text, understanding
from tests.data.samples import image

P = dataclasses.replace(tiny.processor(), system_prompt="")
WIDE = Budget(512, 3, 3, 512)


def build(record, budget=WIDE, **options):
    return truncate(ExampleBuilder(P, drop_condition=0, first_sentence=0, **options)(record), budget)


def realistic_sizes(weights, seed=0):
    """Yields sizes of examples as in the papers: images of 576 tokens and long documents."""
    rng = np.random.default_rng(seed)
    names = ["und", "text", "gen"]
    mixture = Mixture([Phase(None, dict(zip(names, weights, strict=True)))], names)
    for index in itertools.count():
        lengths = [
            rng.integers(620, 901),
            min(4096, int(np.exp(rng.uniform(np.log(50), np.log(4200))))),
            rng.integers(600, 701),
        ]
        component, _ = mixture[index]
        n = lengths[component]
        yield np.array([(n, 1, 0, n - 579), (n, 0, 0, n - 1), (n, 0, 1, 0)][component])


def packed_sizes(sizes, budget, sequences, lookahead=24):
    """Yields for each sequence the sizes of the examples that wait, and the selected indices."""
    waiting = []
    for _ in range(sequences):
        waiting += itertools.islice(sizes, lookahead - len(waiting))
        selected = select_examples(np.stack(waiting), budget.limits)
        yield waiting, selected
        waiting = [size for index, size in enumerate(waiting) if index not in selected]


@pytest.mark.parametrize("weights", [(1, 0, 1), (2, 3, 5), (7, 3, 10), (1, 0, 3), (5, 1, 4)])
def test_sequences_of_a_realistic_mixture_are_at_least_95_percent_full(weights):
    filled = sum(
        waiting[index][0]
        for waiting, selected in packed_sizes(realistic_sizes(weights), Budget(), 150)
        for index in selected
    )
    assert filled / (150 * 4096) >= 0.95


def test_sequences_stay_within_the_budget_and_start_with_the_oldest_example():
    budget = Budget(4096, 2, 4, 3000)
    sizes = (np.minimum(size, budget.limits) for size in realistic_sizes((2, 3, 5)))
    for waiting, selected in packed_sizes(sizes, budget, 200):
        assert (np.sum([waiting[index] for index in selected], axis=0) <= budget.limits).all()
        assert selected[0] == 0
        assert len(set(selected)) == len(selected)


def test_the_best_group_fills_the_rest_of_a_sequence():
    sizes = np.array([[60, 0, 0, 0], [30, 0, 0, 0], [25, 0, 0, 0], [15, 0, 0, 0]])
    assert sorted(select_examples(sizes, np.array([100, 0, 0, 0]))) == [0, 2, 3]


def test_text_that_is_too_long_is_truncated():
    whole, short = build(text(1, 40)), build(text(1, 40), Budget(50, 0, 0, 512))
    assert (len(short.sequence), short.truncated) == (50, len(whole.sequence) - 50)
    assert np.array_equal(short.sequence.tokens, whole.sequence.tokens[:50])
    assert short.text_targets.tolist() == list(range(1, 50))


def test_text_with_too_many_targets_is_truncated():
    assert build(text(1, 40), Budget(512, 0, 0, 30)).size.tolist() == [31, 0, 0, 30]


def test_truncation_after_an_image_keeps_the_image():
    long = understanding(1, "word " * 60)
    last_patch = int(np.flatnonzero(build(long).sequence.und_patch_index != NO_IMAGE).max())
    kept = build(long, Budget(last_patch + 10, 1, 0, 512))
    assert kept.size.tolist()[:2] == [last_patch + 10, 1]
    with pytest.raises(RejectedRecord) as error:
        build(long, Budget(last_patch + 1, 1, 0, 512))
    assert error.value.reason is RejectReason.TOO_LONG


TWO_IMAGES = Record(
    "two",
    Task.UNDERSTANDING,
    messages=(
        {"role": "user", "content": "<image_placeholder><image_placeholder>"},
        {"role": "assistant", "content": "A"},
    ),
    images=(image(1), image(2)),
)


@pytest.mark.parametrize(
    ("record", "budget"),
    [
        (generation(1), Budget(80, 1, 1, 80)),
        (generation(1), Budget(512, 1, 0, 512)),
        (TWO_IMAGES, Budget(512, 1, 1, 512)),
    ],
    ids=["image would be cut", "no room for a target image", "too many images"],
)
def test_examples_that_cannot_be_truncated_are_rejected(record, budget):
    with pytest.raises(RejectedRecord) as error:
        build(record, budget)
    assert error.value.reason is RejectReason.TOO_LONG


EXAMPLES = [build(record) for record in (understanding(1), generation(2), text(3), generation(4), understanding(5))]
TWO = build(TWO_IMAGES)
BATCH = pack([EXAMPLES, [EXAMPLES[2], TWO]], Budget(512, 3, 2, 400), P)
PACKED = [*((0, segment, e) for segment, e in enumerate(EXAMPLES, 1)), (1, 1, EXAMPLES[2]), (1, 2, TWO)]


@pytest.mark.parametrize(("b", "segment", "example"), PACKED)
def test_an_example_reads_back_from_the_batch(b, segment, example):
    sequence = example.sequence
    here = BATCH.segment_ids[b] == segment
    (positions,) = np.nonzero(here)
    start = positions[0]
    assert positions.tolist() == list(range(start, start + len(sequence)))
    assert np.array_equal(BATCH.tokens[b, here], sequence.tokens)
    assert BATCH.positions[b, here].tolist() == list(range(len(sequence)))
    for expected, packed, images, packed_images, n in (
        (sequence.und_patch_index, BATCH.und_patch_index, sequence.und_images, BATCH.und_images, P.num_und_tokens),
        (sequence.gen_token_index, BATCH.gen_token_index, sequence.gen_images, BATCH.gen_images, P.num_gen_tokens),
    ):
        found = packed[b, here]
        assert np.array_equal(found == NO_IMAGE, expected == NO_IMAGE)
        for position in np.flatnonzero(expected != NO_IMAGE):
            number, patch = divmod(int(found[position]), n)
            expected_number, expected_patch = divmod(int(expected[position]), n)
            assert patch == expected_patch
            assert np.array_equal(packed_images[b, number], images[expected_number])
    assert [t for t in BATCH.text_targets[b] if t in positions] == (example.text_targets + start).tolist()
    assert [t for t in BATCH.gen_starts[b] if t in positions] == (example.gen_starts + start).tolist()


def test_unused_positions_are_padding():
    used = sum(len(example.sequence) for example in EXAMPLES)
    assert (BATCH.tokens[0, used:] == P.tokenizer.special.pad).all()
    assert not BATCH.segment_ids[0, used:].any()
    assert (BATCH.und_patch_index[0, used:] == NO_IMAGE).all()
    assert (BATCH.text_targets[0, sum(len(example.text_targets) for example in EXAMPLES) :] == NO_POSITION).all()
    assert (BATCH.gen_starts[1] == NO_POSITION).all()
    assert not BATCH.gen_images[1].any()


def test_all_tokens_of_a_target_image_follow_its_start():
    for b, number in zip(*np.nonzero(BATCH.gen_starts != NO_POSITION), strict=True):
        first = BATCH.gen_starts[b, number]
        index = BATCH.gen_token_index[b, first : first + P.num_gen_tokens]
        assert index.tolist() == list(range(number * P.num_gen_tokens, (number + 1) * P.num_gen_tokens))
        assert BATCH.tokens[b, first - 1] == P.tokenizer.special.begin_of_image


def test_precomputed_image_tokens_replace_pixels():
    tokens = np.arange(P.num_gen_tokens)
    examples = [build(generation(n, tokens=tokens + n), precomputed_image_tokens=True) for n in (1, 2)]
    batch = pack([examples], Budget(512, 1, 3, 512), P, precomputed_image_tokens=True)
    assert batch.gen_images.shape == (1, 0, P.gen_image_size, P.gen_image_size, 3)
    assert batch.gen_ids[0].tolist() == [(tokens + 1).tolist(), (tokens + 2).tolist(), [0] * P.num_gen_tokens]
    assert (batch.gen_starts[0] != NO_POSITION).tolist() == [True, True, False]


@pytest.fixture(scope="module")
def outputs():
    """Function from examples to hidden states, text logits and image logits, compiled once."""
    model = Janus(tiny.CONFIG)
    params = tiny.stacked_params()

    @jax.jit
    def run(batch):
        hidden = apply(model.__call__, params, batch)
        return hidden, apply(model.text_logits, params, hidden), apply(model.image_logits, params, hidden)

    return lambda examples: [np.asarray(x[0]) for x in run(pack([examples], Budget(640, 3, 3, 512), P))]


# Other pixels and other text of the same lengths.
OTHERS = [build(record) for record in (understanding(8), generation(9), text(7), generation(6), understanding(9))]


@pytest.mark.parametrize("changed", range(len(EXAMPLES)))
def test_changing_an_example_leaves_its_neighbors_logits_unchanged(outputs, changed):
    other = OTHERS[changed]
    assert len(other.sequence) == len(EXAMPLES[changed].sequence)
    before = outputs(EXAMPLES)
    after = outputs([*EXAMPLES[:changed], other, *EXAMPLES[changed + 1 :]])
    start = sum(len(example.sequence) for example in EXAMPLES[:changed])
    own = np.zeros(640, bool)
    own[start : start + len(other.sequence)] = True
    for x, y in zip(before, after, strict=True):
        assert np.array_equal(x[~own], y[~own])
        assert not np.array_equal(x[own], y[own])


def test_a_packed_example_gives_the_same_outputs_as_alone(outputs):
    packed, start = outputs(EXAMPLES), 0
    for example in EXAMPLES:
        length = len(example.sequence)
        for x, y in zip(packed, outputs([example]), strict=True):
            np.testing.assert_allclose(x[start : start + length], y[:length], rtol=1e-4, atol=1e-4)
        start += length
