"""The web page of the server, made with gradio. The browser loads everything from the server itself."""

import dataclasses
import os
import tempfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import jax

from janus_jax.config import JanusConfig, JanusFlowConfig
from janus_jax.generation.edit_sampler import make_edit_sampler
from janus_jax.generation.image_sampler import ImageSampler, make_image_sampler
from janus_jax.serving.page_handlers import PageHandlers, Pictures
from janus_jax.serving.service import Service

_KEPT_SECONDS = 3600

_FONTS = ("system-ui", "sans-serif")
_CSS = """
.gradio-container { max-width: 60rem !important; width: 100%; margin-inline: auto !important; }
.gradio-container h1 { margin: 0.5rem 0 0; font-size: 1.4rem; }
.gradio-container button[role="tab"] { padding-inline: 0.6rem; }
.gradio-container .prose table { width: 100%; }
.gradio-container .prose :is(table, th, td) { border-color: var(--border-color-primary) !important; text-align: left; }
/* Gradio shares pictures with a host on the web. */
.gradio-container button[aria-label="Share"] { display: none; }
.gradio-container :is(a, button):has(+ button[aria-label="Share"])::after { display: none !important; }
.gallery .grid-wrap { max-height: none !important; min-height: 12rem; }
.gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(45%, 13rem), 1fr)) !important; }
"""


def add_page(app: fastapi.FastAPI, service: Service) -> None:
    """Mounts the page at /, after all routes of the API."""
    # Uploads and pictures are files in a folder that other users of the machine cannot read.
    folder = tempfile.TemporaryDirectory(prefix="janus-serve-", ignore_cleanup_errors=True)
    app.state.page_files = folder
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    page = make_page(service, Path(folder.name))
    page.queue(default_concurrency_limit=None, max_size=service.engine.options.max_queue, api_open=False)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=service.options.max_body_bytes,
        theme=gr.themes.Default(font=_FONTS, font_mono=("ui-monospace", "monospace")),
        css=_CSS,
        app_kwargs={"docs_url": None, "redoc_url": None},
    )


def make_page(service: Service, folder: Path) -> gr.Blocks:
    """Returns the page of a service. Its images are stored in a folder for an hour."""
    handlers, config = PageHandlers(service, folder), service.engine.model.config
    with gr.Blocks(title=service.name, analytics_enabled=False, delete_cache=(_KEPT_SECONDS, _KEPT_SECONDS)) as page:
        gr.Markdown(f"# {service.name}")
        with gr.Tab("Chat"):
            _add_chat(handlers)
        if not (isinstance(config, JanusFlowConfig) and config.vae is None):
            with gr.Tab("Generate"):
                _add_generation(handlers, make_image_sampler(config))
        if isinstance(config, JanusConfig):
            with gr.Tab("Edit"):
                _add_editing(handlers, make_edit_sampler(config))
        with gr.Tab("Model"):
            gr.Markdown(facts(service))
    for block in page.blocks.values():
        _refuse_downloads(block)
    return page


def facts(service: Service) -> str:
    """Returns a table about the model in Markdown."""
    engine = service.engine
    model, config = engine.model, engine.model.config
    leaves = jax.tree.leaves(model.params)
    devices = list(model.mesh.devices.flat) if model.mesh is not None else list(leaves[0].devices())
    execution = model.model.execution
    rows = {
        "Architecture": config.name,
        "Parameters": f"{sum(leaf.size for leaf in leaves):,}",
        "dtype": execution.dtype,
        "Quantization": execution.quantization,
        "Devices": f"{len(devices)} × {devices[0].device_kind}",
        "Mesh": "none"
        if model.mesh is None
        else ", ".join(f"{axis} {size}" for axis, size in model.mesh.shape.items()),
        "Images": f"{config.gen_image_size} × {config.gen_image_size} pixels",
        "Tokens of a sequence": f"{engine.options.max_length:,}",
        "Slots": engine.options.slots,
    }
    return "\n".join(
        [f"| Model | {service.name} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def _add_chat(handlers: PageHandlers) -> None:
    # ChatInterface places the components.
    chatbot = gr.Chatbot(
        render=False,
        show_label=False,
        height="60vh",
        min_height=240,
        placeholder="Attach an image and ask about it.",
        buttons=["copy"],
        feedback_options=None,
        allow_tags=False,
    )
    textbox = gr.MultimodalTextbox(
        render=False,
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        placeholder="Message",
        show_label=False,
        stop_btn=True,
    )
    settings: list[str | gr.components.Component] = [
        gr.Slider(0, 1.5, 0, step=0.05, label="Temperature", render=False),
        gr.Number(0, label="Maximum number of tokens", info="0: the model's default", precision=0, render=False),
        gr.Number(0, label="Seed", precision=0, render=False),
    ]
    gr.ChatInterface(
        handlers.chat,
        multimodal=True,
        chatbot=chatbot,
        textbox=textbox,
        additional_inputs=settings,
        additional_inputs_accordion=gr.Accordion("Settings", open=False, render=False),
        api_visibility="private",
    )


def _add_generation(handlers: PageHandlers, sampler: ImageSampler) -> None:
    prompt = gr.Textbox(label="Prompt", lines=2, placeholder="A lighthouse at dusk")
    with gr.Row():
        count = _count(handlers, "Images", 4)
        best_of = _count(handlers, "Best of", 1, "candidates for each image, of which the model selects one")
    seed, is_random = _seed()
    names, inputs = _settings(sampler)

    async def run(
        prompt: str, count: int, best_of: int, seed: float | None, is_random: bool, *values: Any
    ) -> AsyncGenerator[tuple[Pictures, str, int]]:
        async for one in handlers.generate(prompt, count, best_of, seed, is_random, _chosen(names, values)):
            yield one

    _add_results("Generate", run, prompt, [prompt, count, best_of, seed, is_random, *inputs], seed)


def _add_editing(handlers: PageHandlers, sampler: ImageSampler) -> None:
    with gr.Row():
        source = gr.Image(
            label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320, buttons=[]
        )
        with gr.Column():
            instruction = gr.Textbox(label="Instruction", lines=2, placeholder="Make the sky orange.")
            count = _count(handlers, "Images", 1)
    seed, is_random = _seed()
    names, inputs = _settings(sampler)

    async def run(
        path: str | None, instruction: str, count: int, seed: float | None, is_random: bool, *values: Any
    ) -> AsyncGenerator[tuple[Pictures, str, int]]:
        async for one in handlers.edit(path, instruction, count, seed, is_random, _chosen(names, values)):
            yield one

    _add_results("Edit", run, instruction, [source, instruction, count, seed, is_random, *inputs], seed)


def _add_results(
    label: str, run: Any, text: gr.Textbox, inputs: Sequence[gr.components.Component], seed: gr.Number
) -> None:
    """Adds the button that runs a handler, the gallery and the line about its images."""
    with gr.Row():
        button = gr.Button(label, variant="primary", scale=3, min_width=120)
        stop = gr.Button("Stop", min_width=80)
    gallery = gr.Gallery(
        show_label=False,
        columns=2,
        height="auto",
        object_fit="contain",
        elem_classes="gallery",
        buttons=["download", "fullscreen"],
        interactive=False,
    )
    line = gr.Markdown()
    outputs = [gallery, line, seed]
    clicked = button.click(run, [*inputs], outputs, show_progress="minimal", api_visibility="private")
    entered = text.submit(run, [*inputs], outputs, show_progress="minimal", api_visibility="private")
    stop.click(None, cancels=[clicked, entered], api_visibility="private")


def _count(handlers: PageHandlers, label: str, value: int, info: str | None = None) -> gr.Slider:
    most = handlers.service.options.max_images
    return gr.Slider(1, most, min(value, most), step=1, label=label, info=info)


def _seed() -> tuple[gr.Number, gr.Checkbox]:
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, min_width=120)
        return seed, gr.Checkbox(True, label="New seed each time", min_width=120)


def _settings(sampler: ImageSampler) -> tuple[list[str], list[gr.Number]]:
    """Adds inputs for the numeric settings of a sampler. Returns their names and the inputs."""
    assert dataclasses.is_dataclass(sampler)
    names = [
        one.name
        for one in dataclasses.fields(sampler)
        if one.name in ("guidance_scale", "image_guidance_scale", "temperature", "top_k", "top_p", "steps")
    ]
    with gr.Accordion("Settings", open=False), gr.Row():
        inputs = []
        for name in names:
            value = getattr(sampler, name)
            precision = 0 if isinstance(value, int) else None
            inputs.append(gr.Number(value, label=name.replace("_", " "), precision=precision, min_width=120))
    return names, inputs


def _chosen(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Returns the settings that have a value."""
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _refuse_downloads(block: gr.blocks.Block) -> None:
    """Makes a component refuse web addresses as files. Gradio would download them, whatever the server's options."""
    move = block.async_move_resource_to_block_cache

    async def move_local(path: Any) -> str | None:
        if "://" in str(path):
            raise gr.Error("The page reads no files from the web; upload the file.", print_exception=False)
        return await move(path)

    block.async_move_resource_to_block_cache = move_local  # type: ignore[method-assign, assignment]
