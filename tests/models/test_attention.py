from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.models import attention
from janus_jax.models.attention import apply_rotary, attend, rotary_angles
from janus_jax.models.masks import Mask
from janus_jax.models.target_platform import default_attention, target_platform
from janus_jax.sharding import make_mesh, use_mesh


def arrays(seed, *shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def by_definition(query, key, value, allowed):
    """Returns softmax(q k^T / sqrt(K)) v, computed in float64 head by head."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[1] // key.shape[1]
    out = np.zeros_like(query)
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            scores = query[b, h] @ key[b, h // group].T / np.sqrt(query.shape[-1])
            scores = np.where(allowed[b], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, h] = weights / weights.sum(-1, keepdims=True) @ value[b, h // group]
    return out


SEGMENTS = np.array([[1] * 100 + [2] * 60 + [3] * 96, [0] * 56 + [1] * 200])


def allowed_pairs(causal, segments):
    same = segments[:, :, None] == segments[:, None, :]
    return same & np.tri(segments.shape[1], dtype=bool) if causal else same


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_attention_is_the_masked_softmax(kernel, causal, kv_heads):
    query, key, value = arrays(0, (2, 4, 256, 128), (2, kv_heads, 256, 128), (2, kv_heads, 256, 128))
    mask = Mask(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal=causal)
    expected = by_definition(query, key, value, allowed_pairs(causal, SEGMENTS))
    np.testing.assert_allclose(attend(query, key, value, mask, kernel), expected, atol=1e-5)


@pytest.mark.parametrize("length", [255, 256, 263])
def test_causal_attention_in_blocks_equals_dense_attention(length):
    query, key, value = arrays(8, (2, 4, length, 8), (2, 2, length, 8), (2, 2, length, 8))
    segments = np.sort(np.random.default_rng(0).integers(0, 4, (2, length)))
    mask = Mask(jnp.asarray(segments), jnp.asarray(segments), causal=True)
    expected = by_definition(query, key, value, allowed_pairs(True, segments))
    np.testing.assert_allclose(attend(query, key, value, mask), expected, atol=1e-5)


@pytest.mark.parametrize("kernel", ["xla", "splash"])
def test_unmasked_attention_reads_all_keys(kernel):
    query, key, value = arrays(1, *[(1, 2, 128, 128)] * 3)
    expected = by_definition(query, key, value, np.ones((1, 128, 128), bool))
    np.testing.assert_allclose(attend(query, key, value, kernel=kernel), expected, atol=1e-5)


@pytest.mark.parametrize("order", ["none", "causal", "continued"])
def test_cudnn_arguments_express_the_mask(monkeypatch, order):
    """Replaces the GPU kernel by jax's XLA implementation."""
    calls = []

    def attention(*args, implementation, is_causal, **rest):
        calls.append((implementation, is_causal))
        return dot_product_attention(*args, implementation="xla", is_causal=is_causal, **rest)

    dot_product_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    query, key, value = (x.astype(jnp.bfloat16) for x in arrays(9, (2, 4, 256, 64), (2, 2, 256, 64), (2, 2, 256, 64)))
    segments, start = jnp.asarray(SEGMENTS), 96 if order == "continued" else 0
    offset = jnp.asarray(start) if order == "continued" else None
    mask = Mask(segments[:, start:], segments, causal=order != "none", query_offset=offset)
    with target_platform("gpu"):
        out = attend(query[:, :, start:], key, value, mask, "cudnn")
    expected = attend(*(x.astype(jnp.float32) for x in (query[:, :, start:], key, value)), mask)
    is_token = (segments[:, start:] != 0)[:, None, :, None]
    np.testing.assert_allclose(jnp.where(is_token, out, 0), jnp.where(is_token, expected, 0), atol=0.02)
    assert calls == [("cudnn", order == "causal")]


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("cudnn", (1, 2, 255, 64)),
        ("cudnn", (1, 2, 256, 60)),
        ("cudnn", (1, 2, 256, 136)),
        ("splash", (1, 2, 100, 64)),
    ],
)
def test_unsupported_shapes_use_xla(kernel, shape):
    query, key, value = (x.astype(jnp.bfloat16) for x in arrays(10, *[shape] * 3))
    with target_platform("gpu"):
        out = attend(query, key, value, Mask(causal=True), kernel)
    np.testing.assert_array_equal(out, attend(query, key, value, Mask(causal=True)))


@pytest.mark.parametrize(
    ("platform", "length", "kernel"),
    [("cpu", 128, "xla"), ("gpu", 128, "cudnn"), ("tpu", 128, "splash"), ("gpu", 1, "xla"), ("tpu", 8, "xla")],
)
def test_automatic_kernel_is_that_of_the_platform(monkeypatch, platform, length, kernel):
    calls = []
    record = {name: lambda *_, name=name: calls.append(name) for name in ("xla", "cudnn", "splash")}
    monkeypatch.setattr(attention, "_KERNELS", record)
    query, key = arrays(11, (1, 2, length, 64), (1, 2, 128, 64))
    with target_platform(platform):
        attend(query, key, key, kernel="auto")
    assert calls == [kernel]


@pytest.mark.parametrize(
    ("capability", "kernel"), [("7.5", "xla"), ("8.0", "cudnn"), ("10.3", "cudnn"), ("gfx942", "xla")]
)
def test_automatic_kernel_suits_the_attached_gpu(monkeypatch, capability, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability=capability)])
    assert default_attention() == kernel


def test_unsupported_shapes_are_logged_once(monkeypatch, caplog):
    attention._log_fallback.cache_clear()
    query, key, value = arrays(12, *[(1, 2, 100, 64)] * 3)
    with caplog.at_level("INFO", logger="absl"), target_platform("tpu"):
        for _ in range(2):
            attend(query, key, value, kernel="auto")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("The attention kernel splash lacks")


@pytest.mark.slow
def test_splash_gradients_equal_those_of_xla():
    query, key, value = arrays(2, *[(2, 2, 256, 128)] * 3)
    mask = Mask(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal=True)

    def loss(kernel):
        return lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v, mask, kernel)))

    found, expected = (jax.grad(loss(kernel), (0, 1, 2))(query, key, value) for kernel in ("splash", "xla"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, expected)


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 2, 1)])
def test_splash_on_a_mesh_equals_splash_on_one_device(sizes):
    data, fsdp, tensor = sizes
    query, key, value = arrays(3, (2, 4, 256, 128), (2, 2, 256, 128), (2, 2, 256, 128))
    mask = Mask(jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), causal=True)
    expected = attend(query, key, value, mask, "splash")
    with use_mesh(make_mesh(data, fsdp, tensor, jax.devices()[: data * fsdp * tensor])):
        run = jax.jit(lambda q, k, v, s: attend(q, k, v, Mask(s, s, causal=True), "splash"))
        actual = run(query, key, value, jnp.asarray(SEGMENTS))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize(("length", "slots", "offset"), [(3, 10, 4), (263, 300, 37), (263, 300, 20), (263, 263, 0)])
def test_queries_after_a_cache_attend_to_earlier_keys_only(length, slots, offset):
    query, key, value = arrays(5, (1, 2, length, 16), (1, 2, slots, 16), (1, 2, slots, 16))
    order = np.arange(slots)[None, :] <= offset + np.arange(length)[:, None]
    mask = Mask(causal=True, query_offset=jnp.array(offset))
    np.testing.assert_allclose(
        attend(query, key, value, mask), by_definition(query, key, value, order[None]), atol=1e-5
    )


def test_query_without_keys_is_finite():
    query, key, value = arrays(6, *[(1, 1, 4, 8)] * 3)
    mask = Mask(jnp.array([[9, 1, 1, 1]]), jnp.array([[1, 1, 1, 1]]))
    assert np.isfinite(attend(query, key, value, mask)).all()


def test_rotary_scores_depend_on_distance_only():
    (query, key) = arrays(7, (1, 1, 1, 32), (1, 1, 1, 32))

    def score(at_query, at_key):
        rotated = [
            apply_rotary(x, rotary_angles(jnp.array([[at]]), 32, 10000.0))
            for x, at in ((query, at_query), (key, at_key))
        ]
        np.testing.assert_allclose(jnp.linalg.norm(rotated[0]), jnp.linalg.norm(query), rtol=1e-5)
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-3)
    assert score(7, 3) != pytest.approx(score(8, 3), rel=1e-3)
