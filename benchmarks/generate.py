"""Measures the generation of image tokens with windows of parallel decoding, compared with sequential decoding.

    python -m benchmarks.generate
    python -m benchmarks.generate --model examples/shapes/models/Janus-shapes --batches 1,8
    python -m benchmarks.generate --preset janus_pro_1b --dtype bfloat16 --windows 8,16,32 --batches 1,8,32

The first command uses a language model of 12 layers of width 1024 with random weights, and images of 144 tokens. Random
weights are a hard case: their tokens depend on all earlier ones as if by chance. The second command measures a trained
model.

Sequential decoding and all windows run in turn, so that other load on the machine affects all of them. For each batch
and window the benchmark prints the passes of the model per image, the time, images per second without the VQ decoder,
the ratio of the time to that of sequential decoding (median over turns), the share of tokens that differ from those of
sequential decoding, the share of images with such a token, and the differences per token up to the first one of an
image, which are those that rounding itself causes. After each batch it prints all results so far as a JSON object.
Fewer tokens per image need fewer programs: one for each size of the cache.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple, cast, get_args

import jax
import numpy as np
from absl import flags

from benchmarks.shared import (
    PROMPT_LENGTH,
    SMALL,
    bytes_per_token,
    guided_batch,
    machine,
    median_ratio,
    prompt_batch,
    random_prompt,
    random_weights,
    timed,
    use_cores,
)
from janus_jax.accelerators import ACCELERATORS
from janus_jax.batch import Batch
from janus_jax.commands import cli
from janus_jax.config import Dtype, Execution, JanusConfig, Quantization, janus_preset
from janus_jax.generation.image_tokens import image_token_decoder
from janus_jax.generation.parallel_decode import ParallelDecoder
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.backbone import Params
from janus_jax.models.janus import Janus
from janus_jax.pretrained import load

_MODEL = flags.DEFINE_string("model", None, "checkpoint folder (default: random weights)")
_PRESET = flags.DEFINE_string("preset", None, "released model whose shape is used (default: a small model)")
_DTYPE = flags.DEFINE_enum("dtype", "float32", get_args(Dtype), "dtype of parameters and computation")
_QUANTIZATION = flags.DEFINE_enum("quantization", "none", get_args(Quantization), "weights of 8 bits")
_IMAGE_TOKENS = flags.DEFINE_integer(
    "image_tokens", None, "tokens per image, a square number (default: 144, or those of the preset)", 4
)
_WINDOWS = flags.DEFINE_list("windows", ["2", "4", "8"], "windows to measure; empty: sequential decoding only")
_BATCHES = flags.DEFINE_list("batches", ["1"], "numbers of images per batch")
_SCALE = flags.DEFINE_float("guidance_scale", 5.0, "guidance scale; 1 disables guidance")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "sampling temperature")
_REPEATS = flags.DEFINE_integer("repeats", 3, "turns", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 2, "processor cores to use", lower_bound=1)


class Generation(NamedTuple):
    """Tokens of a batch of images, and the number of passes of the model that sampled them."""

    tokens: np.ndarray
    passes: int


class Generator(NamedTuple):
    """A model and the prompts of one image: with guidance, the prompt and its unconditional sequence."""

    model: Janus
    params: Params
    prompts: Batch

    def run(self, batch_size: int, seed: int, window: int) -> Generation:
        """Generates the tokens of `batch_size` images; a window of 0 is sequential decoding."""
        decoder = image_token_decoder(
            self.model,
            self.params,
            self.prompts,
            sampling_keys(seed, 0, range(batch_size))[None],
            SamplingConfig(_TEMPERATURE.value),
            guidance_scale=_SCALE.value,
            parallel_window=window,
        )
        total = self.model.config.num_gen_tokens
        while decoder.num_tokens < total:
            decoder.advance(total - decoder.num_tokens)
        tokens = np.asarray(decoder.state.tokens[:, :total])
        return Generation(tokens, decoder.num_passes if isinstance(decoder, ParallelDecoder) else total - 1)


def _generator() -> tuple[str, Generator]:
    """Returns the name of the model, and the model with its prompts."""
    dtype, quantization = cast(Dtype, _DTYPE.value), cast(Quantization, _QUANTIZATION.value)
    guided = _SCALE.value != 1
    if _MODEL.value is not None:
        loaded = load(_MODEL.value, dtype, quantization=quantization)
        prompt = loaded.processor.generation_prompt("a red circle above a blue square")
        sequences = [prompt, loaded.processor.unconditional_sequence(prompt)] if guided else [prompt]
        batch = loaded.processor.left_pad(sequences, PROMPT_LENGTH)
        return loaded.config.name, Generator(cast(Janus, loaded.model), loaded.params, batch)
    if _PRESET.value is None:
        config = _with_tokens(SMALL, _IMAGE_TOKENS.value or 144)
    else:
        config = janus_preset(_PRESET.value)
        config = config if _IMAGE_TOKENS.value is None else _with_tokens(config, _IMAGE_TOKENS.value)
    execution = Execution(dtype, dtype, layers="unrolled", quantization=quantization)
    tokens = random_prompt(np.random.default_rng(0), config)
    batch = guided_batch(tokens) if guided else prompt_batch(tokens)
    return config.name, Generator(Janus(config, execution), random_weights(config, execution), batch)


def _with_tokens(config: JanusConfig, num_tokens: int) -> JanusConfig:
    """Returns the config of a model with another number of tokens per image."""
    side = round(num_tokens**0.5)
    gen_encoder = dataclasses.replace(config.gen_encoder, image_size=side * config.gen_encoder.downsampling)
    return dataclasses.replace(config, gen_encoder=gen_encoder)


def measure(generator: Generator, batch_size: int, windows: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the measurements of sequential decoding and of each window."""
    all_windows = (0, *windows)
    runs = {window: functools.partial(generator.run, batch_size, window=window) for window in all_windows}
    for run in runs.values():
        run(0)  # Compiles.
    seconds: dict[int, list[float]] = {window: [] for window in all_windows}
    results: dict[int, list[Generation]] = {window: [] for window in all_windows}
    for seed in range(repeats):
        for window, run in runs.items():
            duration, generation = timed(functools.partial(run, seed))
            seconds[window].append(duration)
            results[window].append(generation)
    for window in all_windows:
        median_seconds = median(seconds[window])
        expected = np.stack([generation.tokens for generation in results[0]])
        tokens = np.stack([generation.tokens for generation in results[window]])
        yield {
            "batch": batch_size,
            "window": window,
            "passes": median(generation.passes for generation in results[window]),
            "seconds": median_seconds,
            "images_per_second": batch_size / median_seconds,
            "ratio": median_ratio(seconds[window], seconds[0]),
            "different": float((tokens != expected).mean()),
            **_first_changes(tokens != expected),
        }


def _first_changes(different: np.ndarray) -> dict[str, float]:
    """Returns the share of images with a changed token, and the changes per token up to the first one of an image.

    Rounding changes the first of these tokens; the later ones follow from it.
    """
    different = different.reshape(-1, different.shape[-1])
    changed = different.any(axis=1)
    compared = np.where(changed, different.argmax(axis=1) + 1, different.shape[1])
    return {
        "images": different.shape[0],
        "changed": float(changed.mean()),
        "first": float(changed.sum() / compared.sum()),
    }


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    cores = use_cores(_CORES.value)
    name, generator = _generator()
    total, kind = generator.model.config.num_gen_tokens, jax.devices()[0].device_kind
    print(f"{name}, {total} tokens per image, guidance scale {_SCALE.value:g}, temperature {_TEMPERATURE.value:g}")
    weights = bytes_per_token(generator.model.config, generator.model.execution)
    bandwidth = next((chip.memory_bandwidth for chip in ACCELERATORS.values() if chip.kind == kind), None)
    columns = {"batch": 5, "window": 6, "passes": 6, "seconds": 8, "images/s": 8, "ratio": 6}
    columns |= {"different": 9, "changed": 8, "first": 8}
    print(*(f"{name:>{width}}" for name, width in columns.items()))
    rows: list[dict[str, Any]] = []
    report = {"model": name, "dtype": _DTYPE.value, "quantization": _QUANTIZATION.value, "tokens": total}
    report |= {"cores": cores, "weight_bytes": weights, "runs": rows, **machine()}
    for batch_size in map(int, _BATCHES.value):
        for row in measure(generator, batch_size, [int(window) for window in _WINDOWS.value], _REPEATS.value):
            print(
                f"{row['batch']:5} {row['window']:6} {row['passes']:6g} {row['seconds']:8.2f} "
                f"{row['images_per_second']:8.3g} {row['ratio']:6.2f} "
                f"{row['different']:9.1e} {row['changed']:8.3f} {row['first']:8.1e}",
                flush=True,
            )
            if bandwidth is not None:
                # Share of the time that reading the weights alone takes.
                row["weights_share"] = row["passes"] * weights / bandwidth / row["seconds"]
            rows.append(row)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    cli.run(main)
