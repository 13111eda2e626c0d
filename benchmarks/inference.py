"""Measures inference speed, compared with transformers' Janus on PyTorch.

    python -m benchmarks.inference
    python -m benchmarks.inference --preset janus_pro_1b --dtype bfloat16 --batches 32,128 --bandwidth 4.8e12

The first command uses the networks of Janus-Pro-1B with a language model of 12 layers of width 1024 and a vocabulary of
8192, in float32 on two cores. The second command is for an accelerator: it uses a released model's shape, also
generates batches of images, and compares the time per token with the time to read the weights from memory.
docs/performance.md explains the figures.

This project and PyTorch run alternately, with the same weights and inputs. Their outputs are compared, to check that
both compute the same. Without torch and transformers, or if torch lacks the device that jax uses, only this project is
measured. The last line is a JSON object with all results.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import flow
from benchmarks.shared import (
    BEGIN_OF_IMAGE,
    BOS,
    PAD,
    SMALL,
    alternate,
    bytes_per_token,
    copy_weights,
    guided_batch,
    has_torch,
    load_weights,
    machine,
    median_ratio,
    random_prompt,
    timed,
    use_cores,
)
from checkpoints_convert.transformers_janus import config_to_json
from janus_jax.commands import cli
from janus_jax.config import AttentionKernel, Dtype, Execution, JanusConfig, janus_preset
from janus_jax.generation.image_tokens import sample_image_tokens, tokens_to_images
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.janus import Janus
from janus_jax.models.layers import project

_PRESET = flags.DEFINE_string("preset", None, "released model whose shape is used (default: a small model)")
_DTYPE = flags.DEFINE_enum("dtype", "float32", get_args(Dtype), "dtype of parameters and computation")
_ATTENTION = flags.DEFINE_enum("attention", "auto", get_args(AttentionKernel), "attention kernel of this project")
_ONLY = flags.DEFINE_list("only", None, "figures to measure, such as token,siglip,images_32 (default: all)")
_REPEATS = flags.DEFINE_integer("repeats", 3, "timed pairs of long runs; short runs have three times as many", 1)
_CORES = flags.DEFINE_integer("cores", 2, "processor cores to use", lower_bound=1)
_BATCHES = flags.DEFINE_list("batches", [], "numbers of images to generate in one batch, up to their pixels")
_BANDWIDTH = flags.DEFINE_float("bandwidth", None, "memory bandwidth of the device in bytes per second")
_TORCH = flags.DEFINE_bool("torch", True, "also measure transformers on PyTorch, if installed")

LIMITS = {"token": 0.8, "siglip": 1.0, "prefill": 1.0, "vq_decode": 1.0, "flow": 0.8}
PREFILL_LENGTH = 640
GUIDANCE_SCALE = 5.0
IMAGE = 4


class Figure(NamedTuple):
    """A measurement.

    Attributes:
      name: Name in the table and in `--only`.
      with_jax: Runs the computation with this project and returns the result.
      with_torch: Runs the same computation with PyTorch; None without PyTorch.
      divisor: Number of equal steps in a run; times are per step.
      pairs: Number of timed runs.
    """

    name: str
    with_jax: Callable[[], np.ndarray]
    with_torch: Callable[[], np.ndarray] | None
    divisor: int
    pairs: int

    def measure(self) -> dict[str, float]:
        """Returns the time and the compile time; if PyTorch is compared, also its time, the ratio and the difference.

        Compile time is the time of the first run minus the median of the others.
        """
        first, result = timed(self.with_jax)
        difference = None if self.with_torch is None else _difference(result, self.with_torch())
        seconds, torch_seconds = alternate(self.with_jax, self.with_torch, self.pairs)
        found = {"ms": median(seconds) / self.divisor * 1e3, "compile_s": max(0.0, first - median(seconds))}
        if difference is not None:
            found["ratio"] = median_ratio(seconds, torch_seconds)
            found |= {"torch_ms": median(torch_seconds) / self.divisor * 1e3, "difference": difference}
        return found


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference relative to the largest value; for tokens, the fraction that differs."""
    if actual.shape != expected.shape:
        raise ValueError(f"The results have different shapes, {actual.shape} and {expected.shape}.")
    if np.issubdtype(expected.dtype, np.integer):
        return float((actual != expected).mean())
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Inputs:
    """Random inputs of the computations."""

    prompt: np.ndarray
    pixels: np.ndarray
    features: np.ndarray
    embeddings: np.ndarray
    tokens: np.ndarray

    @classmethod
    def make(cls, config: JanusConfig) -> "Inputs":
        """Makes the inputs, which are the same in each call."""
        random, und, gen = np.random.default_rng(0), config.und_encoder, config.gen_encoder
        prompt = random_prompt(random, config)
        return cls(
            prompt=prompt,
            pixels=random.random((1, und.image_size, und.image_size, 3), np.float32) * 2 - 1,
            features=random.random((und.num_patches, und.width), np.float32) * 2 - 1,
            embeddings=random.random((1, PREFILL_LENGTH, config.llm.width), np.float32) * 2 - 1,
            tokens=random.integers(0, gen.codebook_size, (1, gen.num_tokens), np.int32),
        )


class JaxJanus:
    """Janus of this project."""

    def __init__(self, config: JanusConfig, execution: Execution, inputs: Inputs) -> None:
        self.config, self.inputs = config, inputs
        self.model, self.params = Janus(config, execution), load_weights(config, execution)

    def runs(self) -> dict[str, Callable[[], np.ndarray]]:
        """Returns the computations by name."""

        def products(params: Any, x: jax.Array) -> jax.Array:
            for block in range(self.config.und_encoder.depth):
                mlp = params["und_encoder"][f"blocks_{block}"]["mlp"]
                x = project(project(x, mlp["fc1"]["weight"]), mlp["fc2"]["weight"])
            return x

        def prefill(model: Janus, x: jax.Array) -> tuple[jax.Array, Any]:
            positions = jnp.arange(x.shape[1])[None]
            return model.llm.prefill(x, positions, jnp.ones_like(positions), slots=x.shape[1])

        def method(function: Callable[..., Any], x: np.ndarray) -> Callable[[], np.ndarray]:
            return self._jitted(lambda params, x: self.model.apply({"params": params}, x, method=function), x)

        given = self.inputs
        return {
            "siglip": method(lambda model, pixels: model.und_encoder(pixels), given.pixels),
            "products": self._jitted(products, given.features),
            "prefill": method(prefill, given.embeddings),
            "vq_decode": method(Janus.detokenize, given.tokens),
            "vq_encode": method(Janus.tokenize, given.pixels),
            "token": functools.partial(self.image_tokens, 1),
        }

    def image_tokens(self, num_images: int) -> np.ndarray:
        """Returns sampled image tokens for one prompt."""
        batch = guided_batch(self.inputs.prompt)
        keys = sampling_keys(0, 0, range(num_images))[None]
        tokens = sample_image_tokens(
            self.model, self.params, batch, keys, SamplingConfig(), guidance_scale=GUIDANCE_SCALE
        )
        return np.asarray(tokens)

    def images(self, num_images: int) -> np.ndarray:
        """Returns generated images for one prompt."""
        tokens = jnp.asarray(self.image_tokens(num_images))
        parts = [tokens[start : start + 8] for start in range(0, num_images, 8)]
        return np.concatenate([tokens_to_images(self.model, self.params, part) for part in parts])

    def _jitted(self, function: Callable[[Any, Any], Any], x: np.ndarray) -> Callable[[], np.ndarray]:
        compiled = jax.jit(function)

        def run() -> np.ndarray:
            result = jax.tree.leaves(jax.block_until_ready(compiled(self.params, x)))[0]
            return np.asarray(result if jnp.issubdtype(result.dtype, jnp.integer) else result.astype(jnp.float32))

        return run


class TorchJanus:
    """Janus of transformers, with the weights of `JaxJanus`."""

    def __init__(self, config: JanusConfig, dtype: Dtype, device: str, inputs: Inputs) -> None:
        import torch
        import transformers

        self.torch, self.inputs, self.device = torch, inputs, device
        self.dtype = getattr(torch, dtype)
        torch.set_grad_enabled(False)
        with torch.device(device):
            model = transformers.JanusForConditionalGeneration(
                transformers.JanusConfig(**config_to_json(config, dtype, IMAGE))
            )
        self.model = model.to(self.dtype).eval()
        copy_weights(self.model, config)
        self.settings = transformers.GenerationConfig(
            do_sample=False, guidance_scale=GUIDANCE_SCALE, bos_token_id=BOS, eos_token_id=1, pad_token_id=PAD
        )
        self.settings.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}

    def runs(self) -> dict[str, Callable[[], np.ndarray]]:
        """Returns the computations by name."""
        model, linear = self.model.model, self.torch.nn.functional.linear

        def products(x: Any) -> Any:
            for layer in model.vision_model.encoder.layers:
                x = linear(linear(x, layer.mlp.fc1.weight), layer.mlp.fc2.weight)
            return x

        def prefill(x: Any) -> Any:
            return model.language_model(inputs_embeds=x, use_cache=True).last_hidden_state

        given = self.inputs
        pixels = given.pixels.transpose(0, 3, 1, 2)
        return {
            "siglip": self._run(lambda x: model.vision_model(x).last_hidden_state, pixels),
            "products": self._run(products, given.features),
            "prefill": self._run(prefill, given.embeddings),
            "vq_decode": self._run(self.model.decode_image_tokens, given.tokens),
            "vq_encode": self._run(lambda x: model.vqmodel.encode(x).image_tokens.reshape(1, -1), pixels),
            "token": self._run(self._generate, given.prompt),
        }

    def images(self, num_images: int) -> np.ndarray:
        """Returns generated images for one prompt."""

        def generate(prompt: Any) -> Any:
            parts = self._generate(prompt).split(8)
            pixels = self.torch.cat([self.model.decode_image_tokens(part) for part in parts])
            return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(self.torch.uint8)

        return self._run(generate, np.repeat(self.inputs.prompt, num_images, axis=0))()

    def _generate(self, prompt: Any) -> Any:
        mask = self.torch.ones_like(prompt)
        return self.model.generate(
            prompt, attention_mask=mask, generation_config=self.settings, generation_mode="image"
        )

    def _run(self, function: Callable[[Any], Any], x: np.ndarray) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            tensor = self.torch.from_numpy(x).to(self.device)
            result = function(tensor.to(self.dtype) if tensor.is_floating_point() else tensor.long())
            array: np.ndarray = (result.float() if result.is_floating_point() else result).cpu().numpy()
            return array

        return run


def _torch_device() -> str | None:
    """Returns torch's name of the device that jax uses; None without torch, or if torch lacks this device."""
    if not (_TORCH.value and has_torch()):
        return None
    import torch

    torch.set_num_threads(_CORES.value)
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    return None if device == "cuda" and not torch.cuda.is_available() else device


def _figures(config: JanusConfig, execution: Execution, device: str | None) -> Iterator[Figure]:
    def wanted(name: str) -> bool:
        return _ONLY.value is None or name in _ONLY.value

    names = [name for name in ("siglip", "products", "prefill", "vq_decode", "vq_encode", "token") if wanted(name)]
    batches = [int(count) for count in _BATCHES.value if wanted(f"images_{count}")]
    if batches or names:
        inputs = Inputs.make(config)
        jax_model = JaxJanus(config, execution, inputs)
        torch_model = None if device is None else TorchJanus(config, execution.dtype, device, inputs)
        jax_runs, torch_runs = jax_model.runs(), {} if torch_model is None else torch_model.runs()
        for name in names:
            divisor, repeats = (config.gen_encoder.num_tokens, 1) if name == "token" else (1, 3)
            yield Figure(name, jax_runs[name], torch_runs.get(name), divisor, repeats * _REPEATS.value)
        for count in batches:
            run = None if torch_model is None else functools.partial(torch_model.images, count)
            yield Figure(f"images_{count}", functools.partial(jax_model.images, count), run, count, _REPEATS.value)
        # Frees the weights before the next model is made.
        del jax_model, torch_model, jax_runs, torch_runs
    if wanted("flow"):
        benchmark = flow.FlowBenchmark(flow.SMALL if _PRESET.value is None else flow.RELEASED, execution)
        flow_run = None if device is None else benchmark.torch_sampler(execution.dtype, device)
        yield Figure("flow", benchmark.sample_with_jax, flow_run, benchmark.sampler.steps, _REPEATS.value)


def main(_: Sequence[str]) -> None:
    """Prints a table and a line of JSON."""
    cores = use_cores(_CORES.value)
    config = SMALL if _PRESET.value is None else janus_preset(_PRESET.value)
    dtype, attention = cast(Dtype, _DTYPE.value), cast(AttentionKernel, _ATTENTION.value)
    execution = Execution(dtype, dtype, attention, layers="unrolled")
    device = _torch_device()
    packages = ("torch", "transformers") if device else ()
    report: dict[str, Any] = {"model": config.name, "dtype": dtype, "cores": cores, **machine(*packages)}
    print(f"{'ms':12} {'jax':>9} {'torch':>9} {'ratio':>7} {'limit':>5} {'compile s':>10} {'difference':>11}")
    for figure in _figures(config, execution, device):
        name, found = figure.name, figure.measure()
        torch_ms, ratio, difference = (found.get(key, math.nan) for key in ("torch_ms", "ratio", "difference"))
        print(
            f"{name:12} {found['ms']:9.1f} {torch_ms:9.1f} {ratio:7.3f} {LIMITS.get(name, ''):>5} "
            f"{found['compile_s']:10.1f} {difference:11.1e}",
            flush=True,
        )
        if name == "token" and _BANDWIDTH.value:
            bound = bytes_per_token(config, execution) / _BANDWIDTH.value * 1e3
            print(f"  reading the weights takes {bound:.2f} ms; a token takes {found['ms'] / bound:.2f} times as long")
            found |= {"bound_ms": bound, "over_bound": found["ms"] / bound}
        if name.startswith("images_"):
            print(f"  {1e3 / found['ms']:.2f} images per second, PyTorch {1e3 / torch_ms:.2f}")
            found["per_second"] = 1e3 / found["ms"]
        report |= {f"{name}_{key}": value for key, value in found.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
