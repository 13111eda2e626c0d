"""Compares Janus and Janus-Pro with the PyTorch implementation in float32.

Every test runs on a small model and, as a slow test, on a model of true size.
"""

import dataclasses
import os
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.released import LAYOUT, config_from_json
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution
from janus_jax.generation.decode import guide
from janus_jax.generation.image_tokens import sample_image_tokens
from janus_jax.generation.sampling import SamplingConfig
from janus_jax.generation.text import generate_text
from janus_jax.models.backbone import apply, scan_params, to_pixels
from janus_jax.models.janus import Janus
from janus_jax.processing import open_image, prepare_understanding
from tests.golden.conftest import DATA, GoldenSet, assert_close, channels_first, golden_set

# Tokens may differ where the two best logits are closer than this fraction of the logits' range.
NEAR_TIE = 1e-3
GUIDANCE = 5.0


class GoldenModel:
    """The model of a golden set, and its inputs as batches."""

    def __init__(self, files: GoldenSet):
        self.files = files
        self.expected = files.expected
        self.config = config_from_json(JsonObject(files.config, "config.json"), files.shapes)
        self.model = Janus(self.config, Execution(layers="unrolled"))

    @cached_property
    def params(self):
        return self.files.params(LAYOUT, self.config, self.model.execution)

    @cached_property
    def special(self):
        names = ("bos", "eos", "pad", "begin_of_image", "end_of_image", "image_placeholder")
        return dict(zip(names, self.expected["special_ids"].tolist(), strict=True))

    @cached_property
    def images(self):
        size = self.config.und_encoder.image_size
        return np.stack([prepare_understanding(open_image(path), size) for path in self.files.images])

    def apply(self, method, *args):
        run = jax.jit(lambda params, *args: self.model.apply({"params": params}, *args, method=method))
        return run(self.params, *args)

    def batch(self, ids, mask, images=None):
        """Returns a batch of token sequences, each with at most one image."""
        size = self.config.und_encoder.image_size
        images = np.zeros((len(ids), 0, size, size, 3), np.uint8) if images is None else images[:, None]
        is_image = ids == self.special["image_placeholder"]
        return Batch(
            tokens=ids,
            segment_ids=mask.astype(np.int32),
            positions=np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32),
            und_patch_index=np.where(is_image, np.cumsum(is_image, axis=1) - 1, NO_IMAGE).astype(np.int32),
            gen_token_index=np.full_like(ids, NO_IMAGE),
            und_images=images,
            gen_images=np.zeros((len(ids), 0, 16, 16, 3), np.uint8),
        )

    @cached_property
    def understanding(self):
        ids, mask = self.expected["und_input_ids"], self.expected["und_attention_mask"]
        return self.batch(ids, mask, self.images[: len(ids)])

    def teacher_forced(self, batch, inputs, embed, compute_logits):
        """Returns the hidden states of the prompts, and the logits after the prompts and after each input token."""
        steps = inputs.shape[1]
        hidden, cache = self.apply(lambda model, batch: model.prefill(batch, batch.shape[1] + steps), batch)
        logits = [self.apply(compute_logits, hidden[:, -1])]
        extend = jax.jit(
            lambda params, x, positions, cache: apply(
                self.model.extend, params, x, positions, jnp.ones_like(positions), cache
            )
        )
        for step in range(steps):
            x = self.apply(embed, jnp.asarray(inputs[:, step : step + 1]))
            last, cache = extend(self.params, x, batch.positions[:, -1:] + 1 + step, cache)
            logits.append(self.apply(compute_logits, last[:, 0]))
        return hidden, jnp.stack(logits, axis=1)

    @cached_property
    def understanding_logits(self):
        """Logits at position -40, and after the prompt and after each token of the golden answer but the last."""
        model, answer = self.model, self.expected["und_greedy_tokens"]
        hidden, logits = self.teacher_forced(self.understanding, answer[:, :-1], model.embed_text, model.text_logits)
        return np.asarray(self.apply(model.text_logits, hidden[:, -40])), np.asarray(logits)

    @cached_property
    def image_prompts(self):
        """Each prompt, followed by its unconditional sequence."""
        conditional = self.expected["gen_prompt_ids"]
        unconditional = conditional.copy()
        unconditional[:, 1:-1] = self.special["pad"]
        ids = np.stack([conditional, unconditional], axis=1).reshape(-1, conditional.shape[1])
        return self.batch(ids, np.ones_like(ids))

    @cached_property
    def guided_logits(self):
        """Guided logits after the prompt and after each golden token but the last."""
        tokens, model = self.expected["gen_greedy_tokens"], self.model
        _, logits = self.teacher_forced(
            self.image_prompts, np.repeat(tokens[:, :-1], 2, axis=0), model.embed_image_tokens, model.image_logits
        )
        return np.stack([guide(step, len(tokens), GUIDANCE) for step in logits.swapaxes(0, 1)], axis=1)


@pytest.fixture(scope="module", params=["small", pytest.param("true size", marks=pytest.mark.nightly)])
def golden(request):
    if request.param == "small":
        return GoldenModel(golden_set("janus", "janus_small"))
    if "JANUS_GOLDEN_DIR" in os.environ:
        pytest.skip("JANUS_GOLDEN_DIR selects another set")
    return GoldenModel(GoldenSet(DATA / "janus_1b"))


def strided(array, step):
    return np.asarray(array)[..., ::step]


def vocabulary_step(golden, columns):
    return golden.config.llm.vocab_size // columns


def assert_same_unless_near_tie(actual, expected, logits):
    """Asserts that tokens are equal wherever the two best logits are not nearly equal."""
    best = np.sort(logits, axis=-1)[..., -2:]
    clear = best[..., 1] - best[..., 0] > NEAR_TIE * np.ptp(logits, axis=-1)
    assert clear.mean() > 0.5, "the two best logits are nearly equal at most steps"
    np.testing.assert_array_equal(actual[clear], expected[clear])


def test_janus_pixels(golden):
    pixels = channels_first(to_pixels(golden.images))
    assert_close(pixels[:, :, ::7, ::7], golden.expected["pixels"], 1e-6)


@pytest.mark.slow
def test_janus_vision_features(golden):
    features = golden.apply(lambda model, pixels: model.und_encoder(pixels), to_pixels(golden.images))
    assert_close(features[:, ::48, ::61], golden.expected["vision_features"], 1e-5)


@pytest.mark.slow
def test_janus_aligned_features(golden):
    expected = golden.expected["aligned_features"]
    features = golden.apply(golden.model.embed_input_images, to_pixels(golden.images))
    width = features.shape[-1]
    # The stride between the stored features depends on the width.
    step = next(step for step in (61, 7) if len(range(0, width, step)) == expected.shape[-1])
    assert_close(features[:, ::48, ::step], expected, 2e-5)


def test_janus_understanding_logits(golden):
    middle, logits = golden.understanding_logits
    assert_close(strided(logits[:, 0], vocabulary_step(golden, 2048)), golden.expected["und_logits_last"], 1e-4)
    assert_close(strided(middle, vocabulary_step(golden, 512)), golden.expected["und_logits_mid"], 1e-4)


def test_janus_understanding_best_tokens(golden):
    logits = golden.understanding_logits[1][:, 0]
    for row, ids in zip(logits, golden.expected["und_logits_top"], strict=True):
        # The eight golden tokens are the best ones, up to near ties.
        assert row[ids].min() >= np.sort(row)[-8] - NEAR_TIE * np.ptp(row)


def test_janus_greedy_answer_after_the_golden_tokens(golden):
    logits = golden.understanding_logits[1]
    assert_same_unless_near_tie(logits.argmax(-1), golden.expected["und_greedy_tokens"], logits)


@pytest.mark.slow
def test_janus_greedy_answer_of_the_sampler(golden):
    expected, logits = golden.expected["und_greedy_tokens"], golden.understanding_logits[1]
    keys = jax.random.split(jax.random.key(0), len(expected))
    steps = generate_text(
        golden.model,
        golden.params,
        golden.understanding,
        keys,
        SamplingConfig(),
        stop_tokens=[-1],
        max_new_tokens=expected.shape[1],
        chunk=5,
    )
    written = np.concatenate(list(steps), axis=1)
    assert_equal_until_near_tie(written, expected, logits)


def assert_equal_until_near_tie(actual, expected, logits):
    """Asserts that tokens are equal up to the first step at which the two best logits are nearly equal."""
    best = np.sort(logits, axis=-1)[..., -2:]
    near = best[..., 1] - best[..., 0] <= NEAR_TIE * np.ptp(logits, axis=-1)
    certain = np.cumsum(near, axis=1) == 0
    assert certain.any()
    np.testing.assert_array_equal(actual[certain], expected[certain])


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_janus_text_logits(golden, layers):
    ids = golden.expected["text_input_ids"]
    batch = golden.batch(ids, np.ones_like(ids))
    model, params = golden.model, golden.params
    if layers == "scanned":
        if golden.files.path == DATA / "janus_1b":
            pytest.skip("scanned and unrolled parameters of true size do not fit in memory together")
        model = Janus(golden.config, Execution(layers="scanned"))
        params = scan_params(params, golden.config)
    logits = model.apply({"params": params}, batch, method=lambda model, batch: model.text_logits(model(batch)))
    assert_close(strided(logits[0], vocabulary_step(golden, 256)), golden.expected["text_logits"], 1e-4)


@pytest.mark.parametrize("step", [0, 1, 11, 23])
def test_janus_guided_logits(golden, step):
    logits = strided(golden.guided_logits[:, step], 16)
    assert_close(logits, golden.expected[f"gen_cfg_logits_step{step}"], 1e-4)


def test_janus_guided_tokens_after_the_golden_tokens(golden):
    logits, margins = golden.guided_logits, golden.expected["gen_margins"]
    clear = margins > NEAR_TIE * np.ptp(logits, axis=-1)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(logits.argmax(-1)[clear], golden.expected["gen_greedy_tokens"][clear])


def test_janus_guided_tokens_of_the_sampler(golden):
    expected = golden.expected["gen_greedy_tokens"]
    # A smaller image has enough tokens for the golden set.
    side = int(np.ceil(np.sqrt(expected.shape[1])))
    gen_encoder = dataclasses.replace(
        golden.config.gen_encoder, image_size=side * golden.config.gen_encoder.downsampling
    )
    model = Janus(dataclasses.replace(golden.config, gen_encoder=gen_encoder), golden.model.execution)
    keys = jax.random.split(jax.random.key(0), (len(expected), 1))
    ids = sample_image_tokens(
        model, golden.params, golden.image_prompts, keys, SamplingConfig(), guidance_scale=GUIDANCE
    )
    assert ids.shape == (len(expected), side**2)
    assert_equal_until_near_tie(np.asarray(ids)[:, : expected.shape[1]], expected, golden.guided_logits)


@pytest.fixture(scope="module")
def latents(golden):
    return golden.apply(lambda model, pixels: model.gen_encoder.latents(pixels), to_pixels(golden.images))


@pytest.mark.slow
def test_janus_vq_latents(golden, latents):
    assert_close(channels_first(latents)[:, :, ::3, ::3], golden.expected["vq_latents"], 1e-4)


def test_janus_vq_tokens(golden, latents):
    ids = golden.apply(lambda model, latents: model.gen_encoder.quantize(latents), latents)
    clear = golden.expected["vq_margin"] >= 1e-3
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(np.asarray(ids)[clear], golden.expected["vq_ids"][clear])


@pytest.mark.slow
def test_janus_vq_decoded_pixels(golden):
    pixels = channels_first(golden.apply(golden.model.detokenize, golden.expected["decode_ids"]))
    assert_close(pixels[:, :, ::6, ::6], golden.expected["decoded_pixels"], 1e-4)
