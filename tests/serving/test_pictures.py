"""/v1/images with the openai package over a socket."""

import io

import httpx
import numpy as np
import openai
import pytest

from tests import tiny
from tests.serving.conftest import picture

EXTRA = {"seed": 5, "guidance_scale": 3.0}


@pytest.mark.nightly
def test_pictures_are_those_of_the_model(server):
    answer = server.client.images.generate(model="tiny", prompt="A red boat", n=2, extra_body=EXTRA)
    expected = server.model.generate("A red boat", 2, 5, guidance_scale=3.0)[0]
    found = [picture(one.b64_json) for one in answer.data]
    # Up to rounding, as for all batch sizes.
    np.testing.assert_allclose(np.array(found, int), np.array(expected, int), atol=1)
    assert answer.usage.output_tokens == 2 * tiny.CONFIG.num_gen_tokens


@pytest.mark.nightly
def test_pictures_have_urls(server):
    answer = server.client.images.generate(
        model="tiny", prompt="A boat", response_format="url", output_format="webp", extra_body=EXTRA
    )
    response = httpx.get(answer.data[0].url)
    assert response.headers["content-type"] == "image/webp"
    assert picture_size(response.content) == (tiny.CONFIG.gen_image_size,) * 2
    assert httpx.get(f"{server.url}/files/absent.png").status_code == 404


def picture_size(content):
    from PIL import Image

    return Image.open(io.BytesIO(content)).size


@pytest.mark.nightly
def test_partial_pictures_are_streamed(server):
    events = list(
        server.client.images.generate(model="tiny", prompt="A tree", stream=True, partial_images=2, extra_body=EXTRA)
    )
    assert [event.type for event in events][-1] == "image_generation.completed"
    assert sum(event.type == "image_generation.partial_image" for event in events) >= 1
    alone = server.client.images.generate(model="tiny", prompt="A tree", extra_body=EXTRA)
    assert events[-1].b64_json == alone.data[0].b64_json
    assert events[-1].usage.output_tokens == tiny.CONFIG.num_gen_tokens


@pytest.mark.nightly
def test_edits_are_those_of_the_model(server):
    source = tiny.picture(1)
    stream = io.BytesIO()
    source.save(stream, "png")
    answer = server.client.images.edit(
        model="tiny", image=("a.png", stream.getvalue()), prompt="Make it red.", extra_body={"seed": 4}
    )
    expected = server.model.edit(source, "Make it red.", seed=4)[0]
    np.testing.assert_allclose(np.array(picture(answer.data[0].b64_json), int), np.array(expected, int), atol=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"n": 5}, "allows 4"),
        ({"size": "1024x1024"}, "makes pictures of"),
        ({"extra_body": {"guidance_scale": -1}}, "guidance_scale"),
        ({"extra_body": {"steps": 5}}, "no setting steps"),
        ({"partial_images": 1}, "needs stream"),
    ],
)
def test_bad_requests_are_errors_of_openai(server, changes, message):
    with pytest.raises(openai.BadRequestError, match=message):
        server.client.images.generate(**({"model": "tiny", "prompt": "A boat"} | changes))


def test_a_damaged_source_is_an_error(server):
    with pytest.raises(openai.BadRequestError, match="not an image"):
        server.client.images.edit(model="tiny", image=("a.png", b"nothing"), prompt="Make it red.")
