"""Runs groups of sequences on the device: encodes images, prefills prompts, decodes all rows, and resizes the cache."""

import functools
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, UInt8
from PIL import Image

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.engine import slots as device
from janus_jax.generation.engine.groups import Group, Prompt, key_size, valid_tokens
from janus_jax.generation.engine.options import EngineOptions
from janus_jax.generation.image_tokens import images_to_tokens, tokens_to_images
from janus_jax.generation.padding import round_up
from janus_jax.generation.sampling import INVALID_TOKEN, check_sampled
from janus_jax.models.backbone import Backbone, Params
from janus_jax.models.janus import Janus
from janus_jax.processing import Processor, Task, TokenSequence
from janus_jax.processing.sequences import ImageSpan, Span, TextSpan
from janus_jax.sharding import num_data_shards, to_host

_SHRINK_AFTER = 16
"""Number of decode calls that a smaller cache must suffice before the cache shrinks."""

_KEPT_PREFIXES = 4
"""Number of system prompts whose keys and values are kept on the device, the last used ones."""

_KEPT_IMAGES = 64
"""Number of images whose embeddings or image tokens are kept on the host, so that the next turn has them."""

_PER_TOKEN = ("tokens", "segment_ids", "positions", "und_patch_index", "gen_token_index")
"""Fields of `Batch` with an entry for each token."""


class Model(Protocol):
    """A loaded model, such as `Pretrained`."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def params(self) -> Params: ...

    @property
    def processor(self) -> Processor: ...

    @property
    def model(self) -> Backbone: ...

    @property
    def mesh(self) -> Mesh | None: ...


class Batcher:
    """The groups that are decoded together. All methods are called in one thread, inside `use_mesh`.

    Attributes:
      groups: Groups with rows.
      num_prefilled: Number of prompts whose keys and values were computed.
      num_steps: Number of decode steps.
      num_tokens: Number of generated text tokens (False) and image tokens (True).
    """

    def __init__(self, model: Model, options: EngineOptions) -> None:
        """Makes an empty batch.

        Args:
          model: The model.
          options: Options with all sizes resolved for this model (`EngineOptions.resolve`).
        """
        self.groups: list[Group] = []
        self.num_prefilled = self.num_steps = 0
        self.num_tokens = {False: 0, True: 0}
        self._model, self._options = model, options
        self._shards = num_data_shards(model.mesh)
        self._key_size = key_size()
        self._encoded: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._prefixes: OrderedDict[tuple[bytes, int], device.Slots] = OrderedDict()
        self._small_calls = 0
        self.reset()

    def reset(self) -> None:
        """Drops all groups and the cache."""
        for group in list(self.groups):
            self.remove(group)
        self._prefixes.clear()
        self._slots = device.empty_slots(self._model.model, self._options.rows[0], self._options.lengths[0])

    def warm_up(self) -> None:
        """Compiles the programs of all sizes."""
        sizes = list(itertools.product(self._options.rows, self._options.lengths))
        for bucket in self._options.buckets:
            for has_images in (False, True) if bucket > self._model.processor.num_und_tokens + 2 else (False,):
                prompt = Prompt(self._blank(bucket, has_images), num_shared=bucket - 1)
                prompts = [prompt]
                if self._shares_prefix(prompt):
                    # The first keeps the prefix, and the second uses it.
                    prompts = [prompt, replace(prompt)]
                for one in prompts:
                    self._prefill([one])
                    if not has_images:
                        for rows, length in sizes:
                            self._resize(rows, length)
                            self._insert([(one, self._slots.shape[0])])
        for old, new in itertools.permutations(sizes, 2):
            self._resize(*old)
            self._resize(*new)
        for rows, length in sizes:
            self._resize(rows, length)
            self._call_decode(0)
        if isinstance(self._model.model, Janus):
            self.to_images([np.zeros(self._model.config.num_gen_tokens, np.int32)])
        self._encoded.clear()
        self._prefixes.clear()
        self._slots = jax.block_until_ready(device.clear(self._slots, np.ones(self._slots.shape[0], bool)))
        self._resize(*sizes[0])

    @property
    def num_rows(self) -> int:
        """Number of rows that have a group."""
        return sum(map(len, (group.rows for group in self.groups)))

    @property
    def free_rows(self) -> int:
        """Number of rows that further groups may have."""
        return self._options.rows[-1] - self.num_rows

    def admit(self, groups: Sequence[Group]) -> None:
        """Gives rows to groups, and computes the keys and values of their prompts.

        A group whose prompt cannot be computed fails. The number of rows must not exceed `free_rows`.
        """
        needed = self.num_rows + sum(group.num_rows for group in groups)
        self._fit(needed, max(group.length + 1 for group in groups))
        used = {row for group in self.groups for row in group.rows}
        free = (row for row in range(self._slots.shape[0]) if row not in used)
        by_bucket: dict[tuple[int, bool], list[Prompt]] = {}
        errors: dict[Prompt, Exception] = {}
        for prompt in {prompt: None for group in groups for prompt in group.prompts if prompt.prefilled is None}:
            if self._shares_prefix(prompt):
                errors |= self._try_prefill([prompt])
            else:
                by_bucket.setdefault((self._bucket(len(prompt)), prompt.has_images), []).append(prompt)
        for (bucket, has_images), prompts in by_bucket.items():
            size = self._prompts_per_call(bucket, has_images)
            for start in range(0, len(prompts), size):
                errors |= self._try_prefill(prompts[start : start + size])
        copies: list[tuple[Prompt, int]] = []
        for group in groups:
            if failed := [errors[prompt] for prompt in group.prompts if prompt in errors]:
                group.fail(failed[0])
                continue
            group.rows = tuple(itertools.islice(free, group.num_rows))
            group.num_cached = group.prompts[0].num_cached
            copies += zip(group.prompts, group.rows, strict=True)
            # The prompt is freed when no waiting group needs it.
            group.prompts = ()
            self.groups.append(group)
        self._insert(copies)

    def decode(self) -> None:
        """Runs some decode steps, and passes the new tokens to the groups. Removes groups that are finished."""
        if not self.groups:
            return
        steps = min(self._options.steps_per_call, max(group.left for group in self.groups))
        self._fit(self.num_rows, max(group.length + min(group.left, steps) for group in self.groups))
        tokens = self._call_decode(steps)
        self.num_steps += steps
        damaged = np.zeros(len(tokens), bool)
        for group in list(self.groups):
            new = valid_tokens(tokens[group.rows[0]])
            group.steps += len(new)
            self.num_tokens[group.settings.is_image] += len(new)
            if INVALID_TOKEN in new:
                damaged[list(group.rows)] = True
            try:
                check_sampled(np.array(new))
                finished = group.receive(new)
            except Exception as error:
                group.fail(error)
                finished = True
            if finished:
                self.remove(group)
        if damaged.any():
            self._slots = device.clear(self._slots, damaged)

    def remove(self, group: Group) -> None:
        """Takes the rows of a group away."""
        self.groups.remove(group)
        group.rows = ()

    def to_images(self, samples: Sequence[Int[np.ndarray, " T"]]) -> list[Image.Image]:
        """Decodes image tokens to images."""
        model = self._model.model
        assert isinstance(model, Janus)
        images = []
        for start in range(0, len(samples), self._shards):
            part = list(samples[start : start + self._shards])
            padded = np.stack([*part, *[part[-1]] * (self._shards - len(part))])
            pixels = to_host(tokens_to_images(model, self._model.params, padded))
            images += [Image.fromarray(image) for image in pixels[: len(part)]]
        return images

    def _call_decode(self, steps: int) -> Int[np.ndarray, "R M"]:
        rows = device.Rows.idle(self._slots.shape[0], self._key_size)
        for group in self.groups:
            group.fill(rows)
        model, params = self._model.model, self._model.params
        self._slots, tokens = device.decode(
            model, params, self._slots, rows, steps, max_steps=self._options.steps_per_call
        )
        return to_host(tokens)

    def _fit(self, rows: int, length: int) -> None:
        """Grows the cache if it is too small, or shrinks it if it was too large for some time."""
        sizes = (
            next(size for size in self._options.rows if size >= rows),
            next(size for size in self._options.lengths if size >= length),
        )
        current = self._slots.shape
        if sizes[0] <= current[0] and sizes[1] <= current[1]:
            self._small_calls = 0 if sizes == current else self._small_calls + 1
            if self._small_calls < _SHRINK_AFTER:
                return
        else:
            sizes = (max(sizes[0], current[0]), max(sizes[1], current[1]))
        self._small_calls = 0
        self._resize(*sizes)

    def _resize(self, rows: int, length: int) -> None:
        if (rows, length) == self._slots.shape:
            return
        sources = np.full(rows, self._slots.shape[0], np.int32)
        new = iter(range(rows))
        for group in self.groups:
            targets = tuple(itertools.islice(new, len(group.rows)))
            sources[list(targets)] = group.rows
            group.rows = targets
        self._slots = device.resize(self._slots, sources, length)

    def _bucket(self, length: int) -> int:
        return next(bucket for bucket in self._options.buckets if bucket >= length)

    def _prompts_per_call(self, bucket: int, has_images: bool) -> int:
        # Prompts with images fill a call.
        size = 1 if has_images else max(1, self._options.tokens_per_prefill // bucket)
        return round_up(size, self._shards)

    def _try_prefill(self, prompts: Sequence[Prompt]) -> dict[Prompt, Exception]:
        """Computes prompts. Returns the errors of those that fail."""
        try:
            self._prefill(prompts)
        except Exception as error:
            if len(prompts) == 1:
                return {prompts[0]: error}
            logging.warning("A batch of prompts failed; they are repeated one by one: %s", error)
            return functools.reduce(lambda a, b: a | b, (self._try_prefill([prompt]) for prompt in prompts))
        return {}

    def _calls_after_prefix(self, prompt: Prompt) -> int:
        """Returns the number of calls of `device.extend` that follow the prefix of a prompt."""
        return -(-(len(prompt) - prompt.num_shared) // self._options.tokens_per_prefill)

    def _shares_prefix(self, prompt: Prompt) -> bool:
        """Whether a kept system prompt saves at least half of the padded prompt."""
        computed = self._calls_after_prefix(prompt) * self._options.tokens_per_prefill
        return computed <= min(len(prompt), self._bucket(len(prompt)) // 2)

    def _prefill(self, prompts: Sequence[Prompt]) -> None:
        """Computes prompts of one kind, or one prompt with a system prompt to share."""
        if not self._shares_prefix(prompts[0]):
            self._prefill_whole(prompts)
            return
        (prompt,) = prompts
        bucket = self._bucket(len(prompt))
        length = next(size for size in self._options.lengths if size >= bucket)
        key = prompt.sequence.tokens[: prompt.num_shared].tobytes(), length
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            self._prefill_after(self._prefixes[key], prompt)
            return
        self._prefill_whole(prompts)
        assert prompt.prefilled is not None
        self._prefixes[key] = device.keep_prefix(
            *prompt.prefilled, prompt.num_shared, num_rows=self._shards, length=length
        )
        if len(self._prefixes) > _KEPT_PREFIXES:
            self._prefixes.popitem(last=False)

    def _prefill_after(self, prefix: device.Slots, prompt: Prompt) -> None:
        """Computes a prompt that begins with a kept prefix. All calls have the same number of tokens."""
        rows, width = [prompt] * self._shards, self._options.tokens_per_prefill
        batch = self._right_pad([one.sequence for one in rows], prefix.shape[1])
        if prompt.has_images:
            batch = self._with_encoded_images(batch, rows)
        # The last tokens of the prefix are computed again, so that the last call ends with the prompt.
        prompt.num_cached = len(prompt) - self._calls_after_prefix(prompt) * width
        slots = prefix
        for start in range(prompt.num_cached, len(prompt), width):
            part = {name: getattr(batch, name)[:, start : start + width] for name in _PER_TOKEN}
            slots = device.extend(self._model.model, self._model.params, slots, batch._replace(**part), start)
        prompt.prefilled = device.Prefilled(*slots), 0
        self.num_prefilled += 1

    def _prefill_whole(self, prompts: Sequence[Prompt]) -> None:
        bucket, has_images = self._bucket(max(map(len, prompts))), prompts[0].has_images
        size = self._prompts_per_call(bucket, has_images)
        padded = [*prompts, *[prompts[-1]] * (size - len(prompts))]
        batch = self._right_pad([prompt.sequence for prompt in padded], bucket)
        if has_images:
            batch = self._with_encoded_images(batch, padded)
        lengths = np.array(list(map(len, padded)), np.int32)
        prefilled = device.prefill(self._model.model, self._model.params, batch, lengths)
        for index, prompt in enumerate(prompts):
            prompt.prefilled = prefilled, index
        self.num_prefilled += len(prompts)

    def _right_pad(self, sequences: Sequence[TokenSequence], length: int) -> Batch:
        none = [
            replace(sequence, und_images=sequence.und_images[:0], gen_images=sequence.gen_images[:0])
            for sequence in sequences
        ]
        batch = self._model.processor.left_pad(none, length)

        def shift(array: np.ndarray) -> np.ndarray:
            # Rows are contiguous from slot 0 on. Positions on the right of a prompt are not read.
            rows = zip(array, sequences, strict=True)
            return np.stack([np.roll(row, len(sequence) - length) for row, sequence in rows])

        return batch._replace(**{name: shift(getattr(batch, name)) for name in _PER_TOKEN})

    def _with_encoded_images(self, batch: Batch, prompts: Sequence[Prompt]) -> Batch:
        """Adds the embeddings of input images and the tokens of context images, padded to the most that fit."""
        config = self._model.config
        length, num_patches = batch.shape[1], config.und_encoder.num_patches
        encoded = [self._encode(prompt.sequence.und_images, "input") for prompt in prompts]
        shape = (len(prompts), length // (num_patches + 1), num_patches, config.llm.width)
        features = np.zeros(shape, self._model.model.execution.dtype)
        for row, images in zip(features, encoded, strict=True):
            for number, image in enumerate(images):
                row[number] = image
        batch = batch._replace(und_features=features)
        if not isinstance(self._model.model, Janus):
            return batch
        ids = np.zeros((len(prompts), length // (config.num_gen_tokens + 1), config.num_gen_tokens), np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            known = dict(enumerate(prompt.image_tokens))
            for number in range(prompt.num_token_images):
                tokens = known.get(number)
                row[number] = (
                    self._encode(prompt.sequence.gen_images[number : number + 1], "context")[0]
                    if tokens is None
                    else tokens
                )
        return batch._replace(gen_ids=ids)

    def _encode(self, images: UInt8[np.ndarray, "M H W 3"], kind: str) -> list[np.ndarray]:
        """Returns the embeddings of input images, or the tokens of context images."""
        network: Any = self._model.model
        results = []
        for image in images:
            key = hashlib.sha256(kind.encode() + image.tobytes()).digest()
            if key not in self._encoded:
                padded = np.repeat(image[None], self._shards, axis=0)
                run: Any = device.encode_input_images if kind == "input" else images_to_tokens
                self._encoded[key] = to_host(run(network, self._model.params, padded))[0]
                if len(self._encoded) > _KEPT_IMAGES:
                    self._encoded.popitem(last=False)
            self._encoded.move_to_end(key)
            results.append(self._encoded[key])
        return results

    def _insert(self, copies: Iterable[tuple[Prompt, int]]) -> None:
        """Copies prompts into rows, those of one prefill call together."""
        by_call: dict[int, list[tuple[Prompt, int]]] = {}
        for prompt, row in copies:
            assert prompt.prefilled is not None
            by_call.setdefault(id(prompt.prefilled[0]), []).append((prompt, row))
        width = self._options.rows[0]
        for each in by_call.values():
            for start in range(0, len(each), width):
                part = each[start : start + width]
                sources, targets = np.zeros(width, np.int32), np.full(width, self._slots.shape[0], np.int32)
                sources[: len(part)] = [prompt.prefilled[1] for prompt, _ in part if prompt.prefilled is not None]
                targets[: len(part)] = [row for _, row in part]
                prefilled = part[0][0].prefilled
                assert prefilled is not None
                self._slots = device.insert(self._slots, prefilled[0], sources, targets)

    def _blank(self, length: int, has_images: bool) -> TokenSequence:
        """Returns a prompt of `length` tokens for `warm_up`."""
        processor = self._model.processor
        spans: list[Span] = []
        if has_images:
            side = processor.und_image_size
            spans.append(ImageSpan("input", np.zeros((side, side, 3), np.uint8)))
            length -= processor.num_und_tokens + 2
        text = np.full(length, processor.tokenizer.special.pad, np.int32)
        return processor.layout.sequence(Task.TEXT, [TextSpan(text, np.zeros(length, bool)), *spans])
