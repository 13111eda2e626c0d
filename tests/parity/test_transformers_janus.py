"""The same checkpoint in transformers' Janus and here: the same logits, the same ids, the same pixels.

transformers saves a model of pseudo-weights, and this side reads the folder as any user's. Its GELUs are exact
(`hidden_act` "gelu") as those of the released model are, so nothing but rounding may differ.

Tolerances are shares of an array's largest value. In bfloat16 an operation rounds to 2^-9 of its result, and here and
there it rounds at different points (norms and logits stay float32 here, logits are bfloat16 there), so behind all
layers the largest of thousands of differences is a few hundredths: either side is that far from the float32 result.
`test_bfloat16_is_as_near_to_float32_as_theirs` therefore measures against that as well.
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

BOS, PAD, BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE, FIRST_WORD = 0, 2, 3, 4, 5, 8
GUIDANCE = 5.0
NEW_WORDS = 12

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
NO_WORD = CONFIG.llm.vocab_size
"""Ends an answer, were it ever written."""

GROUPED = dataclasses.replace(CONFIG, llm=dataclasses.replace(CONFIG.llm, num_kv_heads=2))
"""Two queries to a key, a form that no released Janus has and transformers' LLaMA knows."""


@dataclass(frozen=True)
class Tolerance:
    """Shares of an array's largest value.

    Attributes:
      shallow: behind one encoder.
      deep: behind encoder, adaptor and all layers of the language model.
      tie: of logits: where the two best are closer, either may win.
      guided_tie: of guided logits c + 4 (c - u): rounding counts up to 9 times.
    """

    shallow: float
    deep: float
    tie: float
    guided_tie: float


FLOAT32 = Tolerance(shallow=1e-5, deep=1e-4, tie=1e-4, guided_tie=1e-4)
BFLOAT16 = Tolerance(shallow=2e-2, deep=5e-2, tie=2e-2, guided_tie=5e-2)


class Pair:
    """One checkpoint, loaded by transformers and by this project."""

    def __init__(self, config, dtype, folder):
        self.tolerance = FLOAT32 if dtype == "float32" else BFLOAT16
        self.dtype = getattr(torch, dtype)
        self.theirs = self._make(config).to(self.dtype).eval()
        self.theirs.save_pretrained(folder)
        self.config = open_checkpoint(folder).config
        execution = Execution(dtype=dtype, param_dtype=dtype, layers="unrolled")
        self.ours = Janus(self.config, execution)
        self.params = load_params(open_checkpoint(folder).params(dtype), self.config, execution, mesh=None)

    @staticmethod
    def _make(config):
        model = transformers.JanusForConditionalGeneration(
            transformers.JanusConfig(**config_to_json(config, "float32", IMAGE))
        )
        model.model.vision_model.config.num_image_tokens = config.gen_encoder.num_tokens
        numbers = {name: tensor(name, value.shape) for name, value in model.state_dict().items()}
        # transformers looks for the nearest code without bringing codes and latents to length 1 first, as the
        # released model does. With codes of length 1 both find the same.
        codes = numbers["model.vqmodel.quantize.embedding.weight"]
        codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in numbers.items()})
        return model

    def apply(self, method, *args):
        return jax.jit(lambda params, *args: self.ours.apply({"params": params}, *args, method=method))(
            self.params, *args
        )

    def generate(self, prompts, **options):
        """transformers' ids, the likeliest at every step."""
        settings = transformers.GenerationConfig(
            do_sample=False,
            bos_token_id=BOS,
            eos_token_id=NO_WORD,
            pad_token_id=PAD,
            guidance_scale=GUIDANCE,
            **options.pop("settings", {}),
        )
        settings.generation_kwargs = {"boi_token_id": BEGIN_OF_IMAGE}
        ids, mask = torch.from_numpy(prompts.tokens).long(), torch.from_numpy(prompts.segment_ids).long()
        return self.theirs.generate(ids, attention_mask=mask, generation_config=settings, **options)

    @cached_property
    def understanding(self):
        """Prompts of different lengths, with one image, with two, and with none."""
        images = np.random.default_rng(3).integers(0, 256, (3, *[self.config.und_encoder.image_size] * 2, 3), np.uint8)
        picture = [BEGIN_OF_IMAGE, *[IMAGE] * self.config.und_encoder.num_patches, END_OF_IMAGE]
        rows = [
            [BOS, *words(7, 1), *picture, *words(9, 2)],
            [BOS, *words(4, 3), *picture, *words(2, 4), *picture, *words(5, 5)],
            [BOS, *words(11, 6)],
        ]
        blank = np.zeros_like(images[0])
        return batch(rows, np.stack([[images[0], blank], images[1:], [blank, blank]])), images

    @cached_property
    def understanding_logits(self):
        """Ours and theirs, at every place that is no padding."""
        prompts, images = self.understanding
        ours = self.apply(lambda model, batch: model.text_logits(model(batch)), prompts)
        theirs = self.theirs(
            input_ids=torch.from_numpy(prompts.tokens).long(),
            attention_mask=torch.from_numpy(prompts.segment_ids).long(),
            pixel_values=channels_first(to_pixels(images)).to(self.dtype),
        ).logits
        return np.asarray(ours)[prompts.is_token], numbers(theirs)[prompts.is_token]

    @cached_property
    def pixels(self):
        """Four pictures to be tokenized: smooth ones, whose latents differ from place to place."""
        side = self.config.gen_encoder.image_size
        x, y = np.meshgrid(*[np.linspace(-1, 1, side, dtype=np.float32)] * 2)
        waves = [
            np.sin(np.stack([a * x + b * y, b * x - a * y, a * x * y], -1)) for a, b in [(2, 5), (9, 1), (4, 4), (7, 6)]
        ]
        return np.stack(waves).astype(np.float32)


def words(count, seed):
    return np.random.default_rng(seed).integers(FIRST_WORD, CONFIG.llm.vocab_size, count).tolist()


def batch(rows, und_images=None):
    """Rows of ids side by side, padded on the left."""
    length = max(map(len, rows))
    tokens = np.array([[PAD] * (length - len(row)) + row for row in rows], np.int32)
    mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows], np.int32)
    is_image = tokens == IMAGE
    return Batch(
        tokens=tokens,
        segment_ids=mask,
        positions=np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32),
        und_patch_index=np.where(is_image, np.cumsum(is_image, axis=1) - 1, NO_IMAGE).astype(np.int32),
        gen_token_index=np.full_like(tokens, NO_IMAGE),
        und_images=np.zeros((len(rows), 0, 16, 16, 3), np.uint8) if und_images is None else und_images,
        gen_images=np.zeros((len(rows), 0, 16, 16, 3), np.uint8),
    )


def channels_first(pixels):
    return torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))


def numbers(tensor):
    return tensor.detach().float().numpy()


def assert_close(actual, expected, relative):
    actual, expected = np.asarray(actual, np.float32), np.asarray(expected, np.float32)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= relative, f"relative error {error:.2e}"


def assert_same_until_a_tie(actual, expected, logits, tie):
    """Ids are equal as long as the two best logits lie apart; from the first tie on, rows may go their own ways.

    Args:
      logits: those that the expected ids are the largest of, [rows, steps, ids].
      tie: share of the largest logit.
    """
    best = np.sort(logits, axis=-1)[..., -2:]
    clear = best[..., 1] - best[..., 0] > tie * np.abs(logits).max()
    before_tie = np.cumprod(clear, axis=1).astype(bool)
    assert before_tie.sum() >= len(logits), "ties come too early for the test to mean anything"
    np.testing.assert_array_equal(actual[before_tie], expected[before_tie])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """One pair for each config and dtype."""

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
    ours = pair.apply(lambda model, pixels: model.und_encoder(pixels), pixels)
    theirs = pair.theirs.model.vision_model(channels_first(pixels).to(pair.dtype)).last_hidden_state
    assert_close(ours, numbers(theirs), pair.tolerance.shallow)


@LANGUAGE
def test_understanding_logits_at_every_place(pair):
    assert_close(*pair.understanding_logits, pair.tolerance.deep)


def test_bfloat16_is_as_near_to_float32_as_theirs(pairs):
    _, truth = pairs(CONFIG, "float32").understanding_logits
    ours, theirs = (root_mean_square(logits - truth) for logits in pairs(CONFIG, "bfloat16").understanding_logits)
    assert ours <= 1.1 * theirs
    assert ours <= 2e-2 * root_mean_square(truth)


def root_mean_square(array):
    return np.sqrt(np.mean(np.square(array)))


@LANGUAGE
def test_greedy_text(pair):
    prompts, images = pair.understanding
    written = generate_text(
        pair.ours, pair.params, prompts, keys(3), SamplingConfig(), stop_tokens=[NO_WORD], max_new_tokens=NEW_WORDS
    )
    theirs = pair.generate(
        prompts,
        pixel_values=channels_first(to_pixels(images)).to(pair.dtype),
        settings={"max_new_tokens": NEW_WORDS, "return_dict_in_generate": True, "output_logits": True},
    )
    expected = theirs.sequences[:, prompts.shape[1] :].numpy()
    logits = np.stack([numbers(step) for step in theirs.logits], axis=1)
    assert_same_until_a_tie(np.concatenate(list(written), axis=1), expected, logits, pair.tolerance.tie)


@LANGUAGE
def test_guided_image_ids(pair):
    rows = [[BOS, *words(length, length), BEGIN_OF_IMAGE] for length in (5, 9, 4, 12, 7, 3, 8, 6)]
    prompts = batch(rows)
    # Each prompt is followed by its twin, all but its first and its last real place replaced by padding.
    with_twins = [one for row in rows for one in (row, [BOS, *[PAD] * (len(row) - 2), BEGIN_OF_IMAGE])]
    ours = sample_image_tokens(
        pair.ours, pair.params, batch(with_twins), keys(len(rows))[:, None], SamplingConfig(), guidance_scale=GUIDANCE
    )
    steps = []
    hook = pair.theirs.model.generation_head.register_forward_hook(lambda *call: steps.append(numbers(call[-1])))
    expected = pair.generate(prompts, generation_mode="image", settings={"max_length": prompts.shape[1]}).numpy()
    hook.remove()
    conditional, unconditional = np.split(np.stack(steps, axis=1), 2)
    logits = unconditional + GUIDANCE * (conditional - unconditional)
    assert_same_until_a_tie(np.asarray(ours), expected, logits, pair.tolerance.guided_tie)


def keys(count):
    return jnp.concatenate([sampling_keys(0, row, range(1)) for row in range(count)])


def test_image_embeddings_and_logits(pair):
    ids = np.arange(pair.config.gen_encoder.codebook_size, dtype=np.int32)[None]
    embedded = pair.theirs.prepare_embeddings_for_image_generation(torch.from_numpy(ids).long())
    assert_close(pair.apply(pair.ours.embed_image_tokens, ids), numbers(embedded), pair.tolerance.shallow)
    logits = pair.theirs.model.generation_head(embedded)
    hidden = jnp.asarray(numbers(embedded), jnp.dtype(pair.ours.execution.dtype))
    assert_close(pair.apply(pair.ours.image_logits, hidden), numbers(logits), pair.tolerance.shallow)


def encode(model, pixels):
    latents = model.gen_encoder.latents(pixels)
    return latents, model.gen_encoder.quantize(latents)


def test_vq_encode(pair):
    latents = []
    tokenizer = pair.theirs.model.vqmodel
    hook = tokenizer.quant_conv.register_forward_hook(lambda *call: latents.append(call[-1].permute(0, 2, 3, 1)))
    encoded = tokenizer.encode(channels_first(pair.pixels).to(pair.dtype)).image_tokens
    hook.remove()
    ours, ids = pair.apply(encode, pair.pixels)
    assert_close(ours, numbers(latents[0]), pair.tolerance.shallow)
    directions = numbers(latents[0].reshape(len(pair.pixels), -1, pair.config.gen_encoder.code_dim))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    similarity = directions @ numbers(tokenizer.quantize.embedding.weight).T
    best = np.sort(similarity, axis=-1)[..., -2:]
    clear = best[..., 1] - best[..., 0] > pair.tolerance.tie
    assert clear.mean() > 0.5, "too few clear places for the test to mean anything"
    expected = encoded.reshape(clear.shape).numpy()
    np.testing.assert_array_equal(np.asarray(ids)[clear], expected[clear])


def test_vq_decode(pair):
    vq = pair.config.gen_encoder
    ids = np.random.default_rng(0).integers(0, vq.codebook_size, (2, vq.num_tokens), np.int32)
    theirs = pair.theirs.decode_image_tokens(torch.from_numpy(ids).long())
    assert_close(pair.apply(pair.ours.detokenize, ids), numbers(theirs), pair.tolerance.shallow)
