"""Examples with images as context: edits, and conversations in which the assistant generates images."""

import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, NO_POSITION
from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.examples import ExampleBuilder, Supervision
from janus_jax.data.pipeline.packing import Budget, pack, truncate
from janus_jax.data.pipeline.stream import open_stream, shard_states
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.models.backbone import apply
from janus_jax.models.factory import make_model
from janus_jax.processing import EDITING_STYLES, Task, open_image
from tests import tiny
from tests.data import prepared
from tests.data.prepared import generation
from tests.data.samples import image

P = tiny.processor()
N = P.num_gen_tokens
JANUS_4O, R1 = EDITING_STYLES["janus_4o"], EDITING_STYLES["janus_pro_r1_edit"]
KEEP = dataclasses.replace(JANUS_4O, drop_source=0.0)


def edit(number, sources=1, tokens=False):
    """Returns an edit. Image i has the precomputed tokens `100 * number + i`, modulo the size of the codebook."""
    ids = np.repeat((100 * number + np.arange(sources + 1)) % 16, N) if tokens else ()
    return prepared.edit(number, sources, ids)


def conversation(number=0, tokens=False):
    messages = (
        {"role": "user", "content": "<image_placeholder>\nDraw it in ink."},
        {"role": "assistant", "content": "Here: <image_placeholder>"},
        {"role": "user", "content": "And in red?"},
        {"role": "assistant", "content": "<image_placeholder>\nDone."},
    )
    images = tuple(image(number + i) for i in range(3))
    ids = np.repeat(np.arange(2), N) if tokens else np.zeros(0)
    return Record(f"i{number}", Task.INTERLEAVED, messages=messages, images=images, image_tokens=ids.astype(np.int32))


def build(record, **settings):
    return ExampleBuilder(P, **({"drop_condition": 0.0, "first_sentence": 0.0, "editing": KEEP} | settings))(record)


def kinds(sequence):
    """Returns the kinds of tokens in the order of the sequence, without repetitions."""
    special = P.tokenizer.special
    names = {special.bos: "bos", special.begin_of_image: "begin", special.end_of_image: "end", special.pad: "pad"}
    found = []
    for token, und, gen in zip(sequence.tokens, sequence.und_patch_index, sequence.gen_token_index, strict=True):
        if und != NO_IMAGE:
            kind = f"input {und // P.num_und_tokens}"
        elif gen != NO_IMAGE:
            kind = f"{'target' if gen // N < sequence.num_target_images else 'context'} {gen // N}"
        else:
            kind = names.get(int(token), "text")
        if not found or found[-1] != kind:
            found.append(kind)
    return found


INPUT, CONTEXT = ["begin", "input 0", "end"], ["begin", "context 1", "end"]
PROMPT, TARGET = ["bos", "text"], ["text", "begin", "target 0"]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        (KEEP, [*PROMPT, *INPUT, *CONTEXT, *TARGET]),
        (dataclasses.replace(JANUS_4O, drop_source=1.0), [*PROMPT, *INPUT, "begin", "pad", "end", *TARGET]),
        (R1, [*PROMPT, *CONTEXT, *TARGET]),
        (dataclasses.replace(R1, drop_instruction=1.0), [*PROMPT, *CONTEXT, "pad", *TARGET]),
    ],
)
def test_sequence_of_an_edit(style, expected):
    example = build(edit(1), editing=style)
    assert kinds(example.sequence) == expected
    assert example.gen_starts.tolist() == [len(example.sequence) - N]
    assert len(example.text_targets) == 0


def test_dropped_instruction_keeps_the_request_and_the_template():
    sequence = build(edit(1), editing=dataclasses.replace(R1, drop_instruction=1.0)).sequence
    text = P.tokenizer.decode(sequence.tokens[sequence.gen_token_index == NO_IMAGE])
    assert text == ":  Please generate an image.\n\n:"  # Without special tokens, such as the roles.


def test_half_of_the_sources_lose_their_image_tokens():
    settings = {"editing": JANUS_4O, "precomputed_image_tokens": True}
    examples = [build(edit(number, 2, tokens=True), **settings) for number in range(300)]
    kept = np.array([example.sequence.num_context_images for example in examples])
    # Three standard deviations of 600 sources are 0.06.
    assert kept.mean() / 2 == pytest.approx(0.5, abs=0.06)
    assert set(kept.tolist()) == {0, 1, 2}


def test_precomputed_tokens_are_those_of_target_and_kept_sources():
    half = dataclasses.replace(JANUS_4O, drop_source=0.5)
    for number in range(1, 8):
        record = edit(number, 2, tokens=True)
        example = build(record, editing=half, precomputed_image_tokens=True)
        pixels = build(record, editing=half)
        np.testing.assert_array_equal(example.sequence.gen_token_index, pixels.sequence.gen_token_index)
        np.testing.assert_array_equal(example.sequence.tokens, pixels.sequence.tokens)
        named = {tuple(square.ravel()): i for i, square in enumerate(map(squared, record.images))}
        order = [named[tuple(square.ravel())] for square in pixels.sequence.gen_images]
        assert (example.gen_ids[:, 0] == (100 * number + np.array(order)) % 16).all()


def squared(content):
    return JANUS_4O.square(open_image(content), P.gen_image_size, P.min_side)


@pytest.mark.parametrize("features", [False, True])
def test_sequence_and_targets_of_a_conversation_that_draws(features):
    example = build(conversation(), supervision=Supervision.ANSWERS, interleaved_features=features)
    again = [["begin", f"input {number}", "end"] if features else [] for number in (1, 2)]
    assert kinds(example.sequence) == [
        *PROMPT,
        *INPUT,
        *TARGET,
        "end",
        *again[0],
        "text",
        "begin",
        "target 1",
        "end",
        *again[1],
        "text",
    ]
    tokens = example.sequence.tokens[example.text_targets]
    eos = "<｜end▁of▁sentence｜>"
    assert P.tokenizer.decode(tokens, skip_special_tokens=False) == (
        f" Here: <begin_of_image>{eos} <begin_of_image>\nDone.{eos}"
    )
    assert len(example.gen_starts) == 2
    # Begin-of-image is predicted where the image starts.
    assert set(example.gen_starts - 1) <= set(example.text_targets)


def test_precomputed_tokens_of_a_conversation_that_draws():
    example = build(conversation(tokens=True), precomputed_image_tokens=True)
    assert example.gen_ids[:, 0].tolist() == [0, 1]
    assert len(example.sequence.gen_images) == 0
    assert len(example.sequence.und_images) == 1


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Record("r", Task.EDITING, "Add.", images=(image(),)), RejectReason.NO_IMAGE),
        (Record("r", Task.EDITING, " ", images=(image(),) * 2), RejectReason.EMPTY_TEXT),
        (Record("r", Task.EDITING, "Add.", images=(image(), image()[:100])), RejectReason.BAD_IMAGE),
        (Record("r", Task.EDITING, "An <image_placeholder>.", images=(image(),) * 2), RejectReason.MALFORMED),
        (Record("r", Task.EDITING, "A <begin_of_image>.", images=(image(),) * 2), RejectReason.SPECIAL_TOKEN),
        (dataclasses.replace(conversation(), images=(image(),)), RejectReason.NO_IMAGE),
    ],
)
def test_bad_records_are_rejected(record, reason):
    with pytest.raises(RejectedRecord) as error:
        build(record)
    assert error.value.reason is reason


@pytest.mark.parametrize("record", [edit(1), conversation()])
def test_janusflow_refuses_images_as_context(record):
    builder = ExampleBuilder(tiny.processor(tiny.FLOW), editing=KEEP)
    with pytest.raises(RejectedRecord, match="JanusFlow"):
        builder(record)


def test_budget_counts_context_images_and_targets_separately():
    example = build(edit(1, 2))
    assert truncate(example, Budget(512, 2, 1, 0, context_images=2)) is example
    for gen, context in ((1, 1), (3, 0), (0, 3)):
        budget = Budget(512, 2, gen, 0, context_images=context)
        with pytest.raises(RejectedRecord, match="context images"):
            truncate(example, budget)


EXAMPLES = [build(edit(1)), build(generation(2)), build(edit(3, 2)), build(edit(4), editing=R1)]
BATCH = pack([EXAMPLES, [EXAMPLES[3]]], Budget(1024, 3, 4, 0, context_images=4), P)


def test_packed_context_images_follow_the_target_images():
    assert (BATCH.gen_starts != NO_POSITION).sum(axis=1).tolist() == [4, 1]
    assert BATCH.gen_images.shape[1] == 8
    start, targets, contexts = 0, 0, 4
    for example in EXAMPLES:
        sequence = example.sequence
        index = BATCH.gen_token_index[0, start : start + len(sequence)]
        for number, pixels in enumerate(sequence.gen_images):
            slot = targets if number == 0 else contexts + number - 1
            np.testing.assert_array_equal(BATCH.gen_images[0, slot], pixels)
            own = sequence.gen_token_index // N == number
            np.testing.assert_array_equal(index[own], slot * N + np.arange(N))
        start, targets, contexts = start + len(sequence), targets + 1, contexts + sequence.num_context_images


def test_changing_a_context_image_changes_only_positions_that_may_attend_to_it():
    model, params = make_model(tiny.CONFIG), tiny.stacked_params()
    run = jax.jit(lambda batch: apply(model.__call__, params, batch))
    ids = np.random.default_rng(0).integers(0, 16, (*BATCH.gen_images.shape[:2], N), np.int32)
    batch = BATCH._replace(gen_ids=ids, gen_images=BATCH.gen_images[:, :0])
    before = np.asarray(run(batch))
    for slot in range(4, 8):
        changed = ids.copy()
        changed[0, slot] = (changed[0, slot] + 1) % 16
        differs = np.abs(np.asarray(run(batch._replace(gen_ids=changed))) - before).max(axis=-1) > 0
        (positions,) = np.nonzero(BATCH.gen_token_index[0] // N == slot)
        may_attend = np.arange(BATCH.shape[1]) >= positions[0]
        may_attend &= BATCH.segment_ids[0] == BATCH.segment_ids[0, positions[0]]
        np.testing.assert_array_equal(differs[0], may_attend)
        assert not differs[1].any()


def test_stream_of_edits_resumes_exactly():
    records = [*map(edit, range(9)), *map(conversation, range(3)), *map(generation, range(4))]
    config = StreamConfig(
        (Component("all", records),), 2, Budget(384, 4, 3, 200, context_images=2), lookahead=4, max_rejected=0.5
    )
    with open_stream(config, P) as stream:
        for _ in range(2):
            next(stream)
        state = shard_states([stream.get_state()])
        expected = [(next(stream), stream.example_ids) for _ in range(3)]
        assert 0 < stream.report()["fill/context_images"] <= 1
    with open_stream(config, P) as resumed:
        resumed.set_state(state)
        for batch, ids in expected:
            again = next(resumed)
            assert resumed.example_ids == ids
            jax.tree.map(np.testing.assert_array_equal, again, batch)
