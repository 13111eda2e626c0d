"""Compares logits, tokens and pixels of Janus with transformers, for the same checkpoint of pseudo-weights.

transformers saves the checkpoint, and `open_checkpoint` reads it. Both use the exact GELU, so only rounding may differ.

Tolerances are relative to the largest value of an array. bfloat16 operations have a relative error of 2^-9, and the two
implementations round at different points: norms and logits are float32 here, logits are bfloat16 in transformers. After
all layers, the largest of thousands of differences is therefore a few percent, and each result differs that much from
the float32 result. `test_bfloat16_is_as_close_to_float32_as_transformers` compares both with the float32 result.
"""

import dataclasses
import functools
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints_convert import open_checkpoint
from checkpoints_convert.transformers_janus import config_to_json
from janus_jax.batch import NO_IMAGE, Batch
from janus_jax.config import Execution, JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from janus_jax.generation.image_tokens import sample_image_tokens
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.generation.text import generate_text
from janus_jax.models.backbone import to_pixels
from janus_jax.models.janus import Janus
from janus_jax.pretrained import load_params
from tests.golden.pseudo_weights import tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BOS, PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, FIRST_TEXT_TOKEN = 0, 2, 3, 4, 5, 8
GUIDANCE = 5.0
NEW_TOKENS = 12

CONFIG = JanusConfig(
    name="Janus-Pro-small",
    und_encoder=SiglipConfig(image_size=64, patch_size=16, width=64, depth=2, num_heads=4, mlp_dim=256),
    gen_encoder=VQConfig(
        image_size=8, codebook_size=64, base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, z_channels=32
    ),
    llm=LlamaConfig(
        vocab_size=160, width=64, depth=2, num_heads=4, num_kv_heads=4, head_dim=16, mlp_dim=160, max_positions=512
    ),
    gen_head_width=64,
)
UNUSED_TOKEN = CONFIG.llm.vocab_size
"""End-of-sequence token outside the vocabulary, so that no answer ends early."""

GROUPED = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, num_kv_heads=2))
"""Config with two query heads per key head, which no released Janus model has."""


@dataclass(frozen=True)
class Tolerance:
    """Tolerances relative to the largest value of an array.

    Attributes:
      shallow: For outputs of one encoder, decoder or head.
      deep: For outputs of encoder, adaptor and language model together.
      tie: For logits. If the two best differ by less, either may be chosen.
      guided_tie: Like `tie`, for guided logits c + 4 (c - u), in which rounding errors are up to 9 times as large.
    """

    shallow: float
    deep: float
    tie: float
    guided_tie: float


FLOAT32 = Tolerance(shallow=1e-5, deep=1e-4, tie=1e-4, guided_tie=1e-4)
BFLOAT16 = Tolerance(shallow=2e-2, deep=5e-2, tie=2e-2, guided_tie=5e-2)


class Pair:
    """One checkpoint, loaded by transformers and by janus_jax."""

    def __init__(self, config, dtype, folder):
        self.tolerance = FLOAT32 if dtype == "float32" else BFLOAT16
        self.dtype = getattr(torch, dtype)
        self.torch_model = self._make(config).to(self.dtype).eval()
        self.torch_model.save_pretrained(folder)
        self.config = open_checkpoint(folder).config
        execution = Execution(dtype=dtype, param_dtype=dtype, layers="unrolled")
        self.model = Janus(self.config, execution)
        self.params = load_params(open_checkpoint(folder).params(dtype), self.config, execution, mesh=None)

    @staticmethod
    def _make(config):
        model = transformers.JanusForConditionalGeneration(
            transformers.JanusConfig(**config_to_json(config, "float32", IMAGE))
        )
        model.model.vision_model.config.num_image_tokens = config.gen_encoder.num_tokens
        weights = {name: tensor(name, value.shape) for name, value in model.state_dict().items()}
        # Unlike the released model, transformers finds the nearest code without normalizing codes and latents. If all
        # codes have length 1, both find the same code.
        codes = weights["model.vqmodel.quantize.embedding.weight"]
        codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        return model

    def apply(self, method, *args):
        return jax.jit(lambda params, *args: self.model.apply({"params": params}, *args, method=method))(
            self.params, *args
        )

    def generate(self, prompts, **options):
        """Returns the tokens that transformers generates greedily."""
        settings = transformers.GenerationConfig(
            do_sample=False,
            bos_token_id=BOS,
            eos_token_id=UNUSED_TOKEN,
            pad_token_id=PAD,
            guidance_scale=GUIDANCE,
            **options.pop("settings", {}),
        )
        settings.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
        ids, mask = torch.from_numpy(prompts.tokens).long(), torch.from_numpy(prompts.segment_ids).long()
        return self.torch_model.generate(ids, attention_mask=mask, generation_config=settings, **options)

    @cached_property
    def understanding(self):
        """A batch of prompts with one, two and no images, and the images."""
        images = np.random.default_rng(3).integers(0, 256, (3, *[self.config.und_encoder.image_size] * 2, 3), np.uint8)
        image = [BEGIN_OF_IMAGE, *[IMAGE] * self.config.und_encoder.num_patches, END_OF_IMAGE]
        prompts = [
            [BOS, *text_tokens(7, 1), *image, *text_tokens(9, 2)],
            [BOS, *text_tokens(4, 3), *image, *text_tokens(2, 4), *image, *text_tokens(5, 5)],
            [BOS, *text_tokens(11, 6)],
        ]
        blank = np.zeros_like(images[0])
        return batch(prompts, np.stack([[images[0], blank], images[1:], [blank, blank]])), images

    @cached_property
    def understanding_logits(self):
        """Logits of janus_jax and of transformers at all token positions."""
        prompts, images = self.understanding
        found = self.apply(lambda model, batch: model.text_logits(model(batch)), prompts)
        expected = self.torch_model(
            input_ids=torch.from_numpy(prompts.tokens).long(),
            attention_mask=torch.from_numpy(prompts.segment_ids).long(),
            pixel_values=channels_first(to_pixels(images)).to(self.dtype),
        ).logits
        return np.asarray(found)[prompts.is_token], to_numpy(expected)[prompts.is_token]

    @cached_property
    def pixels(self):
        """Four smooth images with different latents at all positions."""
        side = self.config.gen_encoder.image_size
        x, y = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 2)
        waves = [
            np.sin(np.stack([a * x + b * y, b * x - a * y, a * x * y], -1)) for a, b in [(2, 5), (9, 1), (4, 4), (7, 6)]
        ]
        return np.stack(waves).astype(np.float32)


def text_tokens(count, seed):
    return np.random.default_rng(seed).integers(FIRST_TEXT_TOKEN, CONFIG.llm.vocab_size, count).tolist()


def batch(prompts, und_images=None):
    """Returns a batch of token sequences, padded on the left."""
    length = max(map(len, prompts))
    tokens = np.array([[PAD] * (length - len(ids)) + ids for ids in prompts], np.int32)
    mask = np.array([[0] * (length - len(ids)) + [1] * len(ids) for ids in prompts], np.int32)
    is_image = tokens == IMAGE
    return Batch(
        tokens=tokens,
        segment_ids=mask,
        positions=np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32),
        und_patch_index=np.where(is_image, np.cumsum(is_image, axis=1) - 1, NO_IMAGE).astype(np.int32),
        gen_token_index=np.full_like(tokens, NO_IMAGE),
        und_images=np.zeros((len(prompts), 0, 16, 16, 3), np.uint8) if und_images is None else und_images,
        gen_images=np.zeros((len(prompts), 0, 16, 16, 3), np.uint8),
    )


def channels_first(pixels):
    return torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))


def to_numpy(tensor):
    return tensor.detach().float().numpy()


def assert_close(actual, expected, relative):
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.2e}"


def assert_equal_until_near_tie(actual, expected, logits, tie):
    """Asserts that tokens are equal up to the first step at which the two best logits are nearly equal.

    Args:
      logits: Logits of the expected tokens, [B, steps, V].
      tie: Difference of the two best logits that counts as nearly equal, relative to the largest logit.
    """
    best = np.sort(logits, axis=-1)[..., -2:]
    clear = best[..., 1] - best[..., 0] > tie * np.abs(logits).max()
    before_tie = np.cumprod(clear, axis=1).astype(bool)
    assert before_tie.sum() >= len(logits), "near ties come too early to compare tokens"
    np.testing.assert_array_equal(actual[before_tie], expected[before_tie])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Returns the pair for a config and dtype."""

    @functools.cache
    def load(config, dtype):
        return Pair(config, dtype, tmp_path_factory.mktemp("parity") / config.name)

    with torch.inference_mode():
        yield load


@pytest.fixture(params=[(CONFIG, "float32"), (CONFIG, "bfloat16")], ids=["float32", "bfloat16"])
def pair(request, pairs):
    return pairs(*request.param)


LANGUAGE = pytest.mark.parametrize(
    "pair",
    [(CONFIG, "float32"), (CONFIG, "bfloat16"), (GROUPED, "float32")],
    ids=["float32", "bfloat16", "grouped"],
    indirect=True,
)


def test_understanding_encoder(pair):
    _, images = pair.understanding
    pixels = np.asarray(to_pixels(images))
    found = pair.apply(lambda model, pixels: model.und_encoder(pixels), pixels)
    expected = pair.torch_model.model.vision_model(channels_first(pixels).to(pair.dtype)).last_hidden_state
    assert_close(found, to_numpy(expected), pair.tolerance.shallow)


@LANGUAGE
def test_understanding_logits_at_all_positions(pair):
    assert_close(*pair.understanding_logits, pair.tolerance.deep)


def test_bfloat16_is_as_close_to_float32_as_transformers(pairs):
    _, exact = pairs(CONFIG, "float32").understanding_logits
    error, reference = (root_mean_square(logits - exact) for logits in pairs(CONFIG, "bfloat16").understanding_logits)
    assert error <= 1.1 * reference
    assert error <= 2e-2 * root_mean_square(exact)


def root_mean_square(array):
    return np.sqrt(np.mean(np.square(array)))


@LANGUAGE
def test_greedy_text(pair):
    prompts, images = pair.understanding
    written = generate_text(
        pair.model,
        pair.params,
        prompts,
        keys(3),
        SamplingConfig(),
        stop_tokens=[UNUSED_TOKEN],
        max_new_tokens=NEW_TOKENS,
    )
    generated = pair.generate(
        prompts,
        pixel_values=channels_first(to_pixels(images)).to(pair.dtype),
        settings={"max_new_tokens": NEW_TOKENS, "return_dict_in_generate": True, "output_logits": True},
    )
    expected = generated.sequences[:, prompts.shape[1] :].numpy()
    logits = np.stack([to_numpy(step) for step in generated.logits], axis=1)
    assert_equal_until_near_tie(np.concatenate(list(written), axis=1), expected, logits, pair.tolerance.tie)


@LANGUAGE
def test_guided_image_tokens(pair):
    conditional = [[BOS, *text_tokens(length, length), BEGIN_OF_IMAGE] for length in (5, 9, 4, 12, 7, 3, 8, 6)]
    prompts = batch(conditional)
    # Each prompt is followed by its unconditional sequence, in which padding tokens replace the text.
    both = [ids for prompt in conditional for ids in (prompt, [BOS, *[PAD] * (len(prompt) - 2), BEGIN_OF_IMAGE])]
    found = sample_image_tokens(
        pair.model, pair.params, batch(both), keys(len(conditional))[:, None], SamplingConfig(), guidance_scale=GUIDANCE
    )
    steps = []
    hook = pair.torch_model.model.generation_head.register_forward_hook(lambda *call: steps.append(to_numpy(call[-1])))
    expected = pair.generate(prompts, generation_mode="image", settings={"max_length": prompts.shape[1]}).numpy()
    hook.remove()
    with_text, without_text = np.split(np.stack(steps, axis=1), 2)
    logits = without_text + GUIDANCE * (with_text - without_text)
    assert_equal_until_near_tie(np.asarray(found), expected, logits, pair.tolerance.guided_tie)


def keys(count):
    return jnp.concatenate([sampling_keys(0, row, range(1)) for row in range(count)])


def test_image_embeddings_and_logits(pair):
    ids = np.arange(pair.config.gen_encoder.codebook_size, dtype=np.int32)[None]
    embedded = pair.torch_model.prepare_embeddings_for_image_generation(torch.from_numpy(ids).long())
    assert_close(pair.apply(pair.model.embed_image_tokens, ids), to_numpy(embedded), pair.tolerance.shallow)
    logits = pair.torch_model.model.generation_head(embedded)
    hidden = jnp.asarray(to_numpy(embedded), jnp.dtype(pair.model.execution.dtype))
    assert_close(pair.apply(pair.model.image_logits, hidden), to_numpy(logits), pair.tolerance.shallow)


def encode(model, pixels):
    latents = model.gen_encoder.latents(pixels)
    return latents, model.gen_encoder.quantize(latents)


def test_vq_encode(pair):
    latents = []
    tokenizer = pair.torch_model.model.vqmodel
    hook = tokenizer.quant_conv.register_forward_hook(lambda *call: latents.append(call[-1].permute(0, 2, 3, 1)))
    encoded = tokenizer.encode(channels_first(pair.pixels).to(pair.dtype)).image_tokens
    hook.remove()
    found, ids = pair.apply(encode, pair.pixels)
    assert_close(found, to_numpy(latents[0]), pair.tolerance.shallow)
    directions = to_numpy(latents[0].reshape(len(pair.pixels), -1, pair.config.gen_encoder.code_dim))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    similarity = directions @ to_numpy(tokenizer.quantize.embedding.weight).T
    best = np.sort(similarity, axis=-1)[..., -2:]
    clear = best[..., 1] - best[..., 0] > pair.tolerance.tie
    assert clear.mean() > 0.5, "the two nearest codes are nearly equal at most positions"
    expected = encoded.reshape(clear.shape).numpy()
    np.testing.assert_array_equal(np.asarray(ids)[clear], expected[clear])


def test_vq_decode(pair):
    vq = pair.config.gen_encoder
    ids = np.random.default_rng(0).integers(0, vq.codebook_size, (2, vq.num_tokens), np.int32)
    expected = pair.torch_model.decode_image_tokens(torch.from_numpy(ids).long())
    assert_close(pair.apply(pair.model.detokenize, ids), to_numpy(expected), pair.tolerance.shallow)
