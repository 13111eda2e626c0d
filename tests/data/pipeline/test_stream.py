import contextlib
import json
import random
import re
from collections import Counter
from dataclasses import replace

import grain
import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.examples import Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packed_batches import PackedBatches
from janus_jax.data.pipeline.packing import Budget
from janus_jax.data.pipeline.stream import open_stream, shard_states
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.errors import DataChanged, JanusError
from tests import tiny
from tests.data.prepared import generation, text, understanding, write
from tests.data.samples import image, png

P = replace(tiny.processor(), system_prompt="")
BROKEN = {"key": "no task", "text": "and no messages"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared dataset. One of its records lacks fields."""
    return write(tmp_path_factory.mktemp("data") / "und", [*map(understanding, range(11)), BROKEN])


@pytest.fixture
def config(prepared):
    return StreamConfig(
        components=(
            Component("und", prepared),
            Component("text", [text(n, n % 17) for n in range(40)]),
            Component("gen", [generation(n) for n in range(23)]),
        ),
        batch_size=2,
        budget=Budget(384, 2, 3, 300),
        phases=(Phase(3, {"und": 2, "gen": 3}), Phase(None, {"und": 2, "text": 3, "gen": 5})),
        random_crop=True,
        max_rejected=0.5,
        recent=20,
    )


def texts(**kinds):
    return tuple(Component(name, [text(n, 3) for n in range(count)]) for name, count in kinds.items())


def run(stream, batches):
    """Returns the arrays and the example ids of the next batches."""
    return [(next(stream), stream.example_ids) for _ in range(batches)]


def same(found, expected):
    ids = [ids for _, ids in found] == [ids for _, ids in expected]
    arrays = [
        a is b is None or (a.dtype == b.dtype and np.array_equal(a, b))
        for (x, _), (y, _) in zip(found, expected, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    return ids and all(arrays)


@pytest.fixture
def uninterrupted(config):
    with open_stream(config, P) as stream:
        return run(stream, 12)


def resumed(config, state, **options):
    stream = open_stream(config, P, **options)
    stream.set_state(shard_states([json.loads(json.dumps(state))]))
    return stream


def state_of(stream):
    """Returns the state of the only data shard."""
    (state,) = shard_states([stream.get_state()])
    return state


@pytest.mark.slow
def test_a_stream_resumes_exactly_after_any_interruptions(config, uninterrupted):
    for seed in range(4):
        rng = random.Random(seed)
        batches, state = [], None
        while len(batches) < 12:
            with open_stream(config, P) if state is None else resumed(config, state) as stream:
                batches += run(stream, min(rng.randrange(1, 6), 12 - len(batches)))
                state = stream.get_state()
        assert same(batches, uninterrupted)


@pytest.mark.parametrize(
    ("options", "then"),
    [
        ({"threads": 3}, {}),
        pytest.param({"workers": 2, "threads": 1}, {}, marks=pytest.mark.slow),
        ({}, {"workers": 1}),
    ],
)
def test_a_stream_resumes_exactly_with_other_workers_and_threads(config, uninterrupted, options, then):
    stop = random.Random(str(options)).randrange(1, 11)
    with open_stream(config, P, **options) as stream:
        before = run(stream, stop)
        state = stream.get_state()
        run(stream, 1)
    with resumed(config, state, **then) as stream:
        after = run(stream, 12 - stop)
    assert same(before + after, uninterrupted)


def test_a_running_stream_returns_to_an_earlier_state(config, uninterrupted):
    with open_stream(config, P, threads=2, transfer=lambda batch: batch) as stream:
        run(stream, 2)
        state = stream.get_state()
        run(stream, 3)
        stream.set_state(shard_states([state]))
        assert stream.get_state() == state
        assert same(run(stream, 10), uninterrupted[2:])


def test_batches_are_transferred_in_advance_and_the_state_is_that_of_the_last_returned_batch(config, uninterrupted):
    transferred = []

    def transfer(batch):
        transferred.append(batch)
        return batch.tokens

    with open_stream(config, P, transfer=transfer) as stream:
        tokens = [next(stream) for _ in range(3)]
        state = state_of(stream)
    assert state["step"] == 3
    assert len(transferred) > 3
    for found, (batch, _) in zip(tokens, uninterrupted, strict=False):
        np.testing.assert_array_equal(found, batch.tokens)


@pytest.mark.parametrize("options", [{}, {"threads": 2}])
def test_the_batches_pass_grains_checkpoint_assertions(config, options):
    batches = PackedBatches(config, P, **options)
    limited = grain.experimental.LimitIterDataset(batches.map(lambda packed: packed._replace(report=None)), 5)
    grain.experimental.assert_equal_output_after_checkpoint(limited)


def test_the_state_is_small_and_counts_rejected_records(config):
    with open_stream(config, P) as stream:
        run(stream, 20)
        state = state_of(stream)
    assert len(json.dumps(state)) < 2500
    assert state["step"] == 20
    rejected = {name: count for name, count in state["records"]["rejected"].items() if count}
    assert list(rejected) == ["malformed"]
    assert state["records"]["read"] == rejected["malformed"] + sum(state["component_counts"])


def test_batches_have_one_shape_and_one_id_per_segment(config, uninterrupted):
    shapes = {tuple(None if array is None else array.shape for array in batch) for batch, _ in uninterrupted}
    assert len(shapes) == 1
    for batch, ids in uninterrupted:
        assert batch.segment_ids.max(axis=1).tolist() == list(map(len, ids))


def test_shards_read_disjoint_records_that_cover_all(config):
    config = replace(config, phases=(), components=texts(a=30))
    seen = []
    for index in range(2):
        with open_stream(config, P, process_index=index, process_count=2) as stream:
            batches = run(stream, 10)
        assert {batch.shape for batch, _ in batches} == {(1, 384)}
        seen.append({name for _, ids in batches for name in ids[0] if "#" not in name})
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {f"a/text{n}" for n in range(30)}


def test_3000_examples_keep_the_ratio_across_a_change_of_weights():
    change = 20
    weights = [{"und": 2, "text": 3, "gen": 5}, {"und": 7, "text": 3, "gen": 10}]
    config = StreamConfig(
        texts(und=500, text=700, gen=300),
        batch_size=8,
        budget=Budget(128, 0, 0, 128),
        phases=(Phase(change, weights[0]), Phase(None, weights[1])),
    )
    read, counts, expected = [0, 0], Counter(), Counter()
    with contextlib.closing(iter(PackedBatches(config, P))) as iterator:
        for step in range(10**6):
            counts.update(name.split("/")[0] for ids in next(iterator).example_ids for name in ids)
            waiting = [loaded.example.example_id.split("/")[0] for loaded in iterator.waiting]
            total = counts + Counter(waiting)
            phase = int(step >= change)
            read[phase] = total.total() - read[1 - phase]
            for name in weights[0]:
                expected[name] = sum(n * w[name] / sum(w.values()) for n, w in zip(read, weights, strict=True))
                assert abs(total[name] - expected[name]) < 1
            assert len(waiting) < config.lookahead
            if sum(read) >= 3000:
                break


def test_a_rejected_record_is_replaced_by_one_of_its_component_at_the_same_position():
    good = [generation(n) for n in range(30)]
    bad = [replace(record, images=()) if n % 3 == 0 else record for n, record in enumerate(good)]

    def ids(records):
        config = StreamConfig(
            (Component("gen", records), *texts(text=50)), 1, Budget(384, 0, 4, 384), max_rejected=0.5, lookahead=1
        )
        with open_stream(config, P) as stream:
            names = [name for _, ids in run(stream, 20) for name in ids[0]]
        return [name for name in names if name.startswith("gen/")], Counter(name.split("/")[0] for name in names)

    (clean, clean_counts), (repaired, counts) = ids(good), ids(bad)
    assert counts == clean_counts
    for before, after in zip(clean, repaired, strict=True):
        number, epoch = map(int, re.fullmatch(r"gen/gen(\d+)(?:#(\d+))?", before).groups(default=0))
        if number % 3:
            assert after == before
        else:
            new = re.fullmatch(rf"gen/gen(\d+){f'#{epoch}' if epoch else ''}", after)
            assert int(new[1]) % 3


HOSTILE = {
    "truncated JPEG": (replace(generation(1), images=(image(1)[:300],)), "bad_image"),
    "decompression bomb": (replace(understanding(2), images=(png(32_000, 32_000),)), "image_too_large"),
    "not an image": (replace(understanding(3), images=(b"MZ\x90",)), "bad_image"),
    "missing fields": (BROKEN, "malformed"),
    "messages that are not JSON": ({**text(5).to_example(), "messages": "[{"}, "malformed"),
    "messages that are not a list": ({**text(6).to_example(), "messages": "7"}, "malformed"),
    "an unknown task": ({**text(7).to_example(), "task": "poetry"}, "malformed"),
    "a message without content": ({**text(8).to_example(), "messages": '[{"role": "user"}]'}, "bad_conversation"),
    "empty caption": (replace(generation(9), text="  "), "empty_text"),
    "empty text": (replace(text(10), text=""), "empty_text"),
    "no input image": (replace(understanding(11), images=()), "no_image"),
    "no target image": (replace(generation(12), images=()), "no_image"),
    "an image without placeholder": (replace(understanding(13), images=(image(1), image(2))), "image_count"),
    "a special token in the text": (replace(text(14), text="<image_placeholder>"), "special_token"),
    "a caption longer than a sequence": (generation(15, "long " * 400), "too_long"),
}


def test_hostile_records_are_replaced_and_counted_by_reason(tmp_path, caplog):
    good = [*map(text, range(100, 110)), *map(generation, range(110, 120)), *map(understanding, range(120, 130))]
    folder = write(tmp_path / "hostile", [*good, *(record for record, _ in HOSTILE.values())])
    config = StreamConfig((Component("all", folder),), 1, Budget(384, 2, 3, 384), max_rejected=0.6, first_sentence=0)
    seen = set()
    with open_stream(config, P) as stream:
        while not any("#2" in name for name in seen):
            next(stream)
            seen.update(*stream.example_ids)
        state = state_of(stream)
    assert {name for name in seen if "#" not in name} == {f"all/{record.key}" for record in good}
    once = Counter(reason for _, reason in HOSTILE.values())
    rejected = {name: count for name, count in state["records"]["rejected"].items() if count}
    assert {name: count >= once[name] for name, count in rejected.items()} == dict.fromkeys(once, True)
    logged = [record.getMessage() for record in caplog.records if "Rejected" in record.getMessage()]
    assert len(logged) == 1


def rejecting(every, max_rejected, recent):
    """Returns a config of which each `every`-th record is rejected."""
    records = [text(n) if n % every else replace(text(n), text="") for n in range(400)]
    return StreamConfig((Component("c", records),), 1, Budget(128, 0, 0, 128), max_rejected=max_rejected, recent=recent)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (rejecting(4, 0.2, 100), r"21 of the last \d+ records .*empty_text: \d+; the last is c/text\d+"),
        (rejecting(1, 0.99, 50), "50 of the last 50 records"),
    ],
    ids=["a quarter", "all"],
)
def test_too_many_rejected_records_stop_the_run(config, words):
    with open_stream(config, P) as stream, pytest.raises(JanusError, match=words):
        run(stream, 1000)


def test_rejected_records_below_the_limit_do_not_stop_the_run():
    with open_stream(rejecting(10, 0.2, 100), P) as stream:
        run(stream, 100)
        assert stream.report()["records/rejected/empty_text"] > 20


def test_precomputed_image_tokens_give_batches_without_pixels():
    tokens = np.arange(P.num_gen_tokens)
    records = [generation(n, tokens=tokens + n) for n in range(9)]
    config = StreamConfig((Component("g", records),), 1, Budget(384, 0, 3, 0), precomputed_image_tokens=True)
    with open_stream(config, P) as stream:
        batch = next(stream)
        first = int(stream.example_ids[0][0].removeprefix("g/gen").split("#")[0])
    assert batch.gen_images.shape[1] == 0
    assert batch.gen_ids[0, 0].tolist() == (tokens + first).tolist()


def test_a_state_of_another_shard_raises_with_the_remedy(config):
    with open_stream(config, P, process_index=1, process_count=2) as stream:
        state = stream.get_state()
    with (
        open_stream(config, P) as stream,
        pytest.raises(DataChanged, match=r"saved with 2 data shards, .* there are 1; .* --config\.data\.restart=True"),
    ):
        stream.set_state(shard_states([state]))
    with (
        open_stream(config, P, process_index=0, process_count=2) as stream,
        pytest.raises(JanusError, match="of shard 1 and this stream is shard 0"),
    ):
        stream.set_state(shard_states([state]))


def test_a_stream_that_starts_at_a_step_has_the_weights_of_that_step():
    config = StreamConfig(
        tuple(Component(name, [text(number) for number in range(4)]) for name in ("a", "b")),
        batch_size=1,
        phases=(Phase(3, {"a": 1, "b": 0}), Phase(None, {"a": 0, "b": 1})),
    )
    for first_step, component in ((0, "a"), (3, "b")):
        with open_stream(replace(config, first_step=first_step), P) as stream:
            next(stream)
            assert {name.split("/")[0] for ids in stream.example_ids for name in ids} == {component}


@pytest.mark.parametrize(
    "change", [{"seed": 3}, {"lookahead": 9}, {"batch_size": 4}, {"supervision": Supervision.ANSWERS}]
)
def test_a_state_of_another_config_raises_with_the_fields_name(config, change):
    with open_stream(config, P) as stream:
        state = stream.get_state()
    with (
        open_stream(replace(config, **change), P) as stream,
        pytest.raises(JanusError, match=f"saved with {next(iter(change))} "),
    ):
        stream.set_state(shard_states([state]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"components": ()}, "components is empty"),
        ({"components": texts(a=3) * 2}, "Two components are called 'a'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_rejected": 1.0}, "max_rejected is 1.0"),
        ({"drop_condition": -0.1}, "drop_condition is -0.1"),
        ({"phases": (Phase(None, {"other": 1}),)}, "'other'; the components are und, text, gen"),
    ],
)
def test_an_invalid_config_raises(config, change, words):
    with pytest.raises(JanusError, match=words):
        replace(config, **change)


def test_a_batch_that_shards_cannot_share_raises(config):
    with pytest.raises(JanusError, match="batch_size is 2; it must be a multiple of 4"):
        open_stream(config, P, process_count=4)


def test_a_missing_data_set_raises(config, tmp_path):
    with pytest.raises(JanusError, match="is not a folder"):
        open_stream(replace(config, components=(Component("und", tmp_path / "x"),), phases=()), P, workers=1)


class Poems:
    """A data source of a user."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return text(index)


class Shout(grain.transforms.Map):
    def map(self, record):
        return replace(record, text=record.text.upper())


class Number(grain.transforms.RandomMap):
    def random_map(self, record, rng):
        return replace(record, text=f"{record.text} {rng.integers(100)}")


def refuse_odd(record):
    if int(record.key.removeprefix("text")) % 2:
        raise RejectedRecord(RejectReason.EMPTY_TEXT, "its number is odd.")
    return record


def texts_of(*transforms, **options):
    component = Component("poems", f"{__name__}:Poems", transforms=tuple(f"{__name__}:{name}" for name in transforms))
    config = StreamConfig((component,), 1, Budget(128, 0, 0, 128), max_rejected=0.9)
    with open_stream(config, P, **options) as stream:
        batches = run(stream, 4)
    return [P.tokenizer.decode(batch.tokens[0][batch.segment_ids[0] > 0]) for batch, _ in batches]


def test_a_users_source_and_transforms_are_found_by_name():
    plain, loud, numbered = texts_of(), texts_of("Shout"), texts_of("Number", "Shout")
    assert all("word" in one for one in plain)
    assert [one.upper() for one in plain] == loud
    assert numbered == texts_of("Number", "Shout", threads=2)
    assert len(set(re.findall(r"WORD +(\d+)", " ".join(numbered)))) > 3


def test_a_transform_may_reject_records():
    assert {int(number) % 2 for one in texts_of("refuse_odd") for number in re.findall(r"(\d+) word", one)} == {0}


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (
            Component("c", "absent_module:Poems"),
            "source of component 'c' absent_module:Poems: No module named 'absent_module'; give an",
        ),
        (Component("c", [text(1)], transforms=(f"{__name__}:absent",)), "has no 'absent'; give MODULE:NAME"),
        (Component("c", [text(1)], transforms=(f"{__name__}:HOSTILE",)), "is a dict; it must be a grain.transforms"),
        (Component("c", f"{__name__}:Poems", split="train[:3]"), r"split 'train\[:3\]', which only a prepared"),
    ],
)
def test_an_unusable_source_or_transform_raises(component, words):
    with pytest.raises(JanusError, match=words):
        open_stream(StreamConfig((component,), 1), P)
