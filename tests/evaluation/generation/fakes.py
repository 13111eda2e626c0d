"""Helpers of the image benchmark tests: a fake image model, and a function that runs a benchmark with it."""

import dataclasses
import zlib
from types import SimpleNamespace

import numpy as np
from PIL import Image

from janus_jax.evaluation.generation.generate_images import generate_images
from janus_jax.evaluation.runner import collect_answers
from tests import tiny

SIZE = 12


def expected_pixels(prompt, indices, seed=0):
    """Returns the pixels that the fake model generates for a prompt, its (prompt, image) indices and a seed."""
    digits = zlib.crc32(f"{prompt} {indices} {seed}".encode())
    return np.random.default_rng(digits).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


class FakeImageModel:
    """Image model whose images depend on prompt, indices and seed. It records the batches.

    Args:
      stop_at: Index of the batch at which the model raises KeyboardInterrupt; None for no interruption.
    """

    def __init__(self, stop_at=None):
        self.batches = []
        self.settings = []
        self.sampler_settings = ("guidance_scale", "temperature")
        self.processor = SimpleNamespace(generation_prompt=lambda prompt: prompt)
        self._stop_at = stop_at

    def sample_images(self, prompts, indices, seed, **settings):
        if len(self.batches) == self._stop_at:
            raise KeyboardInterrupt
        pairs = list(zip(prompts, indices, strict=True))
        self.batches.append(pairs)
        self.settings.append(settings)
        return [Image.fromarray(expected_pixels(*pair, seed)) for pair in pairs]


class FakeEditModel:
    """Model whose edited images depend on source, instruction, indices and seed. It records the batches.

    Args:
      stop_at: See `FakeImageModel`.
    """

    def __init__(self, stop_at=None):
        self.batches = []
        self.settings = []
        self.processor = dataclasses.replace(tiny.processor(), min_side=4)
        self._stop_at = stop_at

    def sample_edits(self, edits, numbers, seed, **settings):
        if len(self.batches) == self._stop_at:
            raise KeyboardInterrupt
        self.batches.append([instruction for _, instruction in edits])
        self.settings.append(settings)
        return [
            Image.fromarray(expected_pixels(f"{instruction} {np.asarray(source).sum()}", number, seed))
            for ([source], instruction), number in zip(edits, numbers, strict=True)
        ]


def run_benchmark(benchmark, data, out, model=None, options=(), batch_size=4, generate=generate_images):
    """Runs a benchmark as `janus-evaluate` does. Returns the requests, and the paths of the images by request id."""
    options = benchmark.resolve_options(dict(options))
    requests = benchmark.read(data, options)
    model = model or FakeImageModel()
    answers = collect_answers(
        requests,
        lambda items: generate(model, items, out, options=options, seed=0, batch_size=batch_size),
        out,
        {"benchmark": benchmark.name},
    )
    return requests, {id: str(out / name) for id, name in answers.items()}


def write_predictions(benchmark, requests, answers, out):
    """Writes the predictions of a benchmark and returns their folder."""
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    benchmark.write_predictions(requests, answers, folder)
    return folder


def read_pixels(file):
    return np.asarray(Image.open(file))
