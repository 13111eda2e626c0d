"""A minimal server of transformers' Janus on PyTorch, one request at a time, for `benchmarks.serve_compare`.

    python -m benchmarks.serve_torch FOLDER

It has the routes /v1/chat/completions and /v1/images/generations with greedy decoding, as someone would write it around
`generate` of transformers. Tokenizer and image preprocessing are those of this project, so that both servers compute
the same.
"""

import asyncio
import queue
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import fastapi
import numpy as np
import uvicorn
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image

from benchmarks.shared import copy_weights
from checkpoints_convert.transformers_janus import config_to_json
from janus_jax.commands import cli
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.processing import Message, Processor
from janus_jax.serving.chat import sse
from janus_jax.serving.images import encode, read_image, to_base64
from janus_jax.serving.options import ServerOptions
from janus_jax.serving.protocol import ChatBody, PictureBody

# In transformers a generated image has as many tokens as an input image.
RANDOM = JanusConfig(
    name="8 layers of width 512",
    und_encoder=SiglipConfig(image_size=192, patch_size=16, width=512, depth=6, num_heads=8, mlp_dim=2048),
    gen_encoder=VQConfig(image_size=96, base_channels=32, channel_multipliers=(1, 1, 2, 2), codebook_size=4096),
    llm=LlamaConfig(512, 512, 8, 8, 8, 64, 1408, max_positions=512),
    gen_head_width=512,
)
GUIDANCE_SCALE = 5.0


class TorchJanus:
    """Janus of transformers with the random weights of `benchmarks.shared.weights`."""

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        self.processor = Processor.from_directory(folder, RANDOM)
        special = self.processor.tokenizer.special
        self._torch, self._image = torch, special.image_placeholder
        torch.set_grad_enabled(False)
        json = config_to_json(RANDOM, "float32", self._image)
        model = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**json))
        self.model = model.eval()
        copy_weights(self.model, RANDOM)
        ids = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": special.pad}
        self._text = transformers.GenerationConfig(do_sample=False, **ids)
        self._pictures = transformers.GenerationConfig(do_sample=False, guidance_scale=GUIDANCE_SCALE, **ids)
        self._pictures.generation_kwargs = {"boi_token_id": special.begin_of_image}

    def answer(self, messages: Sequence[Message], max_new_tokens: int, put: Any) -> None:
        """Answers a conversation. Calls `put` with each token."""
        torch = self._torch
        sequence = self.processor.understanding_sequence(messages)
        ids = np.where(sequence.und_patch_index >= 0, self._image, sequence.tokens)[None].astype(np.int64)
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(ids.shape, dtype=torch.long)}
        if len(sequence.und_images):
            pixels = sequence.und_images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            inputs["pixel_values"] = torch.from_numpy(pixels)
        self.model.generate(
            **inputs,
            generation_config=self._text,
            generation_mode="text",
            max_new_tokens=max_new_tokens,
            streamer=_Streamer(put),
        )

    def picture(self, prompt: str) -> Image.Image:
        """Generates an image."""
        torch = self._torch
        ids = torch.from_numpy(self.processor.generation_prompt(prompt).tokens[None].astype(np.int64))
        tokens = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=self._pictures, generation_mode="image"
        )
        pixels = (self.model.decode_image_tokens(tokens).float() + 1) / 2 * 255
        return Image.fromarray(pixels.clamp(0, 255).to(torch.uint8)[0].numpy())


class _Streamer:
    """Passes generated tokens on. transformers sends the prompt first."""

    def __init__(self, put: Any) -> None:
        self._put, self._saw_prompt = put, False

    def put(self, ids: Any) -> None:
        """Receives tokens."""
        if self._saw_prompt:
            for token in ids.flatten().tolist():
                self._put(token)
        self._saw_prompt = True

    def end(self) -> None:
        """Receives the end, which the caller of `generate` notices anyway."""


def make_app(model: TorchJanus) -> fastapi.FastAPI:
    """Returns the application."""
    app, turn, options = fastapi.FastAPI(), asyncio.Lock(), ServerOptions()

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> StreamingResponse:
        request = body.request(lambda url, param: read_image(url, {}, options, param), options)
        return StreamingResponse(chunks(request.messages, body.max_tokens or 512), media_type="text/event-stream")

    async def chunks(messages: Sequence[Message], max_new_tokens: int) -> AsyncIterator[str]:
        tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        written: list[int] = []
        sent = ""

        def generate() -> None:
            try:
                model.answer(messages, max_new_tokens, tokens.put)
            finally:
                tokens.put(None)

        async with turn:
            threading.Thread(target=generate).start()
            while (token := await asyncio.to_thread(tokens.get)) is not None:
                written.append(token)
                text = model.processor.tokenizer.decode(written)
                if not text.endswith("\N{REPLACEMENT CHARACTER}") and text != sent:
                    yield _chunk({"content": text.removeprefix(sent)}, None)
                    sent = text
        yield _chunk({"content": model.processor.tokenizer.decode(written).removeprefix(sent)}, "stop")

    @app.post("/v1/images/generations")
    async def generations(body: PictureBody) -> JSONResponse:
        async with turn:
            image = await asyncio.to_thread(model.picture, body.prompt)
        return JSONResponse({"data": [{"b64_json": to_base64(encode(image, "png"))}]})

    return app


def _chunk(delta: dict[str, Any], reason: str | None) -> str:
    return sse({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def main(argv: Sequence[str]) -> None:
    """Serves the model until the process is stopped."""
    app = make_app(TorchJanus(Path(argv[0])))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"Serving transformers at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    cli.run(main, positional=["FOLDER"])
