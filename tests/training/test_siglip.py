"""Training of an understanding encoder on images and captions."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from checkpoints_convert import open_checkpoint
from janus_jax.config import SiglipConfig
from janus_jax.errors import JanusError
from janus_jax.models.siglip import Siglip
from janus_jax.processing import Tokenizer, make_byte_level_tokenizer
from janus_jax.sharding import make_mesh
from janus_jax.training.array_batches import ArrayBatches, BatchSplit
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.siglip import (
    CaptionedImages,
    CaptionMatcher,
    SiglipRecipe,
    _evaluation_pairs,
    _open_captions,
    siglip_task,
    sigmoid_loss,
    train_siglip,
)
from janus_jax.training.trainer import DataStart, train
from tests.data import prepared
from tests.pseudo import CORPUS

RECIPE = SiglipRecipe(
    encoder=SiglipConfig(image_size=8, patch_size=4, width=32, depth=1, num_heads=2, mlp_dim=64),
    vocab_size=9,
    caption_length=2,
    steps=60,
    batch_size=8,
    optimizer=OptimizerConfig(learning_rate=5e-3),
    text_depth=1,
    width=16,
    report_every=10,
    save_every=20,
)


def run(recipe, workdir, **options):
    """Trains on eight uniform images whose caption names their brightness."""
    levels = np.arange(8)
    images = np.broadcast_to((levels * 32)[:, None, None, None], (8, 8, 8, 3)).astype(np.uint8)
    captions = np.stack([levels + 1, np.zeros(8, int)], axis=1).astype(np.int32)
    split = BatchSplit(recipe.batch_size, recipe.seed)
    result = train(siglip_task(recipe, lambda start: ArrayBatches((images, captions), split), **options), workdir)
    return result.state.params["und_encoder"], result.metrics


def test_the_loss_is_a_binary_cross_entropy_over_all_pairs():
    logits = jnp.array([[2.0, -1.0], [0.5, 3.0]])
    expected = -np.log(1 / (1 + np.exp(-np.array([2.0, 1.0, -0.5, 3.0])))).sum() / 2
    assert sigmoid_loss(logits) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_images_retrieve_their_captions(mesh, tmp_path):
    params, metrics = run(RECIPE, tmp_path, mesh=make_mesh() if mesh else None)
    assert metrics["retrieval"] == 1.0
    assert set(params) == {"patch_embed", "pos_embed", "blocks", "norm"}


@pytest.mark.slow
def test_patchwise_features_do_not_depend_on_other_patches(tmp_path):
    params, metrics = run(dataclasses.replace(RECIPE, patchwise=True), tmp_path)
    assert metrics["retrieval"] == 1.0
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 8, 8, 3))
    changed = pixels.copy()
    changed[:, :4, :4] = 0  # the first patch
    one, other = (np.asarray(Siglip(RECIPE.encoder).apply({"params": params}, image)) for image in (pixels, changed))
    assert np.abs(one - other)[:, 0].max() > 0.1
    np.testing.assert_array_equal(one[:, 1:], other[:, 1:])


@pytest.mark.nightly
def test_a_resumed_run_is_bitwise_equal(tmp_path):
    whole, _ = run(RECIPE, tmp_path / "whole")
    run(dataclasses.replace(RECIPE, steps=30), tmp_path / "parts")
    rest, _ = run(RECIPE, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, rest)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """A recipe with eight captioned pictures and two unusable records."""
    folder = tmp_path_factory.mktemp("captions")
    records = [prepared.generation(number, caption=f"Picture {number}.") for number in range(4)]
    records += [prepared.understanding(number) for number in range(4, 8)]
    records += [prepared.text(8), dataclasses.replace(records[0], text="")]
    prepared.write(folder / "data", records)
    make_byte_level_tokenizer(folder / "tokenizer", CORPUS, 300, "janus_pro")
    data = CaptionedImages((str(folder / "data"),), workers=0, max_rejected=0.5)
    return dataclasses.replace(
        RECIPE,
        encoder=dataclasses.replace(RECIPE.encoder, image_size=16, patch_size=8),
        data=data,
        tokenizer=str(folder / "tokenizer"),
        vocab_size=300,
        caption_length=4,
        steps=2,
    )


def test_captions_are_texts_or_last_answers(captions):
    batches = _open_captions(captions)(DataStart())
    images, tokens = next(batches)
    assert (images.shape, images.dtype) == ((8, 16, 16, 3), np.uint8)
    encode = Tokenizer.from_directory(captions.tokenizer).encode
    expected = [encode(f"{n} Picture {n}.", add_bos=False) for n in range(4)]
    expected += [encode(f"A boat. {n}", add_bos=False) for n in range(4, 8)]
    # Other records replace the two without a caption. Captions are cut to four tokens.
    read = [*tokens.tolist(), *(ids for _ in range(3) for ids in next(batches)[1].tolist())]
    assert set(map(tuple, read)) == {tuple(ids[:4]) for ids in expected}


def test_each_epoch_uses_another_caption_of_an_image(captions, tmp_path):
    records = [prepared.generation(n, caption="a.") for n in range(8)]
    records = [dataclasses.replace(one, alternatives=(f"{n} b.", f"{n} c.")) for n, one in enumerate(records)]
    prepared.write(tmp_path / "data", records)
    data = CaptionedImages((str(tmp_path / "data"),), workers=0)
    open_captions = _open_captions(dataclasses.replace(captions, data=data, caption_length=9))

    def read():
        batches = open_captions(DataStart())
        return [sorted(map(tuple, next(batches)[1].tolist())) for _ in range(3)]  # An epoch is a batch.

    epochs, encode = read(), Tokenizer.from_directory(captions.tokenizer).encode
    assert sorted(itertools.chain(*epochs)) == sorted(
        tuple([*encode(f"{n} {caption}.", add_bos=False), *[0] * 9][:9]) for n in range(8) for caption in "abc"
    )
    assert read() == epochs


@pytest.mark.nightly
def test_the_encoder_is_written_as_a_converted_folder(captions, tmp_path):
    folder = train_siglip(captions, tmp_path)
    assert folder == tmp_path / "und_encoder"
    assert open_checkpoint(folder).config == captions.encoder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": CaptionedImages()}, r"config\.data\.directories is empty"),
        ({"tokenizer": ""}, r"config\.tokenizer is empty"),
        ({"vocab_size": 100}, "vocabulary of 100"),
        ({"batch_size": 128}, r"config\.batch_size is 128, but config\.data has 10 images; lower it to at most 10"),
    ],
)
def test_unusable_recipes_are_refused(captions, fields, message, tmp_path):
    with pytest.raises(JanusError, match=message):
        train_siglip(dataclasses.replace(captions, **fields), tmp_path)


@pytest.mark.nightly
def test_evaluation_reports_retrieval_and_the_towers_match_captions(captions, tmp_path):
    data = dataclasses.replace(captions.data, eval_directories=captions.data.directories)
    recipe = dataclasses.replace(captions, data=data, eval_images=3, trackers=())
    train_siglip(recipe, tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    (scores,) = [line for line in lines if "eval/retrieval" in line]
    images, ids = _evaluation_pairs(recipe)
    assert images.shape == (3, 16, 16, 3)
    texts = [f"{number} Picture {number}." for number in range(3)]
    similarity = CaptionMatcher.from_directory(tmp_path / "two_towers").similarity(
        [Image.fromarray(image) for image in images], texts
    )
    assert scores["eval/retrieval"] == pytest.approx(np.mean(similarity.argmax(axis=1) == np.arange(3)))
    assert scores["eval/image_retrieval"] == pytest.approx(np.mean(similarity.argmax(axis=0) == np.arange(3)))
    assert np.abs(similarity).max() <= 1 + 1e-5
    assert ids[0].tolist() != ids[1].tolist()


def test_too_few_evaluation_images_are_refused(captions, tmp_path):
    prepared.write(tmp_path / "one", [prepared.generation(0)])
    data = dataclasses.replace(captions.data, eval_directories=(str(tmp_path / "one"),))
    with pytest.raises(JanusError, match="eval_directories have fewer than two images"):
        _evaluation_pairs(dataclasses.replace(captions, data=data))
