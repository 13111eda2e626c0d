"""What the tests of generation share: a model that draws at once, and what a run leaves."""

import zlib
from types import SimpleNamespace

import numpy as np
from PIL import Image

from janus_jax.evaluation.generation.generate_images import drawing
from janus_jax.evaluation.runner import collect

SIDE = 12


def painted(prompt, number, seed=0):
    """What the painter draws: numbers of prompt, image number and seed."""
    digits = zlib.crc32(f"{prompt} {number} {seed}".encode())
    return np.random.default_rng(digits).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class FakePainter:
    """Draws by prompt, numbers and seed, and keeps what it was asked, batch by batch; stops for good at a batch."""

    def __init__(self, stop_at=None):
        self.asked = []
        self.settings = []
        self.sampler_settings = ("guidance_scale", "temperature")
        self.processor = SimpleNamespace(generation_prompt=lambda prompt: prompt)
        self._stop_at = stop_at

    def sample_images(self, prompts, numbers, seed, **settings):
        if len(self.asked) == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(list(zip(prompts, numbers, strict=True)))
        self.settings.append(settings)
        return [Image.fromarray(painted(prompt, number, seed)) for prompt, number in zip(prompts, numbers, strict=True)]


def draw(benchmark, data, out, painter=None, options=(), batch_size=4, seed=0):
    """A run as the command makes one; the pictures, and their files by id."""
    settled = benchmark.settled(dict(options))
    pictures = benchmark.read(data, settled)
    work = drawing(painter or FakePainter(), out, settled, seed, batch_size)
    answers = collect(pictures, work, out, {"benchmark": benchmark.name, "seed": seed})
    return pictures, {id: str(out / name) for id, name in answers.items()}


def predicted(benchmark, pictures, answers, out):
    """The folder of what the official scorer reads."""
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    benchmark.write_predictions(pictures, answers, folder)
    return folder


def pixels(file):
    return np.asarray(Image.open(file))
