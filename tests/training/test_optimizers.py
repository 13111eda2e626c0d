import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from janus_jax.errors import JanusError
from janus_jax.training.optimizers import OptimizerConfig, make_optimizer, make_schedule
from janus_jax.training.param_paths import unbox
from tests.training import toy


def rates(config, steps):
    return np.array([make_schedule(config, steps)(step) for step in range(steps + 1)])


def test_warmup_is_linear():
    np.testing.assert_allclose(rates(OptimizerConfig(2.0, warmup_steps=4), 6), [0.5, 1, 1.5, 2, 2, 2, 2], rtol=1e-6)


def test_cosine_falls_from_the_warmup_to_its_floor():
    found = rates(OptimizerConfig(2.0, "cosine", floor=0.1, warmup_steps=2), 10)
    expected = [2 * (0.1 + 0.9 * (1 + np.cos(np.pi * n / 8)) / 2) for n in range(9)]
    np.testing.assert_allclose(found, [1, 2, *expected], rtol=1e-6)


def run(config, params, gradients, steps=10):
    optimizer = make_optimizer(config, steps, params)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def trees(seed, count):
    rng = np.random.default_rng(seed)
    return [
        {"fc": {"weight": rng.standard_normal((4, 3), np.float32), "bias": rng.standard_normal(4, np.float32)}}
        for _ in range(count)
    ]


def adamw(params, gradients, rate, decay, clip, no_decay=(), b1=0.9, b2=0.95, eps=1e-8):
    """Clipped AdamW (arXiv 1711.05101) in float64."""
    params = {name: value.astype(np.float64) for name, value in params["fc"].items()}
    first = dict.fromkeys(params, 0.0)
    second = dict.fromkeys(params, 0.0)
    for n, tree in enumerate(gradients, 1):
        norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in tree["fc"].values()))
        for name, g in tree["fc"].items():
            g = g.astype(np.float64) * min(1.0, clip / norm)
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            step = first[name] / (1 - b1**n) / (np.sqrt(second[name] / (1 - b2**n)) + eps)
            params[name] = params[name] * (1 - rate * (name not in no_decay) * decay) - rate * step
    return params


@pytest.mark.parametrize("no_decay", [(), ("*/bias",)], ids=["all decays", "biases do not"])
@pytest.mark.parametrize("clip", [1.0, 100.0], ids=["clipped", "not clipped"])
def test_updates_match_adamw(clip, no_decay):
    (params,), gradients = trees(0, 1), trees(1, 4)
    config = OptimizerConfig(1e-2, weight_decay=0.1, clip_norm=clip, no_decay=no_decay)
    found, _ = run(config, params, gradients)
    expected = adamw(params, gradients, 1e-2, 0.1, clip, [pattern[2:] for pattern in no_decay])
    for name, value in expected.items():
        np.testing.assert_allclose(found["fc"][name], value, rtol=1e-5, atol=1e-7)


def test_bfloat16_moments_give_similar_updates():
    (params,), gradients = trees(0, 1), trees(1, 8)
    exact, _ = run(OptimizerConfig(1e-2), params, gradients)
    found, state = run(OptimizerConfig(1e-2, moments_dtype="bfloat16"), params, gradients)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert len(moments) == 4
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("bfloat16")}
    for name in ("weight", "bias"):
        moved = np.abs(exact["fc"][name] - params["fc"][name]).max()
        assert np.abs(found["fc"][name] - exact["fc"][name]).max() < 0.02 * moved


def test_muon_updates_matrices_orthogonally_and_adam_the_rest():
    boxed = {name: part for tree in toy.boxed_params(jax.random.key(0)) for name, part in tree.items()}
    config = OptimizerConfig(1e-3, clip_norm=None, muon_learning_rate=0.5)
    optimizer = make_optimizer(config, 10, boxed)
    params = unbox(boxed)
    gradients = jax.tree.map(
        lambda leaf: np.random.default_rng(leaf.size).standard_normal(leaf.shape, np.float32), params
    )
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    # (layers, outputs, inputs); heads and head dims are inputs of `out`.
    for name, size in (("fc", (3, 16, 8)), ("out", (3, 8, 16))):
        steps = np.asarray(updates["layers"][name]["weight"]).reshape(size)
        singular = np.linalg.svd(steps, compute_uv=False) / (0.5 * np.sqrt(max(1, size[1] / size[2])))
        assert (singular > 0.6).all()
        assert (singular < 1.3).all()
    np.testing.assert_allclose(np.abs(updates["layers"]["fc"]["bias"]), 1e-3, rtol=1e-4)
    np.testing.assert_allclose(np.abs(updates["embed"]["embedding"]), 1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"learning_rate": 0.0}, ["learning_rate", "above 0"]),
        ({"schedule": "linear"}, ["schedule", "linear", "cosine"]),
        ({"b2": 1.0}, ["b2", "below 1"]),
        ({"clip_norm": 0.0}, ["clip_norm", "None"]),
        ({"floor": 1.5}, ["floor", "0..1"]),
        ({"moments_dtype": "bfloat16", "b2": 0.999}, ["moments_dtype", "0.999", "float32"]),
    ],
)
def test_invalid_optimizer_values_are_rejected(wrong, words):
    with pytest.raises(JanusError) as raised:
        OptimizerConfig(**{"learning_rate": 1e-3, **wrong})
    assert all(word in str(raised.value) for word in words)


def test_warmup_longer_than_training_is_rejected():
    with pytest.raises(JanusError, match=r"warmup_steps is 20; .* 10 steps"):
        make_optimizer(OptimizerConfig(1e-3, warmup_steps=20), 10)
