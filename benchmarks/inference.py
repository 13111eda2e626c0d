"""Inference beside transformers' Janus on PyTorch: same weights, same inputs, same run, in turns.

    python -m benchmarks.inference
    python -m benchmarks.inference --preset janus_pro_1b --dtype bfloat16 --batches 32,128 --bandwidth 4.8e12

Measured are the drawing of one image (guidance 5, the likeliest id at every step, the prompt's pass included, divided
by its number of ids), one pass of the understanding encoder, its linear maps alone, a prompt's pass through the
language model, the image tokenizer both ways, and the latents of one JanusFlow image in 30 steps (a language model of 6
layers of width 1024, a prompt of 64 places, guidance 2; the peer computes the prompt anew at every step, as the public
demo does). The first command takes the networks of a Janus-Pro-1B but for a
language model of 12 layers of width 1024 and 8192 words, in float32 on two cores; the second, on an accelerator, a
released model's shape and also batches of images, and sets the time of an id against that of reading the weights from
memory.

Each measurement alternates between the two, and its ratio is the median over the pairs: what else the machine does
meets both. The first call of each is apart, ours compiles in it. Both results are compared, so that the times are
those of the same computation. The peer takes part where torch runs on the same kind of device. The last line is one
JSON object with every figure.
"""

import functools
import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from typing import Any, cast, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import flow
from benchmarks.shared import machine, prompt_batch, use_cores, weights
from checkpoints_convert.transformers_janus import write_config
from janus_jax.commands import cli
from janus_jax.config import AttentionKernel, Dtype, Execution, JanusConfig, LlamaConfig, janus_preset
from janus_jax.generation.image_tokens import sample_image_tokens, tokens_to_images
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.factory import abstract_params
from janus_jax.models.janus import Janus
from janus_jax.models.layers import project
from janus_jax.pretrained import place_params

_PRESET = flags.DEFINE_string("preset", None, "measure a released model's shape instead of the small one")
_DTYPE = flags.DEFINE_enum("dtype", "float32", get_args(Dtype), "of parameters and computation")
_ATTENTION = flags.DEFINE_enum("attention", "xla", get_args(AttentionKernel), "our attention kernel")
_ONLY = flags.DEFINE_list(
    "only", None, "some of token, siglip, products, prefill, vq_decode, vq_encode, flow, images_N"
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "pairs a figure; of the short ones three times as many", lower_bound=1)
_CORES = flags.DEFINE_integer("cores", 2, "processor cores to run on", lower_bound=1)
_BATCHES = flags.DEFINE_list("batches", [], "also draw this many images at a time, pictures included")
_BANDWIDTH = flags.DEFINE_float("bandwidth", None, "the device's memory bandwidth in bytes a second")
_PEER = flags.DEFINE_bool("peer", True, "run transformers as well, if it is installed")

SMALL = JanusConfig(
    name="12 layers of width 1024",
    llm=LlamaConfig(vocab_size=8192, width=1024, depth=12, num_heads=16, num_kv_heads=16, head_dim=64, mlp_dim=2816),
    gen_head_width=1024,
)
BARS = {"token": 0.8, "siglip": 1.0, "prefill": 1.0, "vq_decode": 1.0, "flow": 0.8}
PROMPT_PLACES = 32
PREFILL_PLACES = 640
GUIDANCE = 5.0
BOS, PAD, BEGIN_OF_IMAGE, IMAGE = 0, 2, 3, 4


@dataclass
class Figure:
    """One thing that is measured.

    Attributes:
      name: how the table and `--only` call it.
      ours, theirs: run it once, to the end, and give the result; theirs None where there is no peer.
      parts: what the time is divided by.
      pairs: how often it is measured.
      first, first_theirs: seconds of the first call.
      seconds, seconds_theirs: of the others.
      error: the largest difference of the results, a share of the largest value; for ids, the share that differ.
    """

    name: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray] | None
    parts: int = 1
    pairs: int = 1
    first: float = 0.0
    first_theirs: float = 0.0
    seconds: list[float] = field(default_factory=list)
    seconds_theirs: list[float] = field(default_factory=list)
    error: float = math.nan

    def measure(self) -> None:
        """Fills in what is measured."""
        self.first, result = _timed(self.ours)
        if self.theirs is not None:
            self.first_theirs, expected = _timed(self.theirs)
            self.error = _difference(result, expected)
        for _ in range(self.pairs):
            self.seconds.append(_timed(self.ours)[0])
            if self.theirs is not None:
                self.seconds_theirs.append(_timed(self.theirs)[0])

    @property
    def ms(self) -> float:
        """Milliseconds of one part."""
        return median(self.seconds) / self.parts * 1e3

    @property
    def ms_theirs(self) -> float:
        return median(self.seconds_theirs) / self.parts * 1e3 if self.seconds_theirs else math.nan

    @property
    def ratio(self) -> float:
        """Our share of the peer's time."""
        pairs = zip(self.seconds, self.seconds_theirs, strict=False)
        ratios = [ours / theirs for ours, theirs in pairs]
        return median(ratios) if ratios else math.nan

    @property
    def compile_seconds(self) -> float:
        return max(0.0, self.first - median(self.seconds))


def _timed(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    gc.collect()
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {actual.shape} and {expected.shape} are not of the same result")
    if np.issubdtype(expected.dtype, np.integer):
        return float((actual != expected).mean())
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@dataclass(frozen=True)
class Inputs:
    """What both sides are given."""

    prompt: np.ndarray
    pixels: np.ndarray
    features: np.ndarray
    embeddings: np.ndarray
    ids: np.ndarray

    @classmethod
    def make(cls, config: JanusConfig) -> "Inputs":
        """The same numbers for the same config."""
        random, und, gen = np.random.default_rng(0), config.und_encoder, config.gen_encoder
        prompt = random.integers(8, config.llm.vocab_size, (1, PROMPT_PLACES), np.int32)
        prompt[0, 0], prompt[0, -1] = BOS, BEGIN_OF_IMAGE
        return cls(
            prompt=prompt,
            pixels=random.random((1, und.image_size, und.image_size, 3), np.float32) * 2 - 1,
            features=random.random((und.num_patches, und.width), np.float32) * 2 - 1,
            embeddings=random.random((1, PREFILL_PLACES, config.llm.width), np.float32) * 2 - 1,
            ids=random.integers(0, gen.codebook_size, (1, gen.num_tokens), np.int32),
        )


class Ours:
    """This project's Janus."""

    def __init__(self, config: JanusConfig, execution: Execution, inputs: Inputs) -> None:
        self.config, self.inputs = config, inputs
        self.model = Janus(config, execution)
        dtype = jnp.dtype(execution.param_dtype)
        numbers = ((unit.leaf.keys, unit.layer, array.astype(dtype)) for unit, array in weights(config))
        self.params = place_params(numbers, config, execution, mesh=None)
        self._compiled: dict[str, Callable[..., Any]] = {}

    def draw(self, num_images: int = 1) -> np.ndarray:
        """Ids of images of one prompt."""
        prompt = self.inputs.prompt
        twin = np.where((prompt == BOS) | (prompt == BEGIN_OF_IMAGE), prompt, PAD)
        tokens = np.concatenate([prompt, twin])
        keys = sampling_keys(0, 0, range(num_images))[None]
        ids = sample_image_tokens(self.model, self.params, prompt_batch(tokens), keys, SamplingConfig(), GUIDANCE)
        return np.asarray(ids)

    def pictures(self, num_images: int) -> np.ndarray:
        """Images of one prompt, to the last pixel."""
        return np.stack(list(tokens_to_images(self.model, self.params, jnp.asarray(self.draw(num_images)))))

    def siglip(self) -> np.ndarray:
        """Features of one image."""
        return self._run("siglip", lambda model, pixels: model.und_encoder(pixels), self.inputs.pixels)

    def products(self) -> np.ndarray:
        """One image's places through the linear maps of every encoder block's MLP, and nothing else."""

        def products(params: Any, x: jax.Array) -> jax.Array:
            for block in range(self.config.und_encoder.depth):
                mlp = params["und_encoder"][f"blocks_{block}"]["mlp"]
                x = project(project(x, mlp["fc1"]["weight"]), mlp["fc2"]["weight"])
            return x

        if "products" not in self._compiled:
            self._compiled["products"] = jax.jit(products)
        return np.asarray(self._compiled["products"](self.params, self.inputs.features).astype(jnp.float32))

    def prefill(self) -> np.ndarray:
        """Hidden states of a prompt, its keys and values kept."""

        def prefill(model: Janus, x: jax.Array) -> tuple[jax.Array, Any]:
            places = jnp.arange(x.shape[1])[None]
            return model.llm.prefill(x, places, jnp.ones_like(places), slots=x.shape[1])

        return self._run("prefill", prefill, self.inputs.embeddings)

    def vq_decode(self) -> np.ndarray:
        """Pixels of one image's ids."""
        return self._run("vq_decode", Janus.detokenize, self.inputs.ids)

    def vq_encode(self) -> np.ndarray:
        """Ids of one image."""
        return self._run("vq_encode", Janus.tokenize, self.inputs.pixels)

    def _run(self, name: str, method: Callable[..., Any], given: np.ndarray) -> np.ndarray:
        if name not in self._compiled:
            self._compiled[name] = jax.jit(lambda params, x: self.model.apply({"params": params}, x, method=method))
        outputs = jax.block_until_ready(self._compiled[name](self.params, given))
        result = jax.tree.leaves(outputs)[0]
        return np.asarray(result if jnp.issubdtype(result.dtype, jnp.integer) else result.astype(jnp.float32))


def bytes_per_id(config: JanusConfig, execution: Execution) -> int:
    """Of the weights that drawing an id reads."""
    params = nn.unbox(abstract_params(config, execution))
    layers = [block for name, block in params["llm"].items() if name.startswith("layers")]
    read = jax.tree.leaves([layers, params["gen_adaptor"], params["gen_head"]])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in read)


class Theirs:
    """transformers' Janus, with the weights of `Ours`."""

    def __init__(self, config: JanusConfig, dtype: Dtype, device: str, inputs: Inputs) -> None:
        import torch
        import transformers

        self.torch, self.config, self.inputs, self.device = torch, config, inputs, device
        self.dtype = getattr(torch, dtype)
        torch.set_grad_enabled(False)
        theirs = transformers.JanusConfig(**write_config(config, dtype, IMAGE))
        with torch.device(device):
            model = transformers.JanusForConditionalGeneration(theirs).to(self.dtype).eval()
        state = model.state_dict()
        for unit, array in weights(config):
            for name, part in unit.write(array):
                state[name].copy_(torch.from_numpy(np.ascontiguousarray(part)))
        self.model = model
        self.settings = transformers.GenerationConfig(
            do_sample=False, guidance_scale=GUIDANCE, bos_token_id=BOS, eos_token_id=1, pad_token_id=PAD
        )
        self.settings.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}

    def draw(self, num_images: int = 1) -> np.ndarray:
        """Ids of images of one prompt."""
        return self._numpy(self._draw(num_images))

    def pictures(self, num_images: int) -> np.ndarray:
        """Images of one prompt, to the last pixel."""
        ids = self._draw(num_images).split(8)
        pixels = self.torch.cat([self.model.decode_image_tokens(group) for group in ids])
        return self._numpy(((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(self.torch.uint8))

    def siglip(self) -> np.ndarray:
        """Features of one image."""
        return self._numpy(self.model.model.vision_model(self._pixels()).last_hidden_state)

    def products(self) -> np.ndarray:
        """One image's places through the linear maps of every encoder block's MLP, and nothing else."""
        x = self.torch.from_numpy(self.inputs.features).to(self.device, self.dtype)
        for layer in self.model.model.vision_model.encoder.layers:
            x = self.torch.nn.functional.linear(x, layer.mlp.fc1.weight)
            x = self.torch.nn.functional.linear(x, layer.mlp.fc2.weight)
        return self._numpy(x)

    def prefill(self) -> np.ndarray:
        """Hidden states of a prompt, its keys and values kept."""
        embeddings = self.torch.from_numpy(self.inputs.embeddings).to(self.device, self.dtype)
        outputs = self.model.model.language_model(inputs_embeds=embeddings, use_cache=True)
        return self._numpy(outputs.last_hidden_state)

    def vq_decode(self) -> np.ndarray:
        """Pixels of one image's ids."""
        ids = self.torch.from_numpy(self.inputs.ids).long().to(self.device)
        return self._numpy(self.model.decode_image_tokens(ids))

    def vq_encode(self) -> np.ndarray:
        """Ids of one image."""
        return self._numpy(self.model.model.vqmodel.encode(self._pixels()).image_tokens.reshape(1, -1))

    def _draw(self, num_images: int) -> Any:
        ids = self.torch.from_numpy(np.repeat(self.inputs.prompt, num_images, axis=0)).long().to(self.device)
        return self.model.generate(
            ids,
            attention_mask=self.torch.ones_like(ids),
            generation_config=self.settings,
            generation_mode="image",
        )

    def _pixels(self) -> Any:
        return self.torch.from_numpy(self.inputs.pixels).permute(0, 3, 1, 2).to(self.device, self.dtype)

    def _numpy(self, tensor: Any) -> np.ndarray:
        result: np.ndarray = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
        return result


def _peer_device() -> str | None:
    """Where the peer runs: on the kind of device that jax has, if it is installed there."""
    if not _PEER.value or not (find_spec("torch") and find_spec("transformers")):
        return None
    import torch

    torch.set_num_threads(_CORES.value)
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    return None if device == "cuda" and not torch.cuda.is_available() else device


def _wanted(name: str) -> bool:
    return _ONLY.value is None or name in _ONLY.value


def _figures(config: JanusConfig, execution: Execution, device: str | None) -> Iterator[Figure]:
    """What is wanted, one kind of model after the other."""
    long, short = _REPEATS.value, 3 * _REPEATS.value
    methods = (
        ("siglip", "siglip", 1, short),
        ("products", "products", 1, short),
        ("prefill", "prefill", 1, short),
        ("vq_decode", "vq_decode", 1, short),
        ("vq_encode", "vq_encode", 1, short),
        ("token", "draw", config.gen_encoder.num_tokens, long),
    )
    batches = [int(count) for count in _BATCHES.value if _wanted(f"images_{count}")]
    if batches or any(_wanted(name) for name, *_ in methods):
        inputs = Inputs.make(config)
        ours = Ours(config, execution, inputs)
        theirs = None if device is None else Theirs(config, execution.dtype, device, inputs)
        for name, method, parts, pairs in methods:
            if _wanted(name):
                yield Figure(name, getattr(ours, method), getattr(theirs, method, None), parts, pairs)
        for count in batches:
            run = None if theirs is None else functools.partial(theirs.pictures, count)
            yield Figure(f"images_{count}", functools.partial(ours.pictures, count), run, count, long)
        # Its weights go before the next model's come.
        del ours, theirs
    if _wanted("flow"):
        sides = flow.Flow(flow.SMALL if _PRESET.value is None else flow.RELEASED, execution)
        if device is not None:
            sides.beside(execution.dtype, device)
        yield Figure("flow", sides.ours, None if device is None else sides.theirs, sides.drawing.steps, long)


def main(_: Sequence[str]) -> None:
    """Prints a table and one line of JSON."""
    # Before jax starts its threads, as many as there are cores.
    cores = use_cores(_CORES.value)
    config = SMALL if _PRESET.value is None else janus_preset(_PRESET.value)
    dtype, attention = cast(Dtype, _DTYPE.value), cast(AttentionKernel, _ATTENTION.value)
    execution = Execution(dtype, dtype, attention, layers="unrolled")
    device = _peer_device()
    report: dict[str, Any] = {
        "model": config.name,
        "dtype": dtype,
        "cores": cores,
        **machine(*(("torch", "transformers") if device else ())),
    }
    print(f"{'ms':12} {'ours':>9} {'peer':>9} {'ratio':>7} {'bar':>5} {'compile s':>10} {'difference':>11}")
    for figure in _figures(config, execution, device):
        figure.measure()
        name, bar = figure.name, BARS.get(figure.name)
        print(
            f"{name:12} {figure.ms:9.1f} {figure.ms_theirs:9.1f} {figure.ratio:7.3f} {bar or '':>5} "
            f"{figure.compile_seconds:10.1f} {figure.error:11.1e}",
            flush=True,
        )
        report |= {
            f"{name}_ms": figure.ms,
            f"{name}_compile_s": figure.compile_seconds,
        }
        if device is not None:
            report |= {
                f"{name}_ratio": figure.ratio,
                f"{name}_peer_ms": figure.ms_theirs,
                f"{name}_difference": figure.error,
            }
        if name == "token" and _BANDWIDTH.value:
            bound = bytes_per_id(config, execution) / _BANDWIDTH.value * 1e3
            print(f"  reading the weights takes {bound:.2f} ms; an id takes {figure.ms / bound:.2f} times that")
            report |= {"token_bound_ms": bound, "token_over_bound": figure.ms / bound}
        if name.startswith("images_"):
            print(f"  {1e3 / figure.ms:.2f} images a second, the peer {1e3 / figure.ms_theirs:.2f}")
            report[f"{name}_per_second"] = 1e3 / figure.ms
    print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
