"""Measures the data pipeline, compared with decoding and resizing the same images with PIL.

    python -m benchmarks.data
    python -m benchmarks.data --ratio 7:3:10 --workers 8x1 --rounds 100

The benchmark makes a prepared dataset of three components: JPEGs of 640 x 480 pixels with questions and answers of 20
to 300 tokens; JPEGs with captions of up to 100 tokens; documents of 50 to 4,000 tokens. Each of the JPEGs is in several
records, because grain shuffles fewer than 1,000 records slowly. The benchmark reports how full the packed
sequences of 4096 tokens are, the examples and images per second and core, and the time from the start of a new Python
process to the first batch.

The pipeline, without threads and worker processes, and PIL alternate in one process on one core. The pipeline makes a
batch; then PIL decodes and resizes the images of this batch, with its own default of memory reuse. `ratio` is PIL's
processor time divided by the pipeline's, which other programs hardly affect; `ratio_wall` compares wall times. The
pipeline also reads, tokenizes and packs, so its time is longer. Both ratios are measured on the two components with
images, and `mixture_ratio` on all components. Results with threads and worker processes are wall times, which need an
idle machine, and examples per second of processor time of all processes. The last line is a JSON object with all
results.
"""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from janus_jax.commands import cli
from janus_jax.config import janus_preset
from janus_jax.data.pipeline.dataset import Component
from janus_jax.data.pipeline.stream import Stream, open_stream
from janus_jax.data.pipeline.stream_config import StreamConfig
from janus_jax.data.records import Record
from janus_jax.data.shards import shard_path, write_metadata, write_shard
from janus_jax.errors import JanusError
from janus_jax.processing import UNDERSTANDING_SYSTEM_PROMPT, Processor, Task, make_byte_level_tokenizer
from janus_jax.processing.images import REUSED_IMAGES

_RATIO = flags.DEFINE_string("ratio", "2:3:5", "understanding : text : generation, in examples")
_ROUNDS = flags.DEFINE_integer("rounds", 40, "batches to measure", lower_bound=1)
_SEQUENCES = flags.DEFINE_integer("sequences", 4, "sequences per batch", lower_bound=1)
_WORKERS = flags.DEFINE_multi_string("workers", ["0x2", "1x1", "2x1"], "worker processes x threads of each, repeatable")
_RECORDS = flags.DEFINE_integer("records", 1000, "records of each component", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 150, "different images of each component", lower_bound=1)

NAMES = ("und", "text", "gen")
SIZE = (640, 480)
GOALS = {"fill": 0.95, "mixture_fill": 0.95, "ratio": 0.85, "mixture_ratio": 0.75}
_FIRST_BATCH = """
import time
begin = time.perf_counter()
from benchmarks.data import make_config, make_processor
from janus_jax.data.pipeline.stream import open_stream
from pathlib import Path
import sys
folder, ratio, sequences = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
workers, threads = map(int, sys.argv[4].split("x"))
config, processor = make_config(folder, ratio, sequences), make_processor(folder)
opened = time.perf_counter()
with open_stream(config, processor, workers=workers, threads=threads) as stream:
    next(stream)
    print(opened - begin, time.perf_counter() - opened)
"""


def make_image(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of random colors, texture and noise, which takes about as long to decode as a photo."""
    width, height = SIZE
    layers = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)).resize(
                SIZE, Image.Resampling.BICUBIC
            ),
            np.float32,
        )
        * share
        for side, share in ((8, 0.5), (40, 0.3), (160, 0.15))
    ]
    pixels = sum(layers) + rng.normal(0, 4, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_records(kind: str, count: int, num_images: int) -> Iterator[Record]:
    """Yields the records of a component. A word is about one token.

    Args:
      kind: Name of the component, one of `NAMES`.
      count: Number of records.
      num_images: Number of different images.
    """
    rng = np.random.default_rng(NAMES.index(kind))
    images = [] if kind == "text" else [make_image(rng) for _ in range(num_images)]
    for number in range(count):
        key = f"{kind}{number}"
        if kind == "text":
            yield Record(key, Task.TEXT, text=_words(rng, int(np.exp(rng.uniform(np.log(50), np.log(4000))))))
        elif kind == "gen":
            caption = _words(rng, int(rng.integers(8, 100)))
            yield Record(key, Task.GENERATION, text=caption, images=(images[number % num_images],))
        else:
            question = f"<image_placeholder>\n{_words(rng, 10)}?"
            answer = _words(rng, int(rng.integers(10, 250)))
            yield Record(
                key,
                Task.UNDERSTANDING,
                messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}),
                images=(images[number % num_images],),
            )


_VOCABULARY = tuple(
    start + middle + end
    for start in ("b", "cl", "dr", "f", "gr", "h", "l", "m", "p", "st")
    for middle in ("a", "ea", "i", "o", "oo", "u")
    for end in ("ck", "d", "ll", "n", "st", "t")
)


def _words(rng: np.random.Generator, count: int) -> str:
    return " ".join(rng.choice(_VOCABULARY, max(count, 1)))


def make_processor(folder: Path) -> Processor:
    """Returns a processor with the image sizes of Janus-Pro-1B and a tokenizer for the words of `make_records`."""
    model = folder / "model"
    config = janus_preset("janus_pro_1b")
    if not model.exists():
        corpus = [" ".join(_VOCABULARY), UNDERSTANDING_SYSTEM_PROMPT] * 9
        make_byte_level_tokenizer(model, corpus, 4096, config.conversation, 384, 576)
    return Processor.from_directory(model, config)


def make_config(folder: Path, ratio: str, sequences: int) -> StreamConfig:
    """Returns the stream config of a mixture of the components in a folder.

    Args:
      ratio: Weights of the components, such as 2:3:5; 0 leaves a component out.

    Raises:
      JanusError: `ratio` does not have three weights.
    """
    weights = [float(part) for part in ratio.split(":")]
    if len(weights) != len(NAMES):
        raise JanusError(f"--ratio is {ratio!r}; it must be three numbers, such as 2:3:5.")
    components = [
        Component(name, folder / name, weight) for name, weight in zip(NAMES, weights, strict=True) if weight > 0
    ]
    return StreamConfig(tuple(components), batch_size=sequences)


def decode_with_pil(file: bytes, kind: str) -> Image.Image:
    """Decodes an image and resizes it to the size that the model reads."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    width, height = image.size
    if kind == "und":
        return image.resize((384, 384 * height // width), Image.Resampling.BICUBIC)
    left = (width - height) // 2
    return image.resize((384, 384), Image.Resampling.BICUBIC, (left, 0, left + height, height))


def processor_seconds() -> float:
    """Returns the processor time of this process and its worker processes."""
    seconds = time.process_time()
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # It has ended, or this is not Linux.
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


@dataclass
class Clock:
    """Context manager that adds up the wall time and the processor time of the blocks it encloses.

    The processor time is that of this process and its worker processes.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter(), processor_seconds()

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter() - self._begin[0]
        self.cpu += processor_seconds() - self._begin[1]


def measure(stream: Stream, files: dict[str, bytes], rounds: int) -> dict[str, float]:
    """Returns the results of alternating between the stream and PIL.

    Args:
      files: JPEG files by the id of their example.
    """
    pipeline, pil, examples, images = Clock(), Clock(), 0, 0
    next(stream)  # The first batch also fills the lookahead.
    for _ in range(rounds):
        with pipeline:
            next(stream)
        names = [name.split("#")[0] for ids in stream.example_ids for name in ids]
        encoded = [(files[name], name.partition("/")[0]) for name in names if name in files]
        Image.core.set_blocks_max(0)
        with pil:
            for file, kind in encoded:
                decode_with_pil(file, kind)
        Image.core.set_blocks_max(REUSED_IMAGES)
        examples, images = examples + len(names), images + len(encoded)
    return {
        "fill": stream.report()["fill/tokens"],
        "examples_per_second_per_core": examples / pipeline.cpu,
        "images_per_second_per_core": images / pipeline.cpu,
        "pil_images_per_second_per_core": images / pil.cpu,
        "ratio": pil.cpu / pipeline.cpu,
        "ratio_wall": pil.wall / pipeline.wall,
    }


def measure_workers(stream: Stream, rounds: int, name: str) -> dict[str, float]:
    """Returns the throughput of a stream with threads or worker processes."""
    for _ in range(3):  # Uses up the examples that were prefetched before the measurement.
        next(stream)
    examples, images, clock = 0, 0, Clock()
    with clock:
        for _ in range(rounds):
            next(stream)
            kinds = [name.partition("/")[0] for ids in stream.example_ids for name in ids]
            examples, images = examples + len(kinds), images + len(kinds) - kinds.count("text")
    return {
        f"workers_{name}_examples_per_second": examples / clock.wall,
        f"workers_{name}_images_per_second": images / clock.wall,
        f"workers_{name}_examples_per_second_per_core": examples / clock.cpu,
    }


def measure_start(folder: Path, workers: str) -> dict[str, float]:
    """Returns the seconds that a new Python process takes to import the pipeline, and from there to its first batch."""
    command = [sys.executable, "-c", _FIRST_BATCH, str(folder), _RATIO.value, str(_SEQUENCES.value), workers]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {f"start_{workers}_import_s": float(printed[0]), f"start_{workers}_first_batch_s": float(printed[1])}


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    available = sorted(os.sched_getaffinity(0))
    report: dict[str, object] = {
        "ratio_of_examples": _RATIO.value,
        "sequences": _SEQUENCES.value,
        "cores": len(available),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("pillow", "numpy", "tokenizers")},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files: dict[str, bytes] = {}
        for kind in NAMES:
            records = list(make_records(kind, _RECORDS.value, _IMAGES.value))
            files |= {f"{kind}/{record.key}": record.images[0] for record in records if record.images}
            (folder / kind).mkdir()
            size = write_shard(shard_path(folder / kind, "train", 0, 1), records, folder)
            write_metadata(folder / kind, "train", [size])
        report["kilobytes_per_image"] = sum(len(file) for file in files.values()) / len(files) / 1e3
        processor, config = make_processor(folder), make_config(folder, _RATIO.value, _SEQUENCES.value)

        for workers in ("0x0", _WORKERS.value[-1]):
            report |= measure_start(folder, workers)
        os.sched_setaffinity(0, available[:1])
        with_images = replace(config, components=tuple(c for c in config.components if c.name != "text"))
        with open_stream(with_images, processor) as stream:
            report |= measure(stream, files, _ROUNDS.value)
        with open_stream(config, processor) as stream:
            mixture = measure(stream, files, _ROUNDS.value)
            report |= {f"mixture_{key}": value for key, value in mixture.items()} | stream.report()
        os.sched_setaffinity(0, available)
        for setting in _WORKERS.value:
            processes, threads = map(int, setting.split("x"))
            with open_stream(config, processor, workers=processes, threads=threads) as stream:
                report |= measure_workers(stream, _ROUNDS.value, setting)
    for key, value in report.items():
        goal = f"   (goal {GOALS[key]})" if key in GOALS else ""
        print(f"{key:32} {f'{value:12.3f}' if isinstance(value, float) else f'{value!s:>12}'}{goal}")
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
