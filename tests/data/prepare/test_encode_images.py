import dataclasses

import jax
import numpy as np
import pytest

from janus_jax.data.pipeline.examples import ExampleBuilder
from janus_jax.data.pipeline.packing import Budget, pack
from janus_jax.data.prepare.encode_images import ImageEncoder, encode_shards, latent_encoding, token_encoding
from janus_jax.data.prepare.parallel import write_shards
from janus_jax.data.prepare.shard_writer import open_shard_writer
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.models.backbone import apply, to_pixels
from janus_jax.models.janusflow import JanusFlow
from janus_jax.models.vq import VQTokenizer
from janus_jax.processing import EDITING_STYLES, Task, open_image, prepare_generation
from tests import tiny
from tests.data.samples import image, json_lines, read_back, spec


@pytest.fixture(scope="module")
def params():
    return tiny.stacked_params()["gen_encoder"]


@pytest.fixture
def writer(tmp_path):
    """Eleven images of different shapes, in shards of four."""
    for number in range(11):
        (tmp_path / f"{number}.jpg").write_bytes(image(number, size=(20 + 7 * number, 60 - 3 * number)))
    rows = [{"image": f"{number}.jpg", "caption": f"Number {number}."} for number in range(11)]
    file = json_lines(tmp_path / "c.jsonl", rows)
    given = dataclasses.replace(spec(tmp_path / "out", "captions", file, shard_records=4), tokenizer="tiny")
    writer = open_shard_writer(given)
    write_shards(writer, writer.unfinished(), workers=1, max_rejected=0.0)
    return writer


def token_encoder(params, batch_size, devices):
    return ImageEncoder(token_encoding(tiny.CONFIG.gen_encoder), params, batch_size, jax.local_devices()[:devices])


@pytest.mark.parametrize(("batch_size", "devices"), [(3, 1), (5, 8)])
def test_tokens_are_of_the_center_of_each_image(writer, params, batch_size, devices):
    counts = []
    encoder = token_encoder(params, batch_size, devices)
    encode_shards(writer, writer.without_image_tokens(), encoder, counts.append)
    writer.finish(0.0)
    records = read_back(writer.spec.output)
    assert counts[-1] == len(records) == 11
    config = tiny.CONFIG.gen_encoder
    pixels = np.stack([prepare_generation(open_image(record.images[0]), config.image_size) for record in records])
    encode = jax.jit(lambda params: apply(VQTokenizer(config).encode, params, to_pixels(pixels)))
    expected = encode(params)
    np.testing.assert_array_equal(np.stack([record.image_tokens for record in records]), expected)
    assert len(np.unique(expected)) > 1
    assert [record.text for record in records] == [f"Number {number}." for number in range(11)]


def test_latents_match_those_computed_in_training(writer):
    params = tiny.stacked_params(tiny.FLOW)
    encoding = latent_encoding(tiny.FLOW.vae, tiny.FLOW.gen_image_size)
    encoder = ImageEncoder(encoding, params["vae"], 4, jax.local_devices()[:2])
    encode_shards(writer, writer.without_image_tokens(), encoder)
    writer.finish(0.0)
    records = read_back(writer.spec.output)
    builder = ExampleBuilder(tiny.processor(tiny.FLOW), random_crop=True, precomputed_image_tokens=True)
    examples = [[builder(record)] for record in records]
    batch = pack(examples, Budget(128, 0, 1, 0), builder.processor, precomputed_image_tokens=True)
    model = JanusFlow(tiny.FLOW)
    latents = jax.jit(lambda batch: apply(model.target_latents, params, batch).values)
    np.testing.assert_allclose(batch.gen_latents, latents(batch._replace(gen_latents=None)), atol=1e-4)


def test_latents_of_another_vae_are_rejected(params):
    record = Record("r", Task.GENERATION, "A boat.", images=(image(0),), image_latents=np.zeros(12, np.float32))
    with pytest.raises(RejectedRecord, match="12 latent values; the model needs 1024") as error:
        ExampleBuilder(tiny.processor(tiny.FLOW), precomputed_image_tokens=True)(record)
    assert error.value.reason is RejectReason.BAD_IMAGE_LATENTS


def test_encoded_shards_are_not_encoded_again(writer, params):
    encoder = token_encoder(params, 8, 1)
    encode_shards(writer, [1], encoder)
    assert writer.without_image_tokens() == [0, 2]
    before = writer.shard(1).stat()
    encode_shards(writer, writer.without_image_tokens(), encoder)
    assert writer.shard(1).stat() == before
    assert writer.finish(0.0).total.records == 11


MESSAGES = [
    {"role": "user", "content": "<image>Draw it, then in red."},
    {"role": "assistant", "content": "Here: <image>"},
    {"role": "user", "content": "Go on."},
    {"role": "assistant", "content": "<image> Done."},
]


def edits(folder):
    """Writes edits with one or two source images of different shapes."""
    shapes = [(20, 60), (61, 24), (40, 40)]
    for number in range(9):
        (folder / f"{number}.png").write_bytes(image(number, "PNG", size=shapes[number % 3]))
    rows = [
        {"input_image": ["0.png", "1.png"][: 1 + i % 2], "input_prompt": f"{i}.", "output_image": f"{i + 2}.png"}
        for i in range(5)
    ]
    return "edits", json_lines(folder / "edits.jsonl", rows)


def conversations(folder):
    """Writes conversations with one input image and two target images, and one without images."""
    for number in range(9):
        (folder / f"{number}.png").write_bytes(image(number, "PNG", size=(20 + 7 * number, 60 - 3 * number)))
    rows = [{"messages": MESSAGES, "images": [f"{i + j}.png" for j in (0, 3, 5)]} for i in range(3)]
    none = {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]}
    return "conversations", json_lines(folder / "chat.jsonl", [rows[0], none, *rows[1:]])


@pytest.mark.parametrize(
    ("write", "style"), [(edits, "janus_4o"), (edits, "janus_pro_r1_edit"), (conversations, "janus_4o")]
)
def test_tokens_of_context_images_match_those_computed_in_training(tmp_path, params, write, style):
    kind, file = write(tmp_path)
    given = spec(tmp_path / "out", kind, file, task=Task.INTERLEAVED if write is conversations else None)
    writer = open_shard_writer(dataclasses.replace(given, tokenizer="tiny", editing=style))
    write_shards(writer, writer.unfinished(), workers=1, max_rejected=0.0)
    counts = []
    encode_shards(writer, [0], token_encoder(params, 4, 1), counts.append)
    writer.finish(0.0)
    records = read_back(writer.spec.output)
    assert counts[-1] == len(records) == sum(1 for _ in file.open())
    tokenizer = VQTokenizer(tiny.CONFIG.gen_encoder)
    encode = jax.jit(lambda images: apply(tokenizer.encode, params, to_pixels(images)))
    settings = {"editing": EDITING_STYLES[style], "interleaved_features": True}
    of_pixels = ExampleBuilder(tiny.processor(), **settings)
    precomputed = ExampleBuilder(tiny.processor(), precomputed_image_tokens=True, **settings)
    num_images = []
    for record in records:
        expected, example = of_pixels(record), precomputed(record)
        images = expected.sequence.gen_images
        num_images.append(len(images))
        assert len(example.sequence.gen_images) == 0
        np.testing.assert_array_equal(example.sequence.tokens, expected.sequence.tokens)
        np.testing.assert_array_equal(example.sequence.und_images, expected.sequence.und_images)
        if len(images):
            padded = np.zeros((3, *images.shape[1:]), np.uint8)
            padded[: len(images)] = images
            np.testing.assert_array_equal(example.gen_ids, encode(padded)[: len(images)])
            assert len(np.unique(example.gen_ids)) > 1
    assert set(num_images) == ({0, 2} if write is conversations else {1, 2, 3} if style == "janus_4o" else {2, 3})
