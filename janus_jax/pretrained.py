"""A checkpoint folder, in any layout, as a model to talk to: config, parameters, processor, `chat` and `generate`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key, UInt8
from PIL import Image

from checkpoints_convert import open_checkpoint
from janus_jax.batch import Batch
from janus_jax.config import AttentionKernel, ConversationStyle, Dtype, Execution, ModelConfig
from janus_jax.errors import JanusError
from janus_jax.generation.image_sampler import ImageSampler, make_image_sampler, sampler_settings
from janus_jax.generation.padding import bucket_length, round_up
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import generate_text
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, make_model
from janus_jax.models.llama import PARAMS_PER_BLOCK, fuse_block
from janus_jax.processing import ImageSource, Message, Processor, StreamDecoder, TokenSequence
from janus_jax.sharding import batch_sharding, check_mesh, num_data_shards, param_shardings, to_host, use_mesh

_log = logging.getLogger(__name__)


def load(
    path: str | Path,
    dtype: Dtype = "bfloat16",
    mesh: Mesh | None = None,
    *,
    attention: AttentionKernel = "xla",
    conversation: ConversationStyle | None = None,
    vae: str | Path | None = None,
) -> "Pretrained":
    """A model from a released, transformers' or converted folder.

    Parameters go to their place one by one: the host never holds them all, and no device more than its share.

    Args:
      path: the folder.
      dtype: of parameters and computation. On a CPU float32 is about ten times as fast as bfloat16.
      mesh: devices to spread over (`janus_jax.sharding.make_mesh`); None for the default device.
      attention: see `Execution.attention`.
      conversation: role strings, where the folder does not tell which release it is.
      vae: folder of SDXL's VAE in diffusers' layout, for a released JanusFlow that does not hold it as `vae/`. Without
        one JanusFlow reads and answers, and draws nothing.

    Raises:
      JanusError: the folder is missing, damaged or of no known layout; the mesh does not divide the model, or has
        devices of other processes, which would all have to make the same calls in the same order.
    """
    if dtype not in get_args(Dtype):
        raise JanusError(f"dtype is {dtype!r}; it must be one of {', '.join(get_args(Dtype))}.")
    if mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise JanusError(
            "load's mesh has devices of other processes; give each process one of its jax.local_devices()."
        )
    checkpoint = open_checkpoint(path, conversation, vae)
    config = checkpoint.model_config
    processor = Processor.from_directory(path, config)
    execution = Execution(dtype=dtype, param_dtype=dtype, attention=attention, layers="unrolled")
    if mesh is not None:
        check_mesh(config, mesh)
    params = place_params(checkpoint.params(dtype), config, execution, mesh)
    return Pretrained(config, params, processor, make_model(config, execution), mesh)


def place_params(
    leaves: Iterator[tuple[tuple[str, ...], int | None, np.ndarray]],
    config: ModelConfig,
    execution: Execution,
    mesh: Mesh | None,
) -> Params:
    """The tree that sampling reads, on its devices, from leaves that come one by one and layer by layer."""
    boxed = abstract_params(make_model(config, execution))
    shardings = None if mesh is None else flatten_dict(param_shardings(boxed, mesh))
    params: dict[tuple[str, ...], jax.Array] = {}

    def put(keys: tuple[str, ...], array: np.ndarray) -> None:
        params[keys] = jax.device_put(array, None if shardings is None else shardings[keys])

    # The LLM's blocks that are not complete yet: their matrices are fused.
    blocks: dict[int, dict[tuple[str, ...], np.ndarray]] = {}
    for keys, layer, array in leaves:
        if layer is None:
            put(keys, array)
        elif keys[:2] == ("llm", "layers"):
            block = blocks.setdefault(layer, {})
            block[keys[2:]] = array
            if len(block) == PARAMS_PER_BLOCK:
                fused = fuse_block(unflatten_dict(blocks.pop(layer)), config.llm)
                for path, matrix in flatten_dict(fused).items():
                    put(("llm", f"layers_{layer}", *path), matrix)
        else:
            stack, *rest = keys[1:]
            put((keys[0], f"{stack}_{layer}", *rest), array)
    tree: Params = unflatten_dict(params)
    return tree


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model that can be talked to.

    Attributes:
      config: its architecture.
      params: its parameters, in the form that `model` reads; `models.backbone.scan_params` gives that of training.
      processor: from messages and pictures to arrays.
      model: the network; `model.apply({"params": params}, ...)`.
      mesh: the devices that the parameters lie on; None for one device.
    """

    config: ModelConfig
    params: Params = field(repr=False)
    processor: Processor
    model: Backbone
    mesh: Mesh | None = None

    def chat(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        **options: Any,
    ) -> str:
        """The answer to a conversation about any number of images.

        Args:
          messages: dicts of role ("user", "assistant", or the release's own strings), content, in which every
            `<image_placeholder>` stands for an image, and optionally images.
          images: the images, where the messages carry none.
          max_new_tokens: ids written at most.
          temperature: 0 writes the likeliest answer.
          **options: `top_k`, `top_p`, `seed`, `stop` (strings that end the answer), `system_prompt`.

        Raises:
          JanusError: a message, an image or a number is wrong, or the conversation is longer than the model reads.
        """
        rows = [self.processor.understanding_sequence(messages, images, options.pop("system_prompt", None))]
        return self.answer(rows, max_new_tokens, temperature, **options)[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        **options: Any,
    ) -> Iterator[str]:
        """`chat`, a few words at a time; the pieces add up to its answer, but for white space at its ends."""
        rows = [self.processor.understanding_sequence(messages, images, options.pop("system_prompt", None))]
        shown = 0
        for (text,), finished in self._answers(rows, max_new_tokens, temperature, chunk=4, **options):
            # What may turn out to be the beginning of a stop string is held back.
            safe = len(text) if finished else _settled(text, options.get("stop", ()))
            if safe > shown:
                yield text[shown:safe]
                shown = safe

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        **options: Any,
    ) -> list[str]:
        """`chat` for several conversations at once, of whatever lengths and numbers of images."""
        system_prompt = options.pop("system_prompt", None)
        rows = [self.processor.understanding_sequence(messages, None, system_prompt) for messages in conversations]
        return self.answer(rows, max_new_tokens, temperature, **options)

    def answer(
        self, rows: Sequence[TokenSequence], max_new_tokens: int = 512, temperature: float = 0.0, **options: Any
    ) -> list[str]:
        """The answers to rows of places, as `processor.understanding_sequence` makes them."""
        if not rows:
            return []
        *_, (texts, _) = self._answers(rows, max_new_tokens, temperature, **options)
        return [text.strip() for text in texts]

    def _answers(
        self,
        rows: Sequence[TokenSequence],
        max_new_tokens: int,
        temperature: float,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        chunk: int = 16,
    ) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Yields the texts so far and whether they are final."""
        sampling = SamplingConfig(temperature, top_k, top_p)
        _check_count("max_new_tokens", max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        num_rows = len(rows)
        padded = _pad(rows, num_data_shards(self.mesh))
        prompts = self._prompts(padded, max_new_tokens)
        eos = self.processor.tokenizer.special.eos
        decoders = [_Answer(StreamDecoder(self.processor.tokenizer), eos, stops) for _ in rows]
        read = 0

        def is_finished(ids: Int[np.ndarray, "B T"]) -> Bool[np.ndarray, " B"]:
            nonlocal read
            for decoder, new in zip(decoders, ids[:num_rows, read:], strict=True):
                decoder.read(new)
            read = ids.shape[1]
            # The rows that only fill the mesh have nothing to say.
            return np.array([decoder.finished for decoder in decoders] + [True] * (len(padded) - num_rows))

        keys = jnp.concatenate([sampling_keys(seed, row, range(1)) for row in range(len(padded))])
        steps = generate_text(
            self.model,
            self.params,
            prompts,
            keys,
            sampling,
            stop_tokens=[eos],
            max_new_tokens=max_new_tokens,
            chunk=min(chunk, max_new_tokens),
            is_finished=is_finished,
        )
        while True:
            # Not around the yield: what the caller does between two pieces is no business of this mesh.
            with use_mesh(self.mesh):
                if next(steps, None) is None:
                    break
            yield tuple(decoder.text for decoder in decoders), False
        yield tuple(decoder.close() for decoder in decoders), True

    def generate(
        self, prompts: str | Sequence[str], images_per_prompt: int = 1, seed: int = 0, **options: Any
    ) -> list[list[Image.Image]]:
        """Images of each prompt.

        Image i of prompt p is drawn from the prompt, p, i and the seed alone: the batch it is drawn in changes no more
        than rounding does.

        Args:
          **options: `batch_size` and `report` (see `generate_stream`), and the settings of the model's way to draw:
            those of `sample.images.TokenSampler` for Janus (`guidance_scale`, `temperature`, `top_k`, `top_p`), of
            `sample.flow.FlowSampler` for JanusFlow (`guidance_scale`, `steps`, `sampler`).

        Raises:
          JanusError: a number is out of its range, the model has no such setting or no VAE, or a prompt is longer than
            the model reads.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        images: list[list[Image.Image]] = [[] for _ in prompts]
        for drawn in self.generate_stream(prompts, images_per_prompt, seed, **options):
            images[drawn.prompt].append(drawn.image)
        return images

    def generate_stream(
        self,
        prompts: Sequence[str],
        images_per_prompt: int = 1,
        seed: int = 0,
        *,
        batch_size: int = 16,
        report: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> Iterator["GeneratedImage"]:
        """`generate`, each image as soon as its batch is drawn, in order.

        Args:
          batch_size: images drawn at a time.
          report: called with numbers that add up to the steps of all images, of each `drawing(...).num_steps`, for a
            progress bar.
        """
        drawing = self.image_sampler(**settings)
        _check_count("images_per_prompt", images_per_prompt)
        _check_count("batch_size", batch_size)
        rows = [self.processor.generation_prompt(prompt) for prompt in prompts]
        numbers = [0] * len(rows)
        for group in _groups(len(rows), images_per_prompt, batch_size):
            for prompt, pixels in self._draw(rows, group, drawing, seed, report):
                yield GeneratedImage(prompt, numbers[prompt], Image.fromarray(pixels))
                numbers[prompt] += 1

    def sample_images(
        self, prompts: Sequence[str], numbers: Sequence[tuple[int, int]], seed: int = 0, **settings: Any
    ) -> list[Image.Image]:
        """An image of each of these prompts, all at once.

        Args:
          numbers: of each image, the number of its prompt and its own. Image (p, i) is the one that `generate` draws as
            image i of its prompt p, if that is the same.
          **settings: of the model's way to draw, as in `generate`.

        Raises:
          JanusError: as of `generate`.
        """
        if not prompts:
            return []
        drawing = self.image_sampler(**settings)
        rows = [self.processor.generation_prompt(prompt) for prompt in prompts]
        keys = jnp.stack([sampling_keys(seed, prompt, range(number, number + 1)) for prompt, number in numbers])
        pictures = self._pictures(rows, keys, drawing, max(map(len, rows)))
        return [Image.fromarray(pixels) for pixels in pictures[: len(rows)]]

    @property
    def sampler_settings(self) -> tuple[str, ...]:
        """Names of the settings of the model's way to draw."""
        return sampler_settings(self.config)

    def image_sampler(self, **settings: Any) -> ImageSampler:
        """The model's way to draw, with these settings and its paper's for the others.

        Raises:
          JanusError: see `sample.ways.make_image_sampler`.
        """
        return make_image_sampler(self.config, **settings)

    def _draw(
        self,
        rows: Sequence[TokenSequence],
        group: "_Group",
        drawing: ImageSampler,
        seed: int,
        report: Callable[[int], object] | None,
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "H W 3"]]]:
        """The pictures of one group, with the numbers of their prompts."""
        numbers, samples = list(group.prompts), group.samples
        keys = jnp.stack([sampling_keys(seed, prompt, samples) for prompt in numbers])
        if len(numbers) % num_data_shards(self.mesh):
            # Too few prompts for the mesh: a prompt's images, spread over the devices, each run it for themselves.
            numbers = [prompt for prompt in numbers for _ in samples]
            keys = keys.reshape(-1, 1)
        num_images = len(group.prompts) * len(samples)
        pictures = self._pictures(
            [rows[prompt] for prompt in numbers],
            keys,
            drawing,
            max(map(len, rows)),
            report=None if report is None else lambda count: report(count * num_images),
        )
        owners = [prompt for prompt in numbers for _ in range(keys.shape[1])]
        # The rows that only fill the mesh come last and are left out.
        yield from zip(owners, pictures, strict=False)

    def _pictures(
        self,
        rows: Sequence[TokenSequence],
        keys: Key[Array, "P N"],
        drawing: ImageSampler,
        longest: int,
        report: Callable[[int], object] | None = None,
    ) -> list[UInt8[np.ndarray, "H W 3"]]:
        """N pictures of each of P prompts; more follow where prompts are too few for the mesh."""
        multiple = num_data_shards(self.mesh)
        prompts = _pad(rows, multiple)
        keys = jnp.concatenate([keys, jnp.repeat(keys[-1:], len(prompts) - len(rows), axis=0)])
        batch = self._prompts(drawing.prompt_sequences(self.processor, prompts), self.config.num_gen_tokens, longest)
        with use_mesh(self.mesh):
            samples = drawing.sample(self.model, self.params, batch, keys, report)
            size = round_up(min(8, samples.shape[0]), multiple)
            parts = [samples[start : start + size] for start in range(0, samples.shape[0], size)]
            return [pixels for part in parts for pixels in to_host(drawing.to_images(self.model, self.params, part))]

    def _prompts(self, rows: Sequence[TokenSequence], num_new: int, longest: int = 0) -> Batch:
        """Prompts side by side, padded to one of a few lengths, on the devices."""
        longest = max(longest, *map(len, rows))
        limit = self.config.llm.max_positions
        if longest + num_new > limit:
            raise JanusError(
                f"The prompt takes {longest} places and {num_new} may follow it, but the model reads {limit}; "
                f"shorten the prompt, or ask for fewer."
            )
        batch = self.processor.left_pad(rows, bucket_length(longest))
        if self.mesh is None:
            return batch
        return jax.device_put(batch, batch_sharding(self.mesh))


class GeneratedImage(NamedTuple):
    """An image: number `number` of prompt number `prompt`, both counted from 0."""

    prompt: int
    number: int
    image: Image.Image


@dataclass(frozen=True)
class _Group:
    """Images drawn together: samples `samples` of prompts `prompts`."""

    prompts: range
    samples: range


def _groups(num_prompts: int, images_per_prompt: int, batch_size: int) -> Iterator[_Group]:
    if images_per_prompt >= batch_size:
        for prompt in range(num_prompts):
            for start in range(0, images_per_prompt, batch_size):
                yield _Group(range(prompt, prompt + 1), range(start, min(start + batch_size, images_per_prompt)))
        return
    step = batch_size // images_per_prompt
    for start in range(0, num_prompts, step):
        yield _Group(range(start, min(start + step, num_prompts)), range(images_per_prompt))


def _check_count(name: str, number: int) -> None:
    if not isinstance(number, int) or number < 1:
        raise JanusError(f"{name} is {number!r}; it must be a whole number from 1 on.")


def _pad(rows: Sequence[Any], multiple: int) -> list[Any]:
    """The rows, the last repeated until their number is a multiple."""
    return [*rows, *[rows[-1]] * (round_up(len(rows), multiple) - len(rows))]


class _Answer:
    """One row's text, up to its end-of-sentence or to the first of its stop strings."""

    def __init__(self, decoder: StreamDecoder, eos: int, stops: tuple[str, ...]) -> None:
        self.text = ""
        self.finished = False
        self._decoder = decoder
        self._eos = eos
        self._stops = stops

    def read(self, ids: Int[np.ndarray, " T"]) -> None:
        for token in ids.tolist():
            if self.finished:
                return
            if token == self._eos:
                self.close()
                return
            self._append(self._decoder.push(token))

    def close(self) -> str:
        if not self.finished:
            self._append(self._decoder.finish())
            self.finished = True
        return self.text

    def _append(self, piece: str) -> None:
        self.text += piece
        ends = [end for stop in self._stops if (end := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
            self.finished = True


def _settled(text: str, stops: str | Sequence[str]) -> int:
    """How much of the text can no longer become part of a stop string."""
    stops = (stops,) if isinstance(stops, str) else stops
    pending = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return len(text) - max(pending, default=0)
