import functools
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.examples import Example, ExampleBuilder, Supervision
from janus_jax.data.pipeline.mixture import Phase
from janus_jax.data.pipeline.packing import Budget
from janus_jax.data.pipeline.prefetch import ExampleLoader, LoadTask
from janus_jax.data.pipeline.stream import StreamConfig, open_stream
from janus_jax.data.pipeline.workers import ProcessPool
from janus_jax.errors import JanusError
from tests import tiny
from tests.data.prepared import generation, text, understanding, write
from tests.data.samples import image, png
from tests.data.worker_tasks import fail, report_jax, send_much, sleep

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


def resumed(config, state, workers=0):
    stream = open_stream(config, P, workers=workers)
    stream.set_state(json.loads(json.dumps(state)))
    return stream


def test_a_stream_resumes_exactly_after_any_interruptions(config, uninterrupted):
    for seed in range(4):
        rng = random.Random(seed)
        batches, state = [], None
        while len(batches) < 12:
            with open_stream(config, P) if state is None else resumed(config, state) as stream:
                batches += run(stream, min(rng.randrange(1, 6), 12 - len(batches)))
                state = stream.get_state()
        assert same(batches, uninterrupted)


@pytest.mark.parametrize(("workers", "then"), [(2, 3), (1, 0)])
def test_a_stream_resumes_exactly_with_another_number_of_workers(config, uninterrupted, workers, then):
    stop = random.Random(workers).randrange(1, 11)
    with open_stream(config, P, workers=workers) as stream:
        before = run(stream, stop)
        state = stream.get_state()
        run(stream, 1)
    with resumed(config, state, workers=then) as stream:
        after = run(stream, 12 - stop)
    assert same(before + after, uninterrupted)


def test_a_running_stream_returns_to_an_earlier_state(config, uninterrupted):
    with open_stream(config, P, workers=1) as stream:
        run(stream, 2)
        state = stream.get_state()
        run(stream, 3)
        stream.set_state(state)
        assert stream.get_state() == state
        assert same(run(stream, 10), uninterrupted[2:])


def test_the_state_is_small_and_counts_rejected_records(config):
    with open_stream(config, P) as stream:
        run(stream, 20)
        state = stream.get_state()
    assert len(json.dumps(state)) < 2000
    assert state["step"] == 20
    assert state["records"]["rejected"] == {"malformed": state["positions"][0] - state["component_counts"][0]}


def test_batches_have_one_shape_and_one_id_per_segment(config, uninterrupted):
    shapes = {tuple(None if array is None else array.shape for array in batch) for batch, _ in uninterrupted}
    assert len(shapes) == 1
    for batch, ids in uninterrupted:
        assert batch.segment_ids.max(axis=1).tolist() == list(map(len, ids))


def test_shards_read_disjoint_records_that_cover_all(config):
    config = replace(config, phases=(), components=texts(a=30))
    seen = []
    for index in range(2):
        with open_stream(config, P, index, 2) as stream:
            batches = run(stream, 10)
        assert {batch.shape for batch, _ in batches} == {(1, 384)}
        seen.append({name.split("#")[0] for _, ids in batches for name in ids[0]})
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {f"a/text{n}" for n in range(30)}


def test_10000_examples_keep_the_ratio_across_a_change_of_weights():
    change = 40
    weights = [{"und": 2, "text": 3, "gen": 5}, {"und": 7, "text": 3, "gen": 10}]
    config = StreamConfig(
        texts(und=500, text=700, gen=300),
        batch_size=8,
        budget=Budget(128, 0, 0, 128),
        phases=(Phase(change, weights[0]), Phase(None, weights[1])),
    )
    read, counts, expected = [0, 0], Counter(), Counter()
    with open_stream(config, P) as stream:
        while sum(read) < 10_000:
            phase = int(stream.step >= change)
            next(stream)
            counts.update(name.split("/")[0] for ids in stream.example_ids for name in ids)
            waiting = [w.example.example_id.split("/")[0] for w in stream._packer.waiting]
            total = counts + Counter(waiting)
            read[phase] = total.total() - read[1 - phase]
            for name in weights[0]:
                expected[name] = sum(n * w[name] / sum(w.values()) for n, w in zip(read, weights, strict=True))
                assert abs(total[name] - expected[name]) < 1
            assert len(waiting) < config.lookahead


def test_the_next_record_of_the_component_replaces_a_rejected_one():
    bad = [generation(n) if n % 3 else replace(generation(n), images=()) for n in range(30)]
    config = StreamConfig(
        (Component("gen", bad), *texts(text=50)), 1, Budget(384, 0, 4, 384), max_rejected=0.5, lookahead=2
    )
    with open_stream(config, P) as stream:
        run(stream, 10)
        counts = stream.get_state()["component_counts"]
    assert abs(counts[0] - counts[1]) <= 1


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


@pytest.mark.parametrize("workers", [0, 1])
def test_hostile_records_are_skipped_and_counted_by_reason(tmp_path, workers, caplog):
    good = [*map(text, range(100, 110)), *map(generation, range(110, 120)), *map(understanding, range(120, 130))]
    folder = write(tmp_path / "hostile", [*good, *(record for record, _ in HOSTILE.values())])
    config = StreamConfig((Component("all", folder),), 1, Budget(384, 2, 3, 384), max_rejected=0.6, first_sentence=0)
    seen = set()
    with open_stream(config, P, workers=workers) as stream:
        while not any("#1" in name for name in seen):
            next(stream)
            seen.update(*stream.example_ids)
        waiting = {w.example.example_id for w in stream._packer.waiting}
        state = stream.get_state()
    first_epoch = {name for name in seen | waiting if "#" not in name}
    assert first_epoch == {f"all/{record.key}" for record in good}
    once = Counter(reason for _, reason in HOSTILE.values())
    rejected = state["records"]["rejected"]
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
        (rejecting(4, 0.2, 100), r"21 of the last \d+ records .*empty_text: 21; the last is c/text\d+"),
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
    with open_stream(config, P, 1, 2) as stream:
        state = stream.get_state()
    with (
        open_stream(config, P) as stream,
        pytest.raises(JanusError, match=r"has 2 data shards and this stream has 1; open it with 2 shards, or"),
    ):
        stream.set_state(state)
    with (
        open_stream(config, P, 0, 2) as stream,
        pytest.raises(JanusError, match="of shard 1 and this stream is shard 0"),
    ):
        stream.set_state(state)


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
        stream.set_state(state)


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
        open_stream(config, P, 0, 4)


def test_a_missing_data_set_ends_the_workers(config, tmp_path):
    with pytest.raises(JanusError, match="is not a folder"):
        open_stream(replace(config, components=(Component("und", tmp_path / "x"),), phases=()), P, workers=1)


def test_a_killed_worker_raises_within_seconds(config):
    with open_stream(config, P, workers=2) as stream:
        next(stream)
        os.kill(stream._prefetcher._pool.processes[1].pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(JanusError, match=r"data worker \(process \d+\) has ended by signal 9 \(SIGKILL\)"):
            run(stream, 1000)
        assert time.monotonic() - begin < 10


def test_a_worker_killed_while_sending_raises():
    for delay in (0.0, 0.02, 0.05):
        pool = ProcessPool(send_much, 1)
        numbers = [pool.submit(64) for _ in range(50)]
        assert len(pool.result(numbers[0])) == 64 << 20
        time.sleep(delay)
        pool.processes[0].kill()
        with pytest.raises(JanusError, match="SIGKILL"):
            list(map(pool.result, numbers[1:]))
        pool.close()


def test_a_worker_killed_before_its_first_task_raises():
    pool = ProcessPool(sleep, 2)
    pool.processes[0].kill()
    with pytest.raises(JanusError, match="SIGKILL"):
        pool.result(pool.submit(3600))
    pool.close()


def test_workers_ignore_preemption_notices_and_end_with_their_pool():
    pool = ProcessPool(sleep, 1)
    pool.result(pool.submit(0))
    pool.processes[0].send_signal(signal.SIGTERM)
    pool.processes[0].send_signal(signal.SIGINT)
    assert pool.result(pool.submit(0)) is None
    begin = time.monotonic()
    pool.close()
    assert pool.processes[0].returncode is not None
    assert time.monotonic() - begin < 4
    with pytest.raises(JanusError, match="closed"):
        pool.result(pool.submit(0))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (JanusError("It is not there."), JanusError, r"^It is not there\.$"),
        (KeyError("k"), RuntimeError, "(?s)Traceback.*KeyError"),
    ],
)
def test_an_error_in_a_worker_is_raised_in_the_caller(error, kind, words):
    pool = ProcessPool(functools.partial(fail, error), 1)
    with pytest.raises(kind, match=words):
        pool.result(pool.submit(None))
    pool.close()


def test_workers_import_no_jax(prepared):
    loader = ExampleLoader([Component("und", prepared)], ExampleBuilder(P), Budget(384, 2, 3, 300))
    pool = ProcessPool(functools.partial(report_jax, loader), 1)
    results = [pool.result(pool.submit(LoadTask(0, 0, index))) for index in range(3)]
    pool.close()
    assert all(isinstance(example, Example) for example, _ in results)
    assert not any(has_jax for _, has_jax in results)
