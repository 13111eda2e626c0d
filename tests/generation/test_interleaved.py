"""Answers with images, with a tiny model that often writes begin-of-image."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from janus_jax.errors import JanusError
from janus_jax.generation import context, decode
from janus_jax.generation.context import ContextReader
from janus_jax.generation.image_tokens import sample_image_tokens
from janus_jax.generation.interleaved import AnswerOptions, ConversationImageSampler, InterleavedAnswer
from janus_jax.generation.sampling import SamplingConfig, sampling_keys
from janus_jax.models.backbone import apply
from janus_jax.processing import (
    ImageWithTokens,
    answer_message,
    conversation_prompt,
    generated_image_piece,
    text_piece,
    unconditional_conversation,
)
from janus_jax.sharding import make_mesh
from tests import tiny

EOS, BEGIN = (getattr(tiny.processor().tokenizer.special, name) for name in ("eos", "begin_of_image"))
ASK = [{"role": "user", "content": "<image_placeholder>\nDraw it in ink.", "images": [tiny.picture(0)]}]
PLAIN = [{"role": "user", "content": "Draw it in ink."}]
FEATURES = pytest.mark.parametrize("features", [False, pytest.param(True, marks=pytest.mark.nightly)])


def conversation_model(mesh=None, features=False):
    """Returns the tiny model with a head that sometimes prefers begin-of-image and rarely end-of-sentence."""
    model = tiny.pretrained(mesh)
    weight = model.params["llm"]["head"]["weight"]
    weight = weight.at[BEGIN].multiply(1.5).at[EOS].multiply(0.1)
    params = {**model.params, "llm": {**model.params["llm"], "head": {"weight": weight}}}
    processor = dataclasses.replace(model.processor, interleaved_features=features)
    return dataclasses.replace(model, params=params, processor=processor)


def pieces_of(model, messages=ASK, image_sampling=(), **options):
    """Returns prompt, pieces and text tokens of an answer."""
    prompt = conversation_prompt(model.processor, messages)
    sampler = ConversationImageSampler(**({"max_images": 2} | dict(image_sampling)))
    options = {"max_new_tokens": 40, "text": SamplingConfig(), "seed": 3} | options
    reader = ContextReader(model.model, model.params, model.processor, model.config.llm.max_positions, model.mesh)
    answer = InterleavedAnswer(reader, prompt, AnswerOptions(image_sampling=sampler, **options))
    pieces = list(answer)
    return prompt, pieces, answer.text_tokens


def joined(parts):
    """Concatenates parts of a conversation, whose images are numbered on."""
    counts, arrays = [0, 0], []
    for part in parts:
        und, gen = (
            np.where(index < 0, index, index + count)
            for index, count in zip((part.und_patch_index, part.gen_token_index), counts, strict=True)
        )
        arrays.append((part.tokens, und, gen))
        counts = [max(count, index.max(initial=-1) + 1) for count, index in zip(counts, (und, gen), strict=True)]
    tokens, und, gen = (np.concatenate(group) for group in zip(*arrays, strict=True))
    images = [np.concatenate([getattr(part, name) for part in parts]) for name in ("und_images", "gen_images")]
    return dataclasses.replace(
        parts[0], tokens=tokens, und_patch_index=und, gen_token_index=gen, und_images=images[0], gen_images=images[1]
    )


def whole_sequence(model, prompt, pieces, text_tokens):
    """Returns the conversation with its answer in one sequence, its image tokens, and the positions of its text."""
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    parts, ids, written = [prompt.sequence], [], []
    for number, tokens in enumerate(text_tokens):
        # An image starts with the begin-of-image that the model wrote.
        written.append(sum(map(len, parts)) + np.arange(len(tokens)))
        has_image = number < len(images)
        parts.append(text_piece(model.processor, tokens[:-1] if has_image else tokens))
        if has_image:
            parts.append(generated_image_piece(model.processor, images[number].image))
            ids.append(images[number].tokens)
    return joined(parts), np.array(ids), np.concatenate(written)


def forward(model, sequence, ids):
    batch = model.processor.left_pad([sequence])._replace(gen_ids=ids[None])

    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params, batch):
        hidden = apply(model.__call__, params, batch)
        return apply(model.text_logits, params, hidden)[0]

    return np.asarray(run(model.model, model.params, batch))


@pytest.mark.slow
@FEATURES
def test_text_equals_that_of_the_whole_sequence_in_one_pass(features):
    model = conversation_model(features=features)
    prompt, pieces, text_tokens = pieces_of(model, ASK if features else PLAIN)
    assert sum(isinstance(piece, ImageWithTokens) for piece in pieces) == 2
    assert len(text_tokens) == 3
    sequence, ids, written = whole_sequence(model, prompt, pieces, text_tokens)
    logits = forward(model, sequence, ids)
    np.testing.assert_array_equal(sequence.tokens[written], np.concatenate(text_tokens))
    # Greedy text: a token has the largest logit at the position before.
    np.testing.assert_array_equal(logits[written - 1].argmax(-1), np.concatenate(text_tokens))


@pytest.mark.nightly
@pytest.mark.parametrize(("features", "unconditional"), [(True, "message"), (False, "message"), (True, "all")])
def test_images_equal_those_of_the_equivalent_prompts(features, unconditional):
    model = conversation_model(features=features)
    prompt, pieces, text_tokens = pieces_of(model, image_sampling={"unconditional": unconditional})
    images = [piece for piece in pieces if isinstance(piece, ImageWithTokens)]
    special = model.processor.tokenizer.special
    parts = [(prompt.sequence, unconditional_conversation(model.processor, prompt, unconditional))]
    for number, image in enumerate(images):
        text = text_piece(model.processor, text_tokens[number][:-1])
        begin = text_piece(model.processor, [BEGIN])
        pairs = [*parts, (text, text), (begin, begin)]
        conditional, without = (joined(group) for group in zip(*pairs, strict=True))
        if unconditional == "all":
            tokens = np.full(len(conditional), special.pad, np.int32)
            tokens[[0, -1]] = conditional.tokens[[0, -1]]
            without = dataclasses.replace(
                conditional, tokens=tokens, und_patch_index=tokens * 0 - 1, gen_token_index=tokens * 0 - 1
            )
        batch = model.processor.left_pad([conditional, without], 32 * (len(conditional) // 32 + 1))
        ids = np.array([one.tokens for one in images]).reshape(len(images), -1)[:number]
        batch = batch._replace(gen_ids=np.stack([ids, ids]).astype(np.int32))
        keys = sampling_keys(3, 2 * number + 1, range(1))[:, None]
        sampled = sample_image_tokens(model.model, model.params, batch, keys, SamplingConfig(1.0), guidance_scale=5.0)
        np.testing.assert_array_equal(np.asarray(sampled)[0], image.tokens)
        parts += [(text, text), (generated_image_piece(model.processor, image.image),) * 2]


@pytest.mark.nightly
def test_answers_are_reproducible_and_depend_on_the_seed():
    model = conversation_model()
    options = {"max_new_tokens": 20, "temperature": 1.0}
    first, again, other = (list(model.converse(ASK, seed=seed, **options)) for seed in (1, 1, 2))
    assert summary(first) == summary(again) != summary(other)


def summary(pieces):
    return [piece if isinstance(piece, str) else piece.tokens.tolist() for piece in pieces]


@pytest.mark.nightly
@pytest.mark.parametrize("window", [4, "auto"])
def test_parallel_decoding_gives_the_same_answer(window):
    model = conversation_model(features=True)
    expected = summary(pieces_of(model)[1])
    assert summary(pieces_of(model, image_sampling={"parallel_window": window})[1]) == expected


@pytest.mark.nightly
def test_an_answer_on_a_mesh_equals_that_of_one_device():
    mesh = make_mesh(2, 1, 2, jax.devices()[:4])
    expected = summary(pieces_of(conversation_model(features=True))[1])
    assert summary(pieces_of(conversation_model(mesh, features=True))[1]) == expected


def test_without_images_the_answer_is_that_of_chat():
    model = tiny.pretrained()
    text = "".join(model.converse(ASK, max_new_tokens=12))
    assert text.strip() == model.chat(ASK, max_new_tokens=12)


@pytest.mark.slow
def test_the_next_turn_has_the_image_tokens_of_the_image():
    model = conversation_model()
    _, pieces, _ = pieces_of(model, image_sampling={"max_images": 1})
    again = [*ASK, answer_message(pieces), {"role": "user", "content": "In red."}]
    prompt = conversation_prompt(model.processor, again)
    (image,) = (piece for piece in pieces if isinstance(piece, ImageWithTokens))
    assert prompt.image_tokens == [image.tokens]
    assert prompt.sequence.num_target_images == 1
    assert len(list(model.converse(again, max_new_tokens=4))) > 0
    # A file has no tokens: the image tokenizer computes them.
    again[1] = {**again[1], "images": [image.image]}
    assert conversation_prompt(model.processor, again).image_tokens == [None]
    assert len(list(model.converse(again, max_new_tokens=4))) > 0


def test_another_answer_in_the_same_buckets_compiles_nothing():
    model = conversation_model()
    programs = context._extend, context._read_prompt, decode.decode, decode.begin
    pieces_of(model)
    compiled = [program._cache_size() for program in programs]
    other = [{**ASK[0], "content": "<image_placeholder>\nDraw it in red.", "images": [tiny.picture(2)]}]
    pieces_of(model, other, seed=5, image_sampling={"guidance_scale": 2.0})
    assert [program._cache_size() for program in programs] == compiled


def test_an_answer_ends_after_its_last_image():
    _, pieces, text_tokens = pieces_of(conversation_model(), image_sampling={"max_images": 0})
    assert not any(isinstance(piece, ImageWithTokens) for piece in pieces)
    assert text_tokens[-1][-1] == BEGIN


@pytest.mark.nightly
def test_guidance_of_one_has_no_unconditional_sequence():
    model = conversation_model()
    _, pieces, _ = pieces_of(model, image_sampling={"guidance_scale": 1.0})
    assert sum(isinstance(piece, ImageWithTokens) for piece in pieces) == 2


def test_errors_of_conversations():
    model = conversation_model()
    with pytest.raises(JanusError, match="last message is the assistant's"):
        model.converse([*ASK, {"role": "assistant", "content": "Done."}])
    with pytest.raises(JanusError, match="unconditional"):
        model.converse(ASK, image_sampling={"unconditional": "half"})
    with pytest.raises(JanusError, match="no setting steps"):
        model.converse(ASK, image_sampling={"steps": 3})
    with pytest.raises(JanusError, match="cannot generate images in a conversation"):
        tiny.pretrained(config=tiny.FLOW).converse(ASK)
    with pytest.raises(JanusError, match="next image have"):
        list(tiny.with_context(model, len(conversation_prompt(model.processor, ASK).sequence) + 20).converse(ASK))
    wrong = ImageWithTokens(tiny.picture(1), np.zeros(3, np.int32))
    with pytest.raises(JanusError, match="3 image tokens"):
        model.converse([*ASK, answer_message([wrong]), ASK[0]])
