"""Editing with the tiny model."""

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation.decode import prefill
from janus_jax.sharding import make_mesh
from tests import tiny

EDITS = [([tiny.picture(0)], "Add a boat."), ([tiny.picture(1)], "Draw it in ink, with two birds and a tree.")]
STYLES = pytest.mark.parametrize("style", ["janus_4o", "janus_pro_r1_edit"])


def edited(model, edits=EDITS, n=1, **settings):
    return [np.asarray(one.image) for one in model.edit_stream(edits, n, seed=3, **settings)]


@pytest.mark.nightly
@STYLES
def test_an_edit_does_not_depend_on_its_batch(style):
    model = tiny.pretrained()
    together = edited(model, n=2, style=style)
    alone = edited(model, n=2, style=style, batch_size=1)
    # Up to rounding, as for all images.
    np.testing.assert_allclose(np.array(together, int), np.array(alone, int), atol=1)
    assert len({image.tobytes() for image in together}) == 4


@pytest.mark.nightly
@STYLES
def test_parallel_decoding_gives_the_same_edits(style):
    model = tiny.pretrained()
    np.testing.assert_array_equal(edited(model, style=style), edited(model, style=style, parallel_window=4))


@pytest.mark.nightly
def test_edits_on_a_mesh_equal_those_of_one_device():
    mesh = make_mesh(2, 1, 2, jax.devices()[:4])
    np.testing.assert_array_equal(edited(tiny.pretrained()), edited(tiny.pretrained(mesh)))


@pytest.mark.slow
def test_prompts_of_one_bucket_share_a_program():
    model = tiny.pretrained()
    edited(model, EDITS[:1])
    compiled = prefill._cache_size()
    other = edited(
        model, [([tiny.picture(5, (20, 44))], "Add a red boat")], guidance_scale=3.0, image_guidance_scale=1.0
    )
    assert prefill._cache_size() == compiled
    assert len(other) == 1


@pytest.mark.slow
def test_settings_change_the_edit():
    model = tiny.pretrained()
    first = edited(model, EDITS[:1])
    for settings in ({"image_guidance_scale": 0.0}, {"guidance_scale": 1.0}, {"style": "janus_pro_r1_edit"}):
        assert not np.array_equal(first, edited(model, EDITS[:1], **settings))


@pytest.mark.nightly
def test_the_source_image_changes_the_edit():
    model = tiny.pretrained()
    images = [model.edit(tiny.picture(seed), "Add a boat.", temperature=0.0)[0] for seed in (0, 1)]
    assert not np.array_equal(*map(np.asarray, images))


def test_errors_of_edits():
    model = tiny.pretrained()
    with pytest.raises(JanusError, match="at least one source image"):
        model.edit([], "Add a boat.")
    with pytest.raises(JanusError, match="style"):
        model.edit(tiny.picture(0), "Add a boat.", style="pix2pix")
    with pytest.raises(JanusError, match="no setting scale"):
        model.edit(tiny.picture(0), "Add a boat.", scale=3)
    with pytest.raises(JanusError, match="cannot edit images"):
        tiny.pretrained(config=tiny.FLOW).edit(tiny.picture(0), "Add a boat.")
