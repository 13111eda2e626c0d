"""Pretrained models: `load` reads a checkpoint folder, `Pretrained` answers questions and generates images."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Key, UInt8
from PIL import Image

from checkpoints_convert import Checkpoint, open_checkpoint
from janus_jax.batch import Batch
from janus_jax.config import (
    AttentionKernel,
    ConversationStyle,
    Dtype,
    Execution,
    ModelConfig,
    Quantization,
)
from janus_jax.devices import initialize_devices
from janus_jax.errors import JanusError
from janus_jax.generation.answers import AnswerDecoder, safe_length
from janus_jax.generation.best_of import BestOf, Judge
from janus_jax.generation.context import ContextReader
from janus_jax.generation.edit_sampler import make_edit_sampler
from janus_jax.generation.image_sampler import GeneratedImage, ImageSampler, make_image_sampler, sampler_settings
from janus_jax.generation.interleaved import AnswerOptions, InterleavedAnswer, make_conversation_image_sampler
from janus_jax.generation.padding import bucket_length, round_up
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import answer_limits, generate_text
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.factory import abstract_params, make_model, params_from_leaves
from janus_jax.models.janus import Janus
from janus_jax.processing import (
    Background,
    Edit,
    ImageSource,
    ImageWithTokens,
    Message,
    Processor,
    TokenSequence,
    conversation_prompt,
    guidance_sequences,
)
from janus_jax.rewards import checked, make_reward
from janus_jax.sharding import batch_sharding, check_mesh, num_data_shards, param_shardings, to_host, use_mesh

T = TypeVar("T")


def load(
    path: str | Path,
    dtype: Dtype = "bfloat16",
    mesh: Mesh | None = None,
    *,
    attention: AttentionKernel = "auto",
    quantization: Quantization = "none",
    conversation: ConversationStyle | None = None,
    vae: str | Path | None = None,
    adapter: str | Path | None = None,
    merge_adapter: bool = True,
) -> "Pretrained":
    """Loads a model from a checkpoint folder in the released, transformers' or converted layout, or from the hub.

    Args:
      path: The folder, or the id of a model on the Hugging Face hub: `owner/name` or `owner/name@revision`. A folder
        wins over an id. Ids need the extra `hub`.
      dtype: Dtype of parameters and computation. On a CPU, float32 is about ten times as fast as bfloat16.
      mesh: Mesh over which the model is sharded (`janus_jax.sharding.make_mesh`). Default: the default device only.
      attention: See `Execution.attention`.
      quantization: See `Execution.quantization`. The weights are quantized while they are loaded. For a folder that
        `janus-convert --quantization` wrote, "none" keeps its weights of 8 bits, and "int8_dynamic" works with int8.
      conversation: Conversation template, for a folder that does not identify its release.
      vae: Folder or hub id of SDXL's VAE in diffusers' layout, for a released JanusFlow folder without `vae/`. A model
        from the hub fetches its VAE by default. Without a VAE, a JanusFlow model answers questions but generates no
        images.
      adapter: Folder or hub id of a LoRA adapter in peft's layout. If `path` itself is an adapter, its base model is
        loaded.
      merge_adapter: Whether the adapter is added to its matrices, in float32 before the cast to `dtype`. False: it is
        computed next to them, as in training, which is slower.

    Raises:
      JanusError: The folder is missing, damaged or in an unknown layout, the hub does not provide the model, the model
        cannot be sharded over the mesh, the mesh has devices of other processes, or the devices cannot be used.
    """
    checkpoint = open_checkpoint(path, conversation, vae, adapter=adapter)
    processor = Processor.from_directory(checkpoint.folder, checkpoint.model_config)
    return load_checkpoint(
        checkpoint,
        processor,
        dtype,
        mesh,
        attention=attention,
        quantization=quantization,
        merge_adapter=merge_adapter,
    )


def load_checkpoint(
    checkpoint: Checkpoint,
    processor: Processor,
    dtype: Dtype = "bfloat16",
    mesh: Mesh | None = None,
    *,
    attention: AttentionKernel = "auto",
    quantization: Quantization = "none",
    merge_adapter: bool = True,
) -> "Pretrained":
    """Loads the model of an opened checkpoint. See `load`."""
    if dtype not in get_args(Dtype):
        raise JanusError(f"dtype is {dtype!r}; it must be one of {', '.join(get_args(Dtype))}.")
    if quantization not in get_args(Quantization):
        raise JanusError(f"quantization is {quantization!r}; it must be one of {', '.join(get_args(Quantization))}.")
    if quantization != "none" and checkpoint.adapter is not None and not merge_adapter:
        raise JanusError("A quantized model needs a merged adapter; set merge_adapter=True or quantization='none'.")
    quantization = checkpoint.sampling_quantization(quantization)
    initialize_devices(attention)
    config = checkpoint.model_config
    if mesh is not None:
        # With devices of other processes, all processes would have to make the same calls in the same order.
        if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
            raise JanusError(
                "load's mesh has devices of other processes; give each process one of its jax.local_devices()."
            )
        check_mesh(config, mesh)
    adapter = None if merge_adapter else checkpoint.adapter
    # Fused matrices have no place for an adapter.
    layers: Literal["scanned", "unrolled"] = "unrolled" if adapter is None else "scanned"
    execution = Execution(dtype, dtype, attention, layers=layers, quantization=quantization)
    source = checkpoint if adapter is None else replace(checkpoint, adapter=None)
    params = load_params(source.params(dtype), config, execution, mesh)
    if adapter is not None:
        # Replicated on a mesh, because adapters are small.
        sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        stacked = jax.device_put(adapter.stacked(checkpoint.parameters), sharding)
        params = unflatten_dict(flatten_dict(params) | stacked)
    return Pretrained(config, params, processor, make_model(config, execution), mesh)


def load_params(
    leaves: Iterable[tuple[tuple[str, ...], int | None, np.ndarray]],
    config: ModelConfig,
    execution: Execution,
    mesh: Mesh | None,
) -> Params:
    """Returns the parameters as a tree, each put on its devices when it is read.

    Args:
      leaves: See `params_from_leaves`.
      config: Architecture.
      execution: Dtypes and layout of the layers.
      mesh: Mesh over which the parameters are sharded. None: the default device only.
    """
    boxed = abstract_params(make_model(config, execution))
    abstract = nn.unbox(boxed)
    if mesh is not None:
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            param_shardings(boxed, mesh),
        )
    return params_from_leaves(leaves, abstract, config)


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A loaded model that answers questions and generates images.

    Attributes:
      config: Architecture.
      params: Parameters of `model`, with a subtree per layer, or stacked with an adapter that is not merged.
        `models.backbone.scan_params` stacks the layers for training.
      processor: Converts messages and images to arrays.
      model: The network, called as `model.apply({"params": params}, ...)`.
      mesh: Mesh over which the parameters are sharded. None: a single device.
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
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> str:
        """Answers a conversation about any number of images.

        Args:
          messages: Dicts with role, content and optionally images (`processing.Message`). The content has one
            `<image_placeholder>` per image.
          images: Images in the order of their placeholders, if the messages contain no images.
          max_new_tokens: Maximum number of tokens of the answer. Default: 512. An answer also ends where the model's
            context ends; a warning is logged if that is before a given `max_new_tokens`.
          temperature: Sampling temperature; 0 decodes greedily.
          **options: `top_k`, `top_p` and `seed` of sampling, `stop` (strings that end the answer), `system_prompt`
            (replaces the model's), and `background` (background of transparent pixels: "none", "white" or "grey", see
            `processing.Background`).

        Returns:
          The answer, without white space around it.

        Raises:
          JanusError: A message, image or option is invalid, or the conversation leaves no room for an answer in the
            model's context.
        """
        prompt = self.processor.understanding_sequence(messages, images, **_prompt_options(options))
        return self.answer([prompt], max_new_tokens, temperature, **options)[0]

    def chat_stream(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> Iterator[str]:
        """Yields the answer of `chat` in pieces of a few words. White space around the answer is not removed."""
        prompt = self.processor.understanding_sequence(messages, images, **_prompt_options(options))
        shown = 0
        for (text,), finished in self._answers([prompt], max_new_tokens, temperature, chunk=4, **options):
            # The start of a possible stop string is held back.
            end = len(text) if finished else safe_length(text, options.get("stop", ()))
            if end > shown:
                yield text[shown:end]
                shown = end

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> list[str]:
        """Answers several conversations in one batch. See `chat`."""
        chosen = _prompt_options(options)
        prompts = [self.processor.understanding_sequence(messages, None, **chosen) for messages in conversations]
        return self.answer(prompts, max_new_tokens, temperature, **options)

    def converse(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageSource] | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> Iterator[str | ImageWithTokens]:
        """Yields an answer with images: pieces of text, and each image when it is complete.

        When the model writes begin-of-image, it generates an image and continues with the image in its context. The
        model must have been trained on conversations with generated images. `processing.answer_message` makes the next
        message of the conversation from the pieces.

        Args:
          messages: See `chat`. Images in messages of the assistant are images that it generated.
          images: Images in the order of their placeholders, if the messages contain no images.
          max_new_tokens: Maximum number of text tokens. See `chat`.
          temperature: Sampling temperature of text; 0 decodes greedily.
          **options: See `chat`; `top_k` and `top_p` are for text. Also `image_sampling`, a dict of settings of
            `ConversationImageSampler`: `guidance_scale`, `temperature`, `top_k`, `top_p`, `parallel_window`,
            `unconditional`, `max_images`.

        Raises:
          JanusError: See `chat`. Or the model is a JanusFlow, or an image does not fit into the model's context.
        """
        prompt = conversation_prompt(self.processor, messages, images, **_prompt_options(options))
        image_sampling = make_conversation_image_sampler(self.config, **options.pop("image_sampling", {}))
        names = ("top_k", "top_p")
        sampling = SamplingConfig(temperature, **{name: options.pop(name) for name in names if name in options})
        answer_options = AnswerOptions(sampling, image_sampling, max_new_tokens=max_new_tokens, **options)
        assert isinstance(self.model, Janus)
        reader = ContextReader(self.model, self.params, self.processor, self.config.llm.max_positions, self.mesh)
        return iter(InterleavedAnswer(reader, prompt, answer_options))

    def answer(
        self,
        prompts: Sequence[TokenSequence],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        **options: Any,
    ) -> list[str]:
        """Answers prompts made by `processor.understanding_sequence`, in one batch. See `chat`."""
        if not prompts:
            return []
        *_, (texts, _) = self._answers(prompts, max_new_tokens, temperature, **options)
        return [text.strip() for text in texts]

    def _answers(
        self,
        prompts: Sequence[TokenSequence],
        max_new_tokens: int | None,
        temperature: float,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        chunk: int = 16,
    ) -> Iterator[tuple[tuple[str, ...], bool]]:
        """Yields all answers so far and whether they are final, after every `chunk` tokens."""
        sampling = SamplingConfig(temperature, top_k, top_p)
        limits = answer_limits([len(prompt) for prompt in prompts], max_new_tokens, self.config.llm.max_positions)
        padded = _pad(prompts, num_data_shards(self.mesh))
        batch = self._left_pad(padded)
        decoders = [AnswerDecoder(self.processor.tokenizer, stop, limit) for limit in limits]
        read = 0

        def is_finished(tokens: Int[np.ndarray, "B T"]) -> Bool[np.ndarray, " B"]:
            nonlocal read
            for decoder, new in zip(decoders, tokens[:, read:], strict=False):
                decoder.read(new.tolist())
            read = tokens.shape[1]
            return np.array([decoder.finished for decoder in decoders] + [True] * (len(padded) - len(prompts)))

        steps = generate_text(
            self.model,
            self.params,
            batch,
            jnp.concatenate([sampling_keys(seed, index, range(1)) for index in range(len(padded))]),
            sampling,
            stop_tokens=[self.processor.tokenizer.special.eos],
            max_new_tokens=max(limits),
            chunk=min(chunk, max(limits)),
            is_finished=is_finished,
        )
        while True:
            # The mesh is not active at the `yield`, so that it does not affect the caller's code.
            with use_mesh(self.mesh):
                if next(steps, None) is None:
                    break
            yield tuple(decoder.text for decoder in decoders), False
        yield tuple(decoder.finish() for decoder in decoders), True

    def generate(
        self, prompts: str | Sequence[str], images_per_prompt: int = 1, seed: int = 0, **options: Any
    ) -> list[list[Image.Image]]:
        """Generates images of each prompt.

        An image depends on its prompt, the index of the prompt, the index of the image and the seed. The batch size
        changes an image by rounding only.

        Args:
          prompts: Descriptions of images.
          images_per_prompt: Number of images of each prompt.
          seed: Random seed.
          **options: `batch_size`, `report`, `best_of`, `judge` and `metadata` (see `generate_stream`), and settings of
            the model's image sampler: `guidance_scale`, `temperature`, `top_k`, `top_p` for Janus (`TokenSampler`),
            `guidance_scale`, `steps`, `sampler` for JanusFlow (`FlowSampler`).

        Returns:
          The images of each prompt.

        Raises:
          JanusError: A number is out of range, the model has no such setting or no VAE, or a prompt is longer than the
            model's context.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        images: list[list[Image.Image]] = [[] for _ in prompts]
        for generated in self.generate_stream(prompts, images_per_prompt, seed, **options):
            images[generated.prompt].append(generated.image)
        return images

    def generate_stream(
        self,
        prompts: Sequence[str],
        images_per_prompt: int = 1,
        seed: int = 0,
        *,
        batch_size: int = 16,
        report: Callable[[int], object] | None = None,
        best_of: int = 1,
        judge: str | Judge = "self",
        metadata: Sequence[Mapping[str, Any]] | None = None,
        **settings: Any,
    ) -> Iterator[GeneratedImage]:
        """Yields the images of `generate` in order, batch by batch.

        Args:
          batch_size: Number of images generated at a time.
          report: Called with the number of steps since its last call, summed over images. The total is
            `image_sampler(...).num_steps(config)` per image, times `best_of`.
          best_of: Number of candidates for each image, of which the judge selects one. 1: no selection.
          judge: Name of a reward (`rewards.make_reward`), or a function of prompts, images and metadata. "self": the
            model answers whether a picture shows its prompt.
          metadata: Metadata of each prompt, for the judge.
        """
        sampler = self.image_sampler(**settings)
        _check_count("images_per_prompt", images_per_prompt)
        _check_count("batch_size", batch_size)
        sequences = [self.processor.generation_prompt(prompt) for prompt in prompts]
        groups = [sampler.prompt_sequences(self.processor, [sequence]) for sequence in sequences]
        select = BestOf(best_of, self._reward(judge))
        candidates = self._sample_all(
            groups, sampler, images_per_prompt * best_of, seed, batch_size=batch_size, report=report
        )
        if best_of == 1:
            yield from candidates
        else:
            yield from select.stream(candidates, prompts, metadata or [{}] * len(prompts), batch_size)

    def _reward(self, judge: str | Judge) -> Judge:
        if isinstance(judge, str):
            return make_reward(judge, field="judge", model=lambda: self)
        return checked(judge, getattr(judge, "__name__", "judge"))

    def sample_images(
        self, prompts: Sequence[str], numbers: Sequence[tuple[int, int]], seed: int = 0, **settings: Any
    ) -> list[Image.Image]:
        """Generates one image of each prompt, in one batch.

        Args:
          prompts: Descriptions of images.
          numbers: Prompt index and image index (p, i) of each image, which select its random key. The image equals
            image i of prompt p in `generate`.
          seed: Random seed.
          **settings: Settings of the image sampler, as in `generate`.

        Raises:
          JanusError: See `generate`.
        """
        if not prompts:
            return []
        sampler = self.image_sampler(**settings)
        sequences = [self.processor.generation_prompt(prompt) for prompt in prompts]
        groups = [sampler.prompt_sequences(self.processor, [sequence]) for sequence in sequences]
        return self._sample_numbered(groups, numbers, seed, sampler)

    def sample_edits(
        self,
        edits: Sequence[tuple[Sequence[ImageSource], str]],
        numbers: Sequence[tuple[int, int]],
        seed: int = 0,
        **settings: Any,
    ) -> list[Image.Image]:
        """Generates one edited image of each edit, in one batch.

        Args:
          edits: Source images and instruction of each edit.
          numbers: See `sample_images`. The image equals image i of edit p in `edit_stream`.
          seed: Random seed.
          **settings: Settings of `EditSampler`.

        Raises:
          JanusError: See `edit`.
        """
        if not edits:
            return []
        sampler = make_edit_sampler(self.config, **settings)
        opened = [Edit.open(instruction, sources) for sources, instruction in edits]
        groups = [guidance_sequences(self.processor, sampler.format, one) for one in opened]
        return self._sample_numbered(groups, numbers, seed, sampler)

    def _sample_numbered(
        self,
        prompts: Sequence[Sequence[TokenSequence]],
        numbers: Sequence[tuple[int, int]],
        seed: int,
        sampler: ImageSampler,
    ) -> list[Image.Image]:
        """Returns one image of each prompt. See `_sample` and `sample_images`."""
        keys = jnp.stack([sampling_keys(seed, prompt, range(number, number + 1)) for prompt, number in numbers])
        pixels = self._sample(prompts, keys, sampler)
        return [Image.fromarray(image) for image in pixels[: len(prompts)]]

    def edit(
        self,
        image: ImageSource | Sequence[ImageSource],
        instruction: str,
        n: int = 1,
        seed: int = 0,
        **options: Any,
    ) -> list[Image.Image]:
        """Edits an image. The model must have been trained on edits, such as Janus-4o.

        Args:
          image: The source image, or several.
          instruction: What to change.
          n: Number of edited images.
          seed: Random seed.
          **options: `batch_size` (number of images generated at a time), `background` (see `chat`), and settings of
            `EditSampler`: `style`, `guidance_scale`, `image_guidance_scale`, `temperature`, `top_k`, `top_p`,
            `parallel_window`.

        Returns:
          The edited images.

        Raises:
          JanusError: An image or a setting is invalid, the model is a JanusFlow, or the sequence is longer than the
            model's context.
        """
        sources = list(image) if isinstance(image, Sequence) and not isinstance(image, str | bytes) else [image]
        return [edited.image for edited in self.edit_stream([(sources, instruction)], n, seed, **options)]

    def edit_stream(
        self,
        edits: Sequence[tuple[Sequence[ImageSource], str]],
        n: int = 1,
        seed: int = 0,
        *,
        batch_size: int = 16,
        background: Background = "none",
        report: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> Iterator[GeneratedImage]:
        """Yields `n` edited images of each edit in order, batch by batch. See `edit`.

        Args:
          edits: Source images and instruction of each edit.
          report: See `generate_stream`.
        """
        sampler = make_edit_sampler(self.config, **settings)
        _check_count("n", n)
        _check_count("batch_size", batch_size)
        opened = [Edit.open(instruction, sources, background=background) for sources, instruction in edits]
        groups = [guidance_sequences(self.processor, sampler.format, one) for one in opened]
        yield from self._sample_all(groups, sampler, n, seed, batch_size=batch_size, report=report)

    @property
    def sampler_settings(self) -> tuple[str, ...]:
        """Names of the settings of the model's image sampler."""
        return sampler_settings(self.config)

    def image_sampler(self, **settings: Any) -> ImageSampler:
        """Returns the model's image sampler. See `generation.image_sampler.make_image_sampler`."""
        return make_image_sampler(self.config, **settings)

    def _sample_all(
        self,
        prompts: Sequence[Sequence[TokenSequence]],
        sampler: ImageSampler,
        per_prompt: int,
        seed: int,
        *,
        batch_size: int,
        report: Callable[[int], object] | None,
    ) -> Iterator[GeneratedImage]:
        """Yields `per_prompt` images of each prompt in order, batch by batch. See `_sample` and `generate_stream`."""
        longest = max((len(sequence) for prompt in prompts for sequence in prompt), default=0)
        for owners, numbers in _batches(len(prompts), per_prompt, batch_size):
            count = len(owners) * len(numbers)
            keys = jnp.stack([sampling_keys(seed, owner, numbers) for owner in owners])
            each = list(owners)
            if len(each) % num_data_shards(self.mesh):
                # The prompts cannot be split over the data shards: each image gets its own copy of its prompt.
                each, keys = [owner for owner in owners for _ in numbers], keys.reshape(-1, 1)
            report_batch = None if report is None else lambda steps, count=count: report(steps * count)
            pixels = self._sample([prompts[owner] for owner in each], keys, sampler, longest, report_batch)
            indices = ((owner, number) for owner in owners for number in numbers)
            # The images of padding prompts come last and are dropped.
            for (owner, number), image in zip(indices, pixels, strict=False):
                yield GeneratedImage(owner, number, Image.fromarray(image))

    def _sample(
        self,
        prompts: Sequence[Sequence[TokenSequence]],
        keys: Key[Array, "P N"],
        sampler: ImageSampler,
        longest: int = 0,
        report: Callable[[int], object] | None = None,
    ) -> list[UInt8[np.ndarray, "H W 3"]]:
        """Returns N images of each of P prompts, then the images of padding prompts.

        A prompt is the sequences that guidance combines (`ImageSampler.prompt_sequences`).
        Prompts are padded to a multiple of the number of data shards, and to the length `longest`.
        """
        multiple = num_data_shards(self.mesh)
        padded = _pad(prompts, multiple)
        keys = jnp.concatenate([keys, jnp.repeat(keys[-1:], len(padded) - len(prompts), axis=0)])
        sequences = [sequence for group in padded for sequence in group]
        longest = max(longest, *map(len, sequences))
        limit, num_new = self.config.llm.max_positions, self.config.num_gen_tokens
        if longest + num_new > limit:
            raise JanusError(
                f"The prompt has {longest} tokens and the image {num_new}, but the model's context is {limit}; shorten "
                f"the prompt."
            )
        batch = self._left_pad(sequences, longest)
        with use_mesh(self.mesh):
            samples = sampler.sample(self.model, self.params, batch, keys, report)
            size = round_up(min(8, samples.shape[0]), multiple)
            parts = [samples[start : start + size] for start in range(0, samples.shape[0], size)]
            return [image for part in parts for image in to_host(sampler.to_images(self.model, self.params, part))]

    def _left_pad(self, prompts: Sequence[TokenSequence], longest: int = 0) -> Batch:
        """Pads prompts to one of a few lengths, and puts the batch on the devices of the mesh."""
        batch = self.processor.left_pad(prompts, bucket_length(max(longest, *map(len, prompts))))
        return batch if self.mesh is None else jax.device_put(batch, batch_sharding(self.mesh))


def _batches(num_prompts: int, images_per_prompt: int, batch_size: int) -> Iterator[tuple[range, range]]:
    """Yields the prompt indices and image indices of each batch: some images of one prompt, or all of several."""
    per_batch = max(1, batch_size // images_per_prompt)
    size = min(batch_size, images_per_prompt)
    for prompt in range(0, num_prompts, per_batch):
        for number in range(0, images_per_prompt, size):
            yield (
                range(prompt, min(prompt + per_batch, num_prompts)),
                range(number, min(number + size, images_per_prompt)),
            )


def _prompt_options(options: dict[str, Any]) -> dict[str, Any]:
    """Removes the options of `Processor.understanding_sequence` from `options`, and returns them."""
    return {name: options.pop(name) for name in ("system_prompt", "background") if name in options}


def _check_count(name: str, number: int) -> None:
    if not isinstance(number, int) or number < 1:
        raise JanusError(f"{name} is {number!r}; it must be a positive whole number.")


def _pad(sequences: Sequence[T], multiple: int) -> list[T]:
    return [*sequences, *[sequences[-1]] * (round_up(len(sequences), multiple) - len(sequences))]
