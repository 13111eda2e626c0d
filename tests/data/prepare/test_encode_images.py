import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.data.pipeline.examples import ExampleBuilder
from janus_jax.data.pipeline.packing import Budget, pack
from janus_jax.data.prepare.encode_images import (
    ENCODER,
    ImageTokenizer,
    encode_target_images,
    ids_encoding,
    latents_encoding,
)
from janus_jax.data.prepare.parallel import write_parts
from janus_jax.data.prepare.shard_writer import begin
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.models.backbone import apply, to_pixels
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.vq import VQTokenizer
from janus_jax.processing import Task, open_image, prepare_generation
from tests import tiny
from tests.data.samples import image, job, json_lines, read_back


@pytest.fixture(scope="module")
def params():
    return tiny.stacked_params()["gen_encoder"]


@pytest.fixture
def preparation(tmp_path):
    """Eleven pictures of different shapes, in shards of four."""
    for number in range(11):
        (tmp_path / f"{number}.jpg").write_bytes(image(number, size=(20 + 7 * number, 60 - 3 * number)))
    rows = [{"image": f"{number}.jpg", "caption": f"Number {number}."} for number in range(11)]
    file = json_lines(tmp_path / "c.jsonl", rows)
    given = dataclasses.replace(job(tmp_path / "out", "captions", file, shard_records=4), tokenizer="tiny")
    preparation = begin(given)
    write_parts(preparation, preparation.unfinished(), 1, 0.0)
    return preparation


def tokenizer(params, batch_size, devices):
    return ImageTokenizer(ids_encoding(tiny.CONFIG.gen_encoder), params, batch_size, jax.local_devices()[:devices])


@pytest.mark.parametrize(("batch_size", "devices"), [(3, 1), (5, 8)])
def test_the_ids_are_those_of_the_middle_of_each_image(preparation, params, batch_size, devices):
    shown = []
    encode_target_images(preparation, preparation.without_ids(), tokenizer(params, batch_size, devices), shown.append)
    preparation.finish(0.0)
    records = read_back(preparation.job.output)
    assert sum(shown) == len(records) == 11
    config = tiny.CONFIG.gen_encoder
    pixels = np.stack([prepare_generation(open_image(record.images[0]), config.image_size) for record in records])
    encode = jax.jit(lambda params: apply(VQTokenizer(config).encode, params, to_pixels(pixels)))
    expected = encode(params)
    np.testing.assert_array_equal(np.stack([record.image_tokens for record in records]), expected)
    assert len(np.unique(expected)) > 1
    assert [record.text for record in records] == [f"Number {number}." for number in range(11)]


def test_the_latents_are_those_that_training_would_compute(preparation):
    params = tiny.stacked_params(tiny.FLOW)
    encoding = latents_encoding(tiny.FLOW.vae, tiny.FLOW.gen_image_size)
    vae = ImageTokenizer(encoding, params["vae"], 4, jax.local_devices()[:2])
    encode_target_images(preparation, preparation.without_ids(), vae)
    preparation.finish(0.0)
    records = read_back(preparation.job.output)
    builder = ExampleBuilder(tiny.processor(tiny.FLOW), random_crop=True, precomputed_image_tokens=True)
    examples = [[builder(record)] for record in records]
    batch = pack(examples, Budget(128, 0, 1, 0), builder.processor, precomputed_image_tokens=True)
    model = JanusFlow(tiny.FLOW)
    latents = jax.jit(lambda batch: apply(model.target_latents, params, batch).values)
    np.testing.assert_allclose(batch.gen_latents, latents(batch._replace(gen_latents=None)), atol=1e-4)


def test_latents_of_another_vae_are_a_fault(params):
    record = Record("r", Task.GENERATION, "A boat.", images=(image(0),), image_latents=np.zeros(12, np.float32))
    with pytest.raises(RejectedRecord, match="12 latent values; the model needs 1024") as error:
        ExampleBuilder(tiny.processor(tiny.FLOW), precomputed_image_tokens=True)(record)
    assert error.value.reason is RejectReason.BAD_IMAGE_LATENTS


def test_only_the_encoder_is_placed(params):
    with pytest.raises(KeyError):
        tokenizer({name: params[name] for name in ENCODER[1:]}, 1, 1)
    tokenizer({name: params[name] for name in ENCODER}, 1, 1)


def test_what_was_done_stays_done(preparation, params):
    encoder = tokenizer(params, 8, 1)
    encode_target_images(preparation, [1], encoder)
    assert preparation.without_ids() == [0, 2]
    before = preparation.shard(1).stat()
    encode_target_images(preparation, preparation.without_ids(), encoder)
    assert preparation.shard(1).stat() == before
    assert preparation.finish(0.0).total.size.records == 11
