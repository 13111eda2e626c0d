"""Image generation token by token, with classifier-free guidance (Janus, arXiv 2410.13848, section 3.2)."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Int, Key, UInt8

from janus_jax.batch import Batch
from janus_jax.config import ModelConfig
from janus_jax.generation.decode import DecodeParams, Decoder, DecodeSpec, check_guidance
from janus_jax.generation.parallel_decode import ParallelDecoder, ParallelWindow, auto_window, check_window
from janus_jax.generation.sampling import SamplingConfig, check_sampled
from janus_jax.models.backbone import Backbone, Params, apply, to_images, to_pixels
from janus_jax.models.janus import Janus
from janus_jax.processing import Processor, TokenSequence
from janus_jax.sharding import to_host


@dataclass(frozen=True)
class TokenSampler:
    """Image sampler of Janus and Janus-Pro: generates image tokens autoregressively.

    Attributes:
      guidance_scale: Guidance scale; the paper uses 5. 1 disables guidance and halves the time.
      temperature, top_k, top_p: See `SamplingConfig`.
      parallel_window: Number of token positions per pass of the model (`parallel_decode`); "auto" depends on the device
        and the batch. 0 generates one token per pass. All values give the same images, except for rounding.

    Raises:
      JanusError: A setting is out of range.
    """

    guidance_scale: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    parallel_window: ParallelWindow = 0

    unit: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        check_guidance(self.guidance_scale)
        check_window(self.parallel_window)
        _ = self.sampling  # Checks the other settings.

    @property
    def sampling(self) -> SamplingConfig:
        """Settings for sampling one token."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p)

    @property
    def guidance(self) -> Any:
        """The argument `guidance_scale` of `guide`."""
        return self.guidance_scale

    def num_steps(self, config: ModelConfig) -> int:
        """See `ImageSampler`."""
        return config.num_gen_tokens

    def prompt_sequences(self, processor: Processor, prompts: Sequence[TokenSequence]) -> list[TokenSequence]:
        """See `ImageSampler`. With guidance, each prompt is followed by its unconditional sequence."""
        if self.guidance_scale == 1:
            return list(prompts)
        return [sequence for prompt in prompts for sequence in (prompt, processor.unconditional_sequence(prompt))]

    def sample(
        self,
        model: Backbone,
        params: Params,
        prompts: Batch,
        keys: Key[Array, "P N"],
        report: Callable[[int], object] | None = None,
    ) -> Int[Array, "P*N T"]:
        """See `ImageSampler`. Returns image tokens.

        Raises:
          JanusError: The logits are NaN.
        """
        assert isinstance(model, Janus)
        tokens = sample_image_tokens(
            model,
            params,
            prompts,
            keys,
            self.sampling,
            guidance_scale=self.guidance,
            parallel_window=self.parallel_window,
            report=report,
        )
        check_sampled(to_host(tokens))
        return tokens

    def to_images(self, model: Backbone, params: Params, samples: Int[Array, "R T"]) -> UInt8[Array, "R H W 3"]:
        """See `ImageSampler`."""
        assert isinstance(model, Janus)
        return tokens_to_images(model, params, samples)


def sample_image_tokens(
    model: Janus,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    sampling: SamplingConfig,
    *,
    guidance_scale: Any,
    parallel_window: ParallelWindow = 0,
    report: Callable[[int], object] | None = None,
    report_every: int = 24,
) -> Int[Array, "P*N T"]:
    """Samples the image tokens of N images for each of P prompts.

    Args:
      model: The network.
      params: Parameters of the network.
      prompts: Left-padded prompts that end with begin-of-image. With guidance, the unconditional sequence of a prompt
        follows it: 2 P sequences. With a guidance scale of 1, P sequences.
      keys: Random key of each image.
      sampling: Settings for sampling one token.
      guidance_scale: Guidance scale, or the weights of the Q sequences of each prompt (`decode.guide`).
      parallel_window: See `TokenSampler`.
      report: Called about every `report_every` tokens with the number of tokens per image since its last call.

    Returns:
      The image tokens, T per image. `sampling.INVALID_TOKEN` where the logits were NaN.
    """
    num_tokens = model.config.num_gen_tokens
    decoder = image_token_decoder(
        model,
        params,
        prompts,
        keys,
        sampling,
        guidance_scale=guidance_scale,
        parallel_window=parallel_window,
    )
    reported = 0
    while True:
        if report is not None:
            # The device works asynchronously. Only finished tokens are reported.
            decoder.state.tokens.block_until_ready()
            report(decoder.num_tokens - reported)
            reported = decoder.num_tokens
        remaining = num_tokens - decoder.num_tokens
        if not remaining:
            return decoder.state.tokens[:, :num_tokens]
        decoder.advance(remaining if report is None else min(report_every, remaining))


def image_token_decoder(
    model: Janus,
    params: Params,
    prompts: Batch,
    keys: Key[Array, "P N"],
    sampling: SamplingConfig,
    *,
    guidance_scale: Any,
    parallel_window: ParallelWindow,
) -> Decoder:
    """Returns the decoder of `sample_image_tokens`, with the first token of each image."""
    num_tokens = model.config.num_gen_tokens
    spec = DecodeSpec(Janus.embed_image_tokens, Janus.image_logits, sampling.strategy)
    settings = DecodeParams(sampling.params, guidance_scale)
    num_sequences = prompts.shape[0] * keys.shape[1]
    window = auto_window(num_sequences) if parallel_window == "auto" else parallel_window
    if window > 1:
        return ParallelDecoder(
            model, params, prompts, keys, spec=spec, settings=settings, total=num_tokens, window=window
        )
    max_slots = prompts.shape[1] + num_tokens - 1
    return Decoder(model, params, prompts, keys, spec=spec, settings=settings, max_slots=max_slots)


@functools.partial(jax.jit, static_argnames=("model",))
def images_to_tokens(model: Janus, params: Params, images: UInt8[Array, "R H W 3"]) -> Int[Array, "R T"]:
    """Encodes RGB images of the size of target images as image tokens."""
    # float32, because neighboring codes differ by little.
    tokenizer = Janus(model.config, replace(model.execution, dtype="float32"))
    return apply(tokenizer.tokenize, params, to_pixels(images))


@functools.partial(jax.jit, static_argnames=("model",))
def tokens_to_images(model: Janus, params: Params, tokens: Int[Array, "R T"]) -> UInt8[Array, "R H W 3"]:
    """Decodes image tokens to RGB images."""
    return to_images(apply(model.detokenize, params, tokens))
