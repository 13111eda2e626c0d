import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batch import NO_POSITION
from janus_jax.config import Execution
from janus_jax.models.janus import Janus
from janus_jax.training.flops import equations, traced_flops
from janus_jax.training.losses.cross_entropy import HeadTargets, cross_entropy
from janus_jax.training.losses.tokens import token_loss
from tests import tiny
from tests.training import batches

MODEL = Janus(tiny.CONFIG, Execution())
ROWS, LENGTH, WIDTH, VOCABULARY, TARGETS = 2, 12, 5, 7, 9


def head(weight, states):
    return states @ weight.T


def plain_cross_entropy(params, hidden, positions, targets, head=head):
    logits = head(params, jnp.take_along_axis(hidden, positions[..., None] - 1, axis=1))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((VOCABULARY, WIDTH), np.float32)
    hidden = rng.standard_normal((ROWS, LENGTH, WIDTH), np.float32)
    positions = np.sort(rng.permuted(np.tile(np.arange(1, LENGTH), (ROWS, 1)), axis=1)[:, :TARGETS], axis=1)
    return weight, hidden, positions, rng.integers(0, VOCABULARY, positions.shape)


def chunked(params, hidden, positions, targets, chunk, weights=None, head=head):
    weights = np.ones(positions.shape, np.float32) if weights is None else weights
    return cross_entropy(head, params, hidden, HeadTargets(positions, targets, weights), chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 4, 9, 100])
def test_chunked_losses_match(problem, chunk):
    found, expected = chunked(*problem, chunk), plain_cross_entropy(*problem)
    np.testing.assert_allclose(found.per_token, expected, rtol=1e-5)
    np.testing.assert_allclose(found.total, expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("chunk", [4, 100])
@pytest.mark.parametrize("argnums", [0, 1, (0, 1)], ids=["head", "states", "both"])
def test_chunked_gradients_match(problem, chunk, argnums):
    weight, hidden, positions, targets = problem
    weights = np.random.default_rng(1).random(positions.shape, np.float32) * (positions % 3 > 0)

    def chunked_loss(weight, hidden):
        return 3 * chunked(weight, hidden, positions, targets, chunk, weights).total

    def plain_loss(weight, hidden):
        return 3 * (plain_cross_entropy(weight, hidden, positions, targets) * weights).sum()

    found, expected = (jax.tree.leaves(jax.grad(loss, argnums)(weight, hidden)) for loss in (chunked_loss, plain_loss))
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trained", ["first", "second", "bias"])
def test_partly_trained_head_has_matching_gradients(problem, trained):
    weight, *rest = problem
    first = np.random.default_rng(2).standard_normal((4, WIDTH), np.float32)
    whole = {"first": first, "second": weight[:, :4], "bias": weight[:, 0]}

    def two_layers(params, states):
        return jnp.tanh(states @ params["first"].T) @ params["second"].T + params["bias"]

    def chunked_loss(part):
        return chunked(whole | {trained: part}, *rest, chunk=4, head=two_layers).total

    def plain_loss(part):
        return plain_cross_entropy(whole | {trained: part}, *rest, head=two_layers).sum()

    found, expected = (jax.grad(loss)(whole[trained]) for loss in (chunked_loss, plain_loss))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_per_token_losses_have_no_gradient(problem):
    weight, hidden, positions, targets = problem
    gradient = jax.grad(lambda weight: chunked(weight, hidden, positions, targets, 4).per_token.sum())(weight)
    assert not gradient.any()


def test_chunks_after_the_last_target_are_skipped(problem):
    weight, hidden, positions, targets = problem
    weights = np.ones(positions.shape, np.float32)
    weights[0, 3:] = weights[1, 5:] = 0
    read = np.asarray(chunked(weight, hidden, positions, targets, 3, weights).per_token)
    assert np.all(read[:, :6] > 0)
    assert not read[:, 6:].any()


def largest_array(function, *arguments):
    """Number of elements of the largest array that the function makes."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(math.prod(var.aval.shape) for equation, _ in equations(jaxpr) for var in equation.outvars)


def logits_of_chunks(chunk):
    sequences, length, width, vocabulary = 2, 64, 8, 4096
    hidden, weight = jnp.zeros((sequences, length, width)), jnp.zeros((vocabulary, width))
    positions = jnp.ones((sequences, length), int)
    loss = jax.value_and_grad(
        lambda weight, hidden: chunked(weight, hidden, positions, positions, chunk).total, argnums=(0, 1)
    )
    return (
        largest_array(loss, weight, hidden),
        traced_flops(loss, weight, hidden),
        sequences * chunk * vocabulary,
        width,
    )


def test_logits_are_never_materialized_at_once():
    largest, _, logits, _ = logits_of_chunks(16)
    assert largest == logits


def test_logits_are_computed_once():
    _, operations, logits, width = logits_of_chunks(64)
    assert operations == 3 * 2 * logits * width


@functools.cache
def losses(*sequences, budget=batches.BUDGET):
    totals = run(batches.batch(sequences, budget))
    return np.asarray(totals.losses), np.asarray(totals.counts)


@jax.jit
def run(batch):
    return token_loss(MODEL, tiny.stacked_params(), batch, jnp.ones(3), chunk=32).sums


def test_each_task_has_its_own_sum():
    examples = (batches.text(), batches.understanding(), batches.generation())
    counts = [len(examples[0].text_targets), len(examples[1].text_targets), tiny.CONFIG.gen_encoder.num_tokens]
    for task, example in enumerate(examples):
        sums, found = losses((example,), ())
        assert [bool(value) for value in sums] == [task == other for other in range(3)]
        assert found.tolist() == [counts[task] * (task == other) for other in range(3)]


def test_packed_examples_have_the_losses_of_separate_ones():
    one, other = batches.understanding(3), batches.text(1)
    together, apart = losses((one, other), ()), losses((one,), (other,))
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-5)
    np.testing.assert_array_equal(together[1], apart[1])


def test_text_loss_matches_next_token_log_probs():
    batch = batches.batch([(batches.text(0),), ()])
    positions = batch.text_targets[0][batch.text_targets[0] != NO_POSITION]
    expected = -log_probs(batch, Janus.text_logits)[positions - 1, batch.tokens[0, positions]].sum()
    np.testing.assert_allclose(run(batch).losses[0], expected, rtol=1e-5)


def test_image_loss_starts_at_the_first_token():
    batch = batches.batch([(batches.generation(0),), ()])
    begin_of_image = int(batch.gen_starts[0, 0]) - 1
    assert batch.tokens[0, begin_of_image] == tiny.processor().tokenizer.special.begin_of_image
    ids = batch.gen_ids[0, 0]
    expected = -log_probs(batch, Janus.image_logits)[begin_of_image + np.arange(len(ids)), ids].sum()
    np.testing.assert_allclose(run(batch).losses[2], expected, rtol=1e-5)


def log_probs(batch, head):
    """Returns the log probabilities of a head at all positions of the first sequence."""

    @jax.jit
    def logits(batch):
        return MODEL.apply({"params": tiny.stacked_params()}, batch, method=lambda model, b: head(model, model(b)))

    return np.asarray(jax.nn.log_softmax(logits(batch)[0]))


def test_padding_images_are_ignored():
    batch = batches.batch([(batches.generation(0),), (batches.understanding(1),)])
    empty = batch._replace(und_images=batch.und_images.copy(), gen_ids=batch.gen_ids.copy())
    empty.und_images[0, :] = 200
    empty.und_images[1, 1] = 200
    empty.gen_ids[0, 1], empty.gen_ids[1] = 5, 5
    np.testing.assert_array_equal(run(batch).losses, run(empty).losses)


def test_batch_without_targets_has_zero_loss():
    totals = run(batches.batch([(), ()]))
    assert float(totals.loss) == 0
    assert totals.term_means.tolist() == totals.counts.tolist() == [0, 0, 0]
