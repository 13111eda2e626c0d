import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, NO_POSITION
from janus_jax.data.pipeline.dataset import Component, RecordReader
from janus_jax.data.pipeline.examples import ExampleBuilder, Supervision
from janus_jax.data.pipeline.mixture import MixtureSchedule, Phase
from janus_jax.data.pipeline.packing import Budget, Packer, PendingExample, pack, select_examples
from janus_jax.data.pipeline.prefetch import ExampleLoader, LoadTask
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from janus_jax.processing import Task
from tests import tiny
from tests.data.prepared import encoded, generation, text, understanding

P = dataclasses.replace(tiny.processor(), system_prompt="")
WIDE = Budget(512, 3, 3, 512)


def sample(record, budget=WIDE, precomputed_image_tokens=False):
    make = ExampleLoader(
        [Component("c", [record])],
        ExampleBuilder(P, 0, 0, precomputed_image_tokens=precomputed_image_tokens),
        Supervision.TEXT,
        budget,
    )
    result = make.sample(LoadTask(0, 0, 0), RecordReader(1, lambda _: record))
    if not hasattr(result, "row"):
        raise RejectedRecord(result.reason, result.detail)
    return result


@dataclasses.dataclass
class Sized:
    """A sample that is nothing but its size."""

    size: np.ndarray
    cut: int = 0


def realistic(weights, seed=0):
    """Draws sizes like those of the papers' data: images of 576 places with their text, and documents of any length."""
    rng = np.random.default_rng(seed)
    names = ["und", "text", "gen"]
    schedule = MixtureSchedule([Phase(None, dict(zip(names, weights, strict=True)))], names)

    def draw():
        component = schedule.draw(0)
        places = [
            rng.integers(620, 901),
            min(4096, int(np.exp(rng.uniform(np.log(50), np.log(4200))))),
            rng.integers(600, 701),
        ]
        p = places[component]
        size = [(p, 1, 0, p - 579), (p, 0, 0, p - 1), (p, 0, 1, 0)][component]
        return PendingExample(Sized(np.array(size)), (component, 0))

    return draw


@pytest.mark.parametrize("weights", [(1, 0, 1), (2, 3, 5), (7, 3, 10), (1, 0, 3), (5, 1, 4)])
def test_rows_of_a_realistic_mixture_are_at_least_95_percent_full(weights):
    packer, draw = Packer(Budget(), lookahead=24), realistic(weights)
    for _ in range(150):
        packer.next_row(draw)
    assert packer.filled[0] / (packer.rows * 4096) >= 0.95


def test_no_row_exceeds_a_budget_and_none_waits_for_ever():
    budget = Budget(4096, 2, 4, 3000)
    packer, draw = Packer(budget, lookahead=24), realistic((2, 3, 5))
    drawn = []

    def limited():
        waiting = draw()
        waiting.sample.size = np.minimum(waiting.sample.size, budget.limits)
        drawn.append(waiting.sample)
        return waiting

    for _ in range(200):
        oldest = packer.waiting[0].sample if packer.waiting else None
        row = packer.next_row(limited)
        assert (np.sum([s.size for s in row], axis=0) <= budget.limits).all()
        assert oldest is None or row[0] is oldest
    # Each is drawn once and either lies in a row or waits.
    assert packer.filled[0] + sum(w.sample.size[0] for w in packer.waiting) == sum(s.size[0] for s in drawn)


def test_the_best_group_fills_the_last_room():
    sizes = np.array([[60, 0, 0, 0], [30, 0, 0, 0], [25, 0, 0, 0], [15, 0, 0, 0]])
    assert sorted(select_examples(sizes, np.array([100, 0, 0, 0]))) == [0, 2, 3]


def test_too_long_text_loses_its_end():
    whole, cut = sample(text(1, 40)), sample(text(1, 40), Budget(50, 0, 0, 512))
    assert (len(cut.row), cut.cut) == (50, len(whole.row) - 50)
    assert np.array_equal(cut.row.tokens, whole.row.tokens[:50])
    assert cut.text_targets.tolist() == list(range(1, 50))


def test_too_many_supervised_places_are_cut_too():
    cut = sample(text(1, 40), Budget(512, 0, 0, 30))
    assert cut.size.tolist() == [31, 0, 0, 30]


def test_a_cut_behind_an_image_keeps_it():
    long = understanding(1, "word " * 60)
    whole = sample(long)
    last_patch = int(np.flatnonzero(whole.row.und_patch_index != NO_IMAGE).max())
    kept = sample(long, Budget(last_patch + 10, 1, 0, 512))
    assert kept.size.tolist()[:2] == [last_patch + 10, 1]
    with pytest.raises(RejectedRecord) as error:
        sample(long, Budget(last_patch + 1, 1, 0, 512))
    assert error.value.reason is RejectReason.TOO_LONG


TWO_IMAGES = Record(
    "two",
    Task.UNDERSTANDING,
    messages=(
        {"role": "user", "content": "<image_placeholder><image_placeholder>"},
        {"role": "assistant", "content": "A"},
    ),
    images=(encoded(1), encoded(2)),
)


@pytest.mark.parametrize(
    ("record", "budget"),
    [
        (generation(1), Budget(80, 1, 1, 80)),
        (generation(1), Budget(512, 1, 0, 512)),
        (TWO_IMAGES, Budget(512, 1, 1, 512)),
    ],
    ids=["an image would be cut", "no image to generate", "more images than a row has"],
)
def test_what_cannot_be_cut_is_dropped(record, budget):
    with pytest.raises(RejectedRecord) as error:
        sample(record, budget)
    assert error.value.reason is RejectReason.TOO_LONG


SAMPLES = [sample(record) for record in (understanding(1), generation(2), text(3), generation(4), understanding(5))]
BATCH = pack([SAMPLES, [SAMPLES[2], TWO := sample(TWO_IMAGES)]], Budget(512, 3, 2, 400), P)
LAID = [*((0, segment, s) for segment, s in enumerate(SAMPLES, 1)), (1, 1, SAMPLES[2]), (1, 2, TWO)]


@pytest.mark.parametrize(("row", "segment", "laid"), LAID)
def test_a_sample_reads_back_from_the_batch(row, segment, laid):
    here = BATCH.segment_ids[row] == segment
    (places,) = np.nonzero(here)
    assert places.tolist() == list(range(places[0], places[0] + len(laid.row)))
    assert np.array_equal(BATCH.tokens[row, here], laid.row.tokens)
    assert BATCH.positions[row, here].tolist() == list(range(len(laid.row)))
    for there, packed, images, packed_images, n in (
        (laid.row.und_patch_index, BATCH.und_patch_index, laid.row.und_images, BATCH.und_images, P.und_tokens),
        (laid.row.gen_token_index, BATCH.gen_token_index, laid.row.gen_images, BATCH.gen_images, P.gen_tokens),
    ):
        filled = packed[row, here]
        assert np.array_equal(filled == NO_IMAGE, there == NO_IMAGE)
        for place in np.flatnonzero(there != NO_IMAGE):
            image, patch = divmod(int(filled[place]), n)
            expected_image, expected_patch = divmod(int(there[place]), n)
            assert patch == expected_patch
            assert np.array_equal(packed_images[row, image], images[expected_image])
    targets = BATCH.text_targets[row]
    assert [t for t in targets if t in places] == (laid.text_targets + places[0]).tolist()
    starts = BATCH.gen_starts[row]
    assert [t for t in starts if t in places] == (laid.gen_starts + places[0]).tolist()


def test_what_no_sample_fills_is_padding():
    used = sum(len(s.row) for s in SAMPLES)
    assert (BATCH.tokens[0, used:] == P.tokenizer.special.pad).all()
    assert not BATCH.segment_ids[0, used:].any()
    assert (BATCH.und_patch_index[0, used:] == NO_IMAGE).all()
    assert (BATCH.text_targets[0, sum(len(s.text_targets) for s in SAMPLES) :] == NO_POSITION).all()
    assert (BATCH.gen_starts[1] == NO_POSITION).all()
    assert not BATCH.gen_images[1].any()


def test_all_ids_of_an_image_to_generate_follow_its_start():
    for row, start in zip(*np.nonzero(BATCH.gen_starts != NO_POSITION), strict=True):
        first = BATCH.gen_starts[row, start]
        ids = BATCH.gen_token_index[row, first : first + P.gen_tokens]
        assert ids.tolist() == list(range(start * P.gen_tokens, (start + 1) * P.gen_tokens))
        assert BATCH.tokens[row, first - 1] == P.tokenizer.special.begin_of_image


def test_known_ids_come_in_place_of_pixels():
    ids = np.arange(P.gen_tokens)
    known = [sample(generation(n, ids=ids + n), precomputed_image_tokens=True) for n in (1, 2)]
    batch = pack([known], Budget(512, 1, 3, 512), P, precomputed_image_tokens=True)
    assert batch.gen_images.shape == (1, 0, P.gen_image_size, P.gen_image_size, 3)
    assert batch.gen_ids[0].tolist() == [(ids + 1).tolist(), (ids + 2).tolist(), [0] * P.gen_tokens]
    assert (batch.gen_starts[0] != NO_POSITION).tolist() == [True, True, False]


@pytest.fixture(scope="module")
def outputs():
    """Hidden states and both kinds of logits of every place, by one compiled program."""
    model = Janus(tiny.CONFIG)
    params = tiny.stacked_params()

    @jax.jit
    def run(batch):
        hidden = apply(model.__call__, params, batch)
        return hidden, apply(model.text_logits, params, hidden), apply(model.image_logits, params, hidden)

    return lambda samples: [np.asarray(x[0]) for x in run(pack([samples], Budget(640, 3, 3, 512), P))]


# Other pixels and other text of the same lengths.
OTHERS = [sample(record) for record in (understanding(8), generation(9), text(7), generation(6), understanding(9))]


@pytest.mark.parametrize("changed", range(len(SAMPLES)))
def test_changing_one_sample_changes_no_logit_of_its_neighbours(outputs, changed):
    other = OTHERS[changed]
    assert len(other.row) == len(SAMPLES[changed].row)
    before = outputs(SAMPLES)
    after = outputs([*SAMPLES[:changed], other, *SAMPLES[changed + 1 :]])
    start = sum(len(s.row) for s in SAMPLES[:changed])
    own = np.zeros(640, bool)
    own[start : start + len(other.row)] = True
    for x, y in zip(before, after, strict=True):
        assert np.array_equal(x[~own], y[~own])
        assert not np.array_equal(x[own], y[own])


def test_a_packed_sample_is_to_the_model_as_if_it_were_alone(outputs):
    packed, start = outputs(SAMPLES), 0
    for each in SAMPLES:
        here = slice(start, start + len(each.row))
        for x, y in zip(packed, outputs([each]), strict=True):
            np.testing.assert_allclose(x[here], y[: len(each.row)], rtol=1e-4, atol=1e-4)
        start += len(each.row)
