"""Images of JanusFlow in progress: its steps run between the decode steps of the answers."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Key
from PIL import Image

from janus_jax.generation.engine.batcher import Model
from janus_jax.generation.engine.handle import Handle
from janus_jax.generation.engine.job import Job
from janus_jax.generation.engine.requests import PartialPicture, Picture, Usage
from janus_jax.generation.padding import bucket_length
from janus_jax.generation.rectified_flow import FlowSampler, check_latents, integrate, prefill, sample_noise
from janus_jax.models.janusflow import JanusFlow
from janus_jax.processing import TokenSequence
from janus_jax.sharding import batch_sharding, num_data_shards, to_host


class FlowJob(Job):
    """Images of one prompt. They are generated one after the other, or one for each data shard."""

    def __init__(
        self,
        sequence: TokenSequence,
        sampler: FlowSampler,
        keys: Key[Array, " N"],
        model: Model,
        handle: Handle,
        partial_images: int,
    ) -> None:
        """Stores the request. See `TokenImageJob`."""
        super().__init__(handle)
        self._sequence, self._sampler, self._keys, self._model = sequence, sampler, keys, model
        self._partial_images = partial_images
        self.usage = Usage(prompt_tokens=len(sequence))

    def run(self) -> Iterator[None]:
        """Generates the images. Yields after every step, so that other requests go on."""
        shards, sampler = num_data_shards(self._model.mesh), self._sampler
        network, params = self._model.model, self._model.params
        assert isinstance(network, JanusFlow)
        prompts = self._model.processor.left_pad([self._sequence] * shards, bucket_length(len(self._sequence)))
        if self._model.mesh is not None:
            prompts = jax.device_put(prompts, batch_sharding(self._model.mesh))
        cache = prefill(network, params, prompts, 1, sampler.guidance_scale != 1)
        count = len(self._keys)
        for start in range(0, count, shards):
            numbers = list(range(start, min(start + shards, count)))
            latents = sample_noise(network, self._keys[np.array([*numbers, *[count - 1] * (shards - len(numbers))])])
            for step in range(sampler.steps):
                interval = (step, step + 1, sampler.steps)
                latents = integrate(
                    network,
                    params,
                    cache,
                    latents,
                    interval,
                    guidance_scale=sampler.guidance_scale,
                    solver=sampler.sampler,
                )
                self.usage += Usage(completion_tokens=len(numbers))
                done = step + 1
                parts = self._partial_images + 1
                if done < sampler.steps and done * parts // sampler.steps > step * parts // sampler.steps:
                    for number, image in zip(numbers, self._images(latents), strict=False):
                        self.handle.send(PartialPicture(number, image, done / sampler.steps))
                latents.block_until_ready()
                yield
            check_latents(latents)
            for number, image in zip(numbers, self._images(latents), strict=False):
                self.handle.send(Picture(number, image))
        self.finish("stop")

    def _images(self, latents: Array) -> list[Image.Image]:
        pixels = to_host(self._sampler.to_images(self._model.model, self._model.params, latents))
        return [Image.fromarray(image) for image in pixels]
