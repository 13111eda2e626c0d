import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution
from janus_jax.models.backbone import apply as apply_eagerly
from janus_jax.models.janusflow import JanusFlow, next_image_index
from janus_jax.models.uvit import _by_convolution, _by_matrix, _by_shifts
from janus_jax.models.vae import VAE, Gaussian
from tests import tiny

MODEL = JanusFlow(tiny.FLOW)
# Without jit, jax compiles every operation, which takes minutes.
apply = jax.jit(apply_eagerly, static_argnums=0)
N = tiny.FLOW.num_gen_tokens


@pytest.fixture(scope="module")
def run():
    params = tiny.stacked_params(tiny.FLOW)

    @jax.jit
    def velocities(batch):
        states = apply(MODEL.states, params, batch)
        return states.hidden, apply(MODEL.velocities, params, batch, states)

    return velocities


def latents(seed, *images):
    g = tiny.FLOW.gen_encoder
    shape = (*images, g.latent_size, g.latent_size, g.latent_channels)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def sequence(prompt):
    return tiny.processor(tiny.FLOW).generation_sequence(prompt, tiny.picture(0))


def packed(sequences):
    """Returns a batch of one sequence in which the given sequences are packed, as in training."""
    segments = np.concatenate([np.full(len(one), number, np.int32) for number, one in enumerate(sequences, 1)])
    token_index = [
        np.where(one.gen_token_index == NO_IMAGE, NO_IMAGE, one.gen_token_index + image * N)
        for image, one in enumerate(sequences)
    ]
    und = tiny.FLOW.und_encoder.image_size
    return Batch(
        tokens=np.concatenate([one.tokens for one in sequences])[None],
        segment_ids=segments[None],
        positions=np.concatenate([np.arange(len(one), dtype=np.int32) for one in sequences])[None],
        und_patch_index=np.full((1, len(segments)), NO_IMAGE, np.int32),
        gen_token_index=np.concatenate(token_index)[None].astype(np.int32),
        und_images=np.zeros((1, 0, und, und, 3), np.uint8),
        gen_images=np.zeros((1, 0, 32, 32, 3), np.uint8),
    )


@pytest.mark.slow
def test_packed_images_have_the_velocities_of_separate_ones(run):
    sequences, z = [sequence("Ink"), sequence("A red boat on a lake")], latents(0, 1, 2)
    times = np.array([[0.25, 0.75]], np.float32)
    hidden, together = run(packed(sequences)._replace(gen_latents=z, gen_times=times))
    assert hidden.shape == (1, sum(map(len, sequences)), tiny.FLOW.llm.width)
    for index, one in enumerate(sequences):
        part = slice(index, index + 1)
        alone = run(packed([one])._replace(gen_latents=z[:, part], gen_times=times[:, part]))[1]
        np.testing.assert_allclose(together[:, part], alone, atol=1e-4)


def test_target_latents_default_to_the_means_of_the_vae():
    processor, params = tiny.processor(tiny.FLOW), tiny.stacked_params(tiny.FLOW)
    batch = processor.left_pad([sequence("Ink")])
    found = apply(MODEL.target_latents, params, batch)
    pixels = jnp.asarray(batch.gen_images[:, 0], jnp.float32) / 127.5 - 1
    expected = apply(MODEL.encode_images, params, pixels).mean
    np.testing.assert_allclose(found.values[:, 0], expected, atol=1e-4)


def test_latents_are_scaled_after_encoding_and_before_decoding():
    params, pixels = tiny.stacked_params(tiny.FLOW), latents(0, 1)[:, :, :, :3].repeat(2, 1).repeat(2, 2)
    scale, vae = tiny.FLOW.vae.scaling_factor, VAE(tiny.FLOW.vae)
    bare = apply(vae.encode, params["vae"], pixels)
    scaled = apply(MODEL.encode_images, params, pixels)
    np.testing.assert_allclose(scaled.mean, bare.mean * scale, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(scaled.log_variance / 2), scale * jnp.exp(bare.log_variance / 2), rtol=1e-4)
    z = latents(1, 1)
    np.testing.assert_allclose(
        apply(MODEL.decode_latents, params, z * scale), apply(vae.decode, params["vae"], z), atol=1e-4
    )


def test_gaussian_samples_have_its_mean_and_variance():
    shape = (1, 64, 64, 4)
    samples = Gaussian(jnp.full(shape, 3.0), jnp.full(shape, np.log(4.0))).sample(jax.random.key(0))
    assert float(samples.mean()) == pytest.approx(3, abs=0.1)
    assert float(samples.std()) == pytest.approx(2, abs=0.1)


def test_begin_of_input_image_has_its_trained_embedding():
    question = {"role": "user", "content": "<image_placeholder>\nWhat is it?", "images": [tiny.picture(0)]}
    batch = tiny.processor(tiny.FLOW).left_pad([tiny.processor(tiny.FLOW).understanding_sequence([question])])
    params = tiny.stacked_params(tiny.FLOW)
    x = apply(MODEL.embed, params, batch)
    begin = int(np.argmax(batch.und_patch_index[0] == 0)) - 1
    np.testing.assert_array_equal(x[0, begin], params["beg_of_und"]["embedding"][0])
    text = apply(MODEL.embed_text, params, batch.tokens)
    is_text = batch.und_patch_index[0] == NO_IMAGE
    is_text[begin] = False
    np.testing.assert_array_equal(x[0, is_text], text[0, is_text])


def test_next_image_index_marks_begin_of_image():
    index = np.array([[-1, -1, 0, 1, -1, 2, 3, -1], [0, 1, -1, -1, -1, -1, -1, -1]])
    expected = [[-1, 0, -1, -1, 1, -1, -1, -1], [-1] * 8]
    np.testing.assert_array_equal(next_image_index(index, 2), expected)


@pytest.mark.parametrize("on_cpu", [_by_matrix, _by_shifts])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_depthwise_convolution_on_a_cpu_equals_convolution(size, on_cpu):
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 6, 8), np.float32), rng.standard_normal((size, size, 1, 8), np.float32)
    found, expected = (
        jax.jit(jax.value_and_grad(lambda x, kernel, f=f: jnp.sin(f(x, kernel)).sum(), argnums=(0, 1)))(x, kernel)
        for f in (on_cpu, _by_convolution)
    )
    np.testing.assert_allclose(jax.jit(on_cpu)(x, kernel), _by_convolution(x, kernel), atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), found, expected)


def test_vae_of_a_float16_model_computes_in_float32():
    params = tiny.stacked_params(tiny.FLOW)["vae"]
    z = 1e3 * latents(0, 1)
    half, full = (VAE(tiny.FLOW.vae, Execution(dtype=dtype)) for dtype in ("float16", "float32"))
    np.testing.assert_array_equal(apply(half.decode, params, z), apply(full.decode, params, z))


@pytest.mark.slow
def test_bfloat16_velocities_are_close_and_float32(run):
    batch = packed([sequence("Ink")])._replace(gen_latents=latents(0, 1, 1), gen_times=np.array([[0.5]], np.float32))
    model = JanusFlow(tiny.FLOW, Execution(dtype="bfloat16"))
    params, exact = tiny.stacked_params(tiny.FLOW), run(batch)[1]
    rounded = apply(model.velocities, params, batch, apply(model.states, params, batch))
    assert rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()
