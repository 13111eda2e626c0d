"""The web page: its handlers, its protection, and a browser on it."""

import asyncio
import shutil

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from janus_jax.generation.engine import EngineClosed, Overloaded
from janus_jax.serving.app import make_app
from janus_jax.serving.options import ServerOptions
from janus_jax.serving.page import facts
from janus_jax.serving.page_handlers import PageHandlers
from tests import tiny
from tests.serving.conftest import KEY, running, until
from tests.serving.test_app import FakeEngine, failing

OPTIONS = ServerOptions(max_images=4, max_pixels=10_000)
EXTRA = {"guidance_scale": 3.0}


def collected(events):
    """Returns all values of a handler."""

    async def collect():
        return [one async for one in events]

    return asyncio.run(collect())


@pytest.fixture
def handlers(server, tmp_path):
    return PageHandlers(make_app(server.engine, "tiny", tiny.CONFIG.gen_image_size, OPTIONS).state.service, tmp_path)


@pytest.fixture
def file(tmp_path):
    tiny.picture(0).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def pixels(pictures):
    return np.array([np.asarray(Image.open(file)) for file, _ in pictures], int)


def message(text, *files):
    return {"text": text, "files": list(files)}


@pytest.mark.slow
def test_the_chat_streams_the_answer_of_the_model_with_the_history(server, handlers, file):
    history = [
        {"role": "user", "content": [{"type": "file", "file": {"path": file}}, {"type": "text", "text": "A boat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
    ]
    pieces = collected(handlers.chat(message("Why?"), history, 0.0, 8, None))
    asked = [
        {"role": "user", "content": "<image_placeholder>\nA boat?", "images": [tiny.picture(0)]},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    ]
    assert pieces[-1] == server.model.chat(asked, max_new_tokens=8)


@pytest.mark.nightly
def test_generated_images_are_those_of_the_model(server, handlers):
    results = collected(handlers.generate("A red boat", 2, 1, 5, False, EXTRA))
    images, line, seed = results[-1]
    expected = server.model.generate("A red boat", 2, 5, **EXTRA)[0]
    np.testing.assert_allclose(pixels(images), np.array(expected, int), atol=1)
    assert len(results) > len(images)  # Unfinished images come before.
    assert (line, seed) == ("seed 5 · guidance scale 3.0", 5)


@pytest.mark.nightly
def test_the_best_candidates_are_those_of_the_model(server, handlers):
    images, line, _ = collected(handlers.generate("A red boat", 2, 2, 5, False, EXTRA))[-1]
    expected = server.model.generate("A red boat", 2, 5, best_of=2, **EXTRA)[0]
    np.testing.assert_allclose(pixels(images), np.array(expected, int), atol=1)
    assert line.endswith("best of 2")


@pytest.mark.nightly
def test_edits_are_those_of_the_model(server, handlers, file):
    images, *_ = collected(handlers.edit(file, "Make it red.", 1, 4, False, {}))[-1]
    expected = server.model.edit(tiny.picture(0), "Make it red.", seed=4)
    np.testing.assert_allclose(pixels(images), np.array(expected, int), atol=1)


def test_limits_are_those_of_the_api(handlers, tmp_path):
    tiny.picture(0, (200, 200)).save(tmp_path / "large.png")
    large = str(tmp_path / "large.png")
    for run, text in (
        (handlers.chat(message("What?", large), [], 0.0, 8, 0), "10000 pixels"),
        (handlers.chat(message("x" * 100_001), [], 0.0, 8, 0), "allows 100000"),
        (handlers.generate("A boat", 4, 2, 0, False, {}), "n is 8; this server allows 4"),
        (handlers.generate(" ", 1, 1, 0, False, {}), "prompt is empty"),
        (handlers.generate("A boat", 1, 1, -1, False, {}), "seed"),
        (handlers.generate("A boat", 1, 1, 0, False, {"guidance_scale": -1.0}), "guidance_scale"),
        (handlers.edit(None, "Make it red.", 1, 0, False, {}), "upload one"),
        (handlers.edit(large, "Make it red.", 1, 0, False, {}), "10000 pixels"),
    ):
        with pytest.raises(gr.Error, match=text):
            collected(run)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Overloaded("8 requests wait or run."), "8 requests wait"),
        (EngineClosed("closed"), "starting or stopping"),
        (ZeroDivisionError("secret"), "failed to compute"),
        (None, "failed to compute"),
    ],
)
def test_errors_of_the_engine_are_one_sentence(error, text, tmp_path):
    service = make_app(FakeEngine(failing(error)), "tiny", 16, OPTIONS).state.service
    with pytest.raises(gr.Error, match=text) as caught:
        collected(PageHandlers(service, tmp_path).chat(message("Hello"), [], 0.0, 8, 0))
    assert "secret" not in str(caught.value)


def test_the_facts_are_those_of_the_model(handlers):
    text = facts(handlers.service)
    assert f"| Parameters | {sum(leaf.size for leaf in tiny.jax.tree.leaves(tiny.stacked_params())):,} |" in text
    assert "| dtype | float32 |" in text
    assert "| Quantization | none |" in text


def test_the_page_needs_a_key_if_the_server_has_keys(server):
    with running(server.engine, ServerOptions(api_keys=(KEY,), page=True)) as own:
        for path in ("/", "/config", "/theme.css", "/gradio_api/heartbeat/x", "//v1/models"):
            for auth in (None, ("user", "wrong"), ("user", "")):
                response = httpx.get(own.url + path, auth=auth)
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"].startswith("Basic")
        assert httpx.post(f"{own.url}/gradio_api/upload", files={"files": b"x"}).status_code == 401
        page = httpx.get(own.url, auth=("user", KEY))
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "fonts.g" not in page.text
        assert "cdn" not in page.text
        assert httpx.get(f"{own.url}/health").status_code == 200
        assert httpx.get(f"{own.url}/v1/models", auth=("user", KEY)).status_code == 401
        unknown = httpx.get(f"{own.url}/v1/absent", headers={"Authorization": f"Bearer {KEY}"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        headers = {"Authorization": f"Bearer {KEY}"}
        wrong = httpx.get(f"{own.url}/v1/images/edits", headers=headers)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"]["code"] == "method_not_allowed"
        refuses_web_addresses(own.url)


def refuses_web_addresses(url):
    """Sends an event whose file is on the web, which gradio would download."""
    client = httpx.Client(base_url=url, auth=("user", KEY), timeout=60)
    dependencies = client.get("/config").json()["dependencies"]
    number = next(one["id"] for one in dependencies if len(one["inputs"]) > 9)
    file = {"path": "http://example.org/a.png", "meta": {"_type": "gradio.FileData"}}
    values = [file, "Make it red.", 1, 0, False, *[None] * (len(dependencies[number]["inputs"]) - 5)]
    event = {"data": values, "fn_index": number, "session_hash": "abc"}
    assert client.post("/gradio_api/queue/join", json=event).status_code == 200
    assert "reads no files from the web" in client.get("/gradio_api/queue/data", params={"session_hash": "abc"}).text


def test_a_page_that_is_off_is_not_found(server):
    assert httpx.get(server.url).status_code == 404


WIDTHS = {1280: "light", 390: "dark"}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_chats_generates_and_edits(server, tmp_path, file, width):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or pytest.skip("chromium is not installed")
    options = ServerOptions(api_keys=(KEY,), page=True, max_images=4)
    with running(server.engine, options) as own, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=WIDTHS[width],
            http_credentials={"username": "user", "password": KEY},
        )
        page = context.new_page()
        page.set_default_timeout(300_000)
        requests, problems = [], []
        context.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        visit(page, own.url, file, tmp_path / str(width))
        until(lambda: server.engine.stats().running == 0)
        page.get_by_role("tab", name="Generate").click()
        page.get_by_label("Prompt").fill(" ")
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("prompt is empty").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert not problems
    assert requests
    assert [url for url in requests if not url.startswith((own.url, "data:", "blob:"))] == []


def visit(page, url, file, folder):
    """Asks about an image, generates four images and edits one. Stores a screenshot of each tab."""
    folder.mkdir(parents=True, exist_ok=True)
    page.goto(url)
    page.get_by_placeholder("Message").wait_for()
    page.screenshot(path=folder / "start.png")
    with page.expect_response(lambda response: "/upload" in response.url):
        page.locator("input[type=file]").first.set_input_files(file)
    page.wait_for_timeout(500)
    page.get_by_placeholder("Message").fill("What is in the picture?")
    page.get_by_placeholder("Message").press("Enter")
    page.get_by_label("Retry").wait_for()
    assert not any(button.is_visible() for button in page.get_by_label("Share").all())
    page.screenshot(path=folder / "chat.png")
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("Prompt").fill("a red circle")
    page.get_by_role("button", name="Generate", exact=True).click()
    gallery = page.get_by_role("tabpanel").filter(has=page.get_by_label("Prompt")).locator(".grid-container img")
    gallery.nth(3).wait_for()
    page.get_by_text("seed").last.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / "generate.png", full_page=True)
    page.get_by_role("tab", name="Edit").click()
    panel = page.get_by_role("tabpanel").filter(has=page.get_by_label("Instruction"))
    panel.locator("input[type=file]").set_input_files(file)
    panel.locator("img").first.wait_for()
    page.get_by_label("Instruction").fill("Make it blue.")
    panel.get_by_role("button", name="Edit", exact=True).click()
    panel.locator(".grid-container img").first.wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / "edit.png", full_page=True)
    page.get_by_role("tab", name="Model").click()
    page.screenshot(path=folder / "model.png")
