import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import Execution
from janus_jax.generation import decode
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import generate_text
from janus_jax.models.backbone import apply
from janus_jax.models.janus import Janus
from tests import tiny

MODEL = Janus(tiny.CONFIG, Execution(layers="unrolled"))
NO_STOP = (-1,)


def ask(content, *images):
    placeholders = "<image_placeholder>\n" * len(images)
    return tiny.processor().understanding_sequence(
        [{"role": "user", "content": placeholders + content, "images": list(images)}]
    )


ROWS = [
    ("What is in the picture?", tiny.picture(0)),
    ("Hello",),
    ("Compare these two", tiny.picture(1), tiny.picture(2, (17, 50))),
]


GREEDY = SamplingConfig()


def write(rows, count=20, stop_ids=NO_STOP, sampling=GREEDY, **options):
    rows = [ask(*row) for row in rows]
    keys = jnp.concatenate([sampling_keys(0, row, range(1)) for row in range(len(rows))])
    batch = tiny.processor().left_pad(rows, options.pop("length", None))
    steps = generate_text(
        MODEL, tiny.unrolled_params(), batch, keys, sampling, stop_tokens=stop_ids, max_new_tokens=count, **options
    )
    return np.concatenate(list(steps), axis=1)


def best_ids_of_the_whole_sequence(row, written):
    """The likeliest id at every step, from one pass of the scanned model over prompt and answer, with no cache."""
    params, model = tiny.stacked_params(), Janus(tiny.CONFIG, Execution())
    batch = tiny.processor().left_pad([ask(*row)])
    length = batch.shape[1]

    @jax.jit
    def run(params, written):
        x = jnp.concatenate([apply(model.embed, params, batch), apply(model.embed_text, params, written)], axis=1)
        places = jnp.arange(x.shape[1])[None]
        hidden = model.apply(
            {"params": params}, x, places, jnp.ones_like(places), method=lambda model, *args: model.llm(*args)[0]
        )
        return jnp.argmax(apply(model.text_logits, params, hidden[0, length - 1 : -1]), axis=-1)

    return run(params, jnp.asarray(written)[None])


@pytest.mark.parametrize("row", ROWS, ids=["one image", "no image", "two images"])
def test_the_cached_loop_writes_what_the_whole_sequence_says(row):
    (written,) = write([row])
    np.testing.assert_array_equal(written, best_ids_of_the_whole_sequence(row, written))


def test_rows_of_different_lengths_and_image_counts_write_as_each_alone():
    together = write(ROWS)
    np.testing.assert_array_equal(together, np.concatenate([write([row]) for row in ROWS]))


@pytest.mark.parametrize("chunk", [1, 3, 20])
def test_chunks_change_nothing(chunk):
    np.testing.assert_array_equal(write(ROWS, chunk=chunk), write(ROWS))


def test_the_cache_grows_without_a_trace(monkeypatch):
    expected = write(ROWS)
    monkeypatch.setattr(decode, "CACHE_STEP", 4)
    np.testing.assert_array_equal(write(ROWS), expected)


def test_writing_ends_when_every_row_has_stopped():
    free = write(ROWS[:2], 20)
    # A stop id of each row, met at some step.
    stops = (int(free[0, 5]), int(free[1, 9]))
    met = [next(i for i, token in enumerate(row) if token in stops) for row in free]
    stopped = write(ROWS[:2], 20, stop_ids=stops)
    assert stopped.shape[1] == max(met) + 1
    for row, end in enumerate(met):
        np.testing.assert_array_equal(stopped[row, : end + 1], free[row, : end + 1])


def test_a_host_can_end_a_row():
    def after_ten(ids):
        return np.array([ids.shape[1] >= 10] * len(ids))

    assert write(ROWS, 40, chunk=4, is_finished=after_ten).shape[1] < 16


def test_one_id_can_be_asked_for():
    np.testing.assert_array_equal(write(ROWS, 1), write(ROWS)[:, :1])


def test_sampling_depends_on_the_rows_key_alone():
    warm = SamplingConfig(1.5)
    first = write(ROWS, sampling=warm)
    np.testing.assert_array_equal(write(ROWS[:1], sampling=warm), first[:1])
    assert (first != write(ROWS)).any()


def test_another_prompt_compiles_nothing():
    write(ROWS[1:2], length=192)
    sizes = decode.prefill._cache_size(), decode.decode._cache_size()
    write([("Two birds",)], length=192, count=7)
    assert (decode.prefill._cache_size(), decode.decode._cache_size()) == sizes
