import itertools

import numpy as np
import pytest

from janus_jax.batch import NO_IMAGE
from janus_jax.data.pipeline.examples import ExampleBuilder, Supervision, first_sentence
from janus_jax.data.records import Record
from janus_jax.data.rejects import RejectedRecord, RejectReason
from janus_jax.processing import Task
from tests.data.prepared import generation, text
from tests.data.samples import image, png
from tests.tiny import processor

PRECOMPUTED = ExampleBuilder(processor(), precomputed_image_tokens=True)
IMAGE_TOKENS = np.arange(processor().num_gen_tokens)
SYSTEM = processor().system_prompt


def conversation(*contents, images=(), task=Task.UNDERSTANDING, key="c"):
    roles = itertools.cycle(("user", "assistant"))
    messages = tuple({"role": role, "content": content} for role, content in zip(roles, contents, strict=False))
    return Record(key, task, messages=messages, images=tuple(images))


def supervised_text(record, supervision):
    example = ExampleBuilder(processor(), supervision, drop_condition=0, first_sentence=0)(record)
    return processor().tokenizer.decode(example.sequence.tokens[example.text_targets], skip_special_tokens=False)


TWO_TURNS = conversation(
    "<image_placeholder>\nWhat?", "A cat.", "And <image_placeholder>?", "A dog.", images=[image(1)] * 2
)
CHAT = conversation("Who?", "I.", task=Task.TEXT)
EOS = "<｜end▁of▁sentence｜>"


@pytest.mark.parametrize(
    ("record", "supervision", "expected"),
    [
        (text(7, words=2), Supervision.TEXT, f"7 word word {EOS}"),
        (text(7, words=2), Supervision.ANSWERS, f"7 word word {EOS}"),
        (CHAT, Supervision.TEXT, f"{SYSTEM}\n\n<|User|>: Who?\n\n<|Assistant|>: I.{EOS}"),
        (CHAT, Supervision.ANSWERS, f" I.{EOS}"),
        (
            TWO_TURNS,
            Supervision.TEXT,
            f"{SYSTEM}\n\n<|User|>: \nWhat?\n\n<|Assistant|>: A cat.{EOS}<|User|>: And ?\n\n<|Assistant|>: A dog.{EOS}",
        ),
        (TWO_TURNS, Supervision.ANSWERS, f" A cat.{EOS} A dog.{EOS}"),
        (generation(1), Supervision.TEXT, ""),
        (generation(1), Supervision.ANSWERS, ""),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "key", None),
)
def test_supervised_text(record, supervision, expected):
    assert supervised_text(record, supervision) == expected


def test_images_and_their_markers_are_never_text_targets():
    example = ExampleBuilder(processor())(TWO_TURNS)
    sequence, targets = example.sequence, example.text_targets
    special = processor().tokenizer.special
    markers = {special.bos, special.pad, special.begin_of_image, special.end_of_image, special.image_placeholder}
    assert not markers & set(sequence.tokens[targets].tolist())
    assert (sequence.und_patch_index[targets] == NO_IMAGE).all()


def test_a_question_without_an_answer_has_no_answer_targets():
    record = conversation("<image_placeholder>What?", images=[image(1)])
    with pytest.raises(RejectedRecord) as error:
        ExampleBuilder(processor(), Supervision.ANSWERS)(record)
    assert error.value.reason is RejectReason.NO_TARGETS


def prompts(builder, epoch=0, count=2000):
    """Prompt tokens of generation examples."""
    for number in range(count):
        sequence = builder(generation(number, "One boat. Two birds.", IMAGE_TOKENS), epoch).sequence
        yield sequence.tokens[: sequence.gen_token_index.argmax() - len(IMAGE_TOKENS) + 1]


def test_a_tenth_of_prompts_is_dropped_and_a_quarter_of_captions_shortened():
    special = processor().tokenizer.special
    dropped, shortened = [], []
    for prompt in prompts(PRECOMPUTED):
        assert (prompt[0], prompt[-1]) == (special.bos, special.begin_of_image)
        dropped.append((prompt[1:-1] == special.pad).all())
        shortened.append("Two" not in processor().tokenizer.decode(prompt))
    dropped, shortened = np.array(dropped), np.array(shortened)
    # Three standard deviations of 2,000 examples are 0.020 and 0.031.
    assert dropped.mean() == pytest.approx(0.1, abs=0.02)
    assert shortened[~dropped].mean() == pytest.approx(0.25, abs=0.031)


def test_dropped_prompts_depend_on_seed_key_and_epoch():
    def read(builder, epoch):
        return [prompt.tolist() for prompt in prompts(builder, epoch, 100)]

    assert read(PRECOMPUTED, 0) == read(ExampleBuilder(processor(), precomputed_image_tokens=True), 0)
    assert read(PRECOMPUTED, 0) != read(PRECOMPUTED, 1)
    assert read(PRECOMPUTED, 0) != read(ExampleBuilder(processor(), precomputed_image_tokens=True, seed=1), 0)


def test_random_crops_depend_on_the_epoch():
    builder = ExampleBuilder(processor(), random_crop=True)
    record = generation(1)
    crops = [builder(record, epoch).sequence.gen_images for epoch in (0, 0, 1, 2, 3)]
    assert np.array_equal(crops[0], crops[1])
    assert len({crop.tobytes() for crop in crops}) > 1


def test_precomputed_image_tokens_give_the_same_sequence_without_pixels():
    record = generation(1, tokens=IMAGE_TOKENS)
    with_pixels, without = ExampleBuilder(processor())(record).sequence, PRECOMPUTED(record).sequence
    assert np.array_equal(with_pixels.tokens, without.tokens)
    assert np.array_equal(with_pixels.gen_token_index, without.gen_token_index)
    assert len(without.gen_images) == 0


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A cat. A dog.", "A cat."),
        ("A cat", "A cat"),
        ("  A cat!  a dog.", "A cat!"),
        ("It costs 3.50 in Rome. Cheap.", "It costs 3.50 in Rome."),
        ("Dr. J. Smith, e.g. here. There.", "Dr. J. Smith, e.g. here."),
        ('He said "Stop!" Then he left.', 'He said "Stop!"'),
        ("一只猫。一只狗。", "一只猫。"),
        ("", ""),
    ],
)
def test_first_sentence(caption, expected):
    assert first_sentence(caption) == expected


PICTURE = image(1)


def talk(*messages):
    return Record("r", Task.TEXT, messages=messages)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (conversation("<image_placeholder>?", "Yes.", images=[PICTURE[:200]]), RejectReason.BAD_IMAGE),
        (conversation("<image_placeholder>?", "Yes.", images=[png(32_000, 32_000)]), RejectReason.IMAGE_TOO_LARGE),
        (conversation("<image_placeholder>?", "Yes.", images=[b""]), RejectReason.BAD_IMAGE),
        (conversation("<image_placeholder>?", "Yes."), RejectReason.NO_IMAGE),
        (conversation("What is here?", "A cat."), RejectReason.NO_IMAGE),
        (conversation("What is here?", "A cat.", images=[PICTURE]), RejectReason.BAD_CONVERSATION),
        (conversation("<image_placeholder>?", "Yes.", images=[PICTURE] * 2), RejectReason.IMAGE_COUNT),
        (conversation("Hello", "Yes.", images=[PICTURE], task=Task.TEXT), RejectReason.IMAGE_COUNT),
        (conversation("<image_placeholder>", "  ", images=[PICTURE]), RejectReason.EMPTY_TEXT),
        (Record("r", Task.UNDERSTANDING, text="no messages", images=(PICTURE,)), RejectReason.EMPTY_TEXT),
        (talk({"role": "user"}), RejectReason.BAD_CONVERSATION),
        (talk({"role": "user", "content": 5}), RejectReason.BAD_CONVERSATION),
        (talk("hello"), RejectReason.BAD_CONVERSATION),
        (talk({"role": "robot", "content": "Hm"}), RejectReason.BAD_CONVERSATION),
        (Record("r", Task.TEXT, text=" \n"), RejectReason.EMPTY_TEXT),
        (Record("r", Task.TEXT, text="half \ud83d a pair"), RejectReason.MALFORMED),
        (Record("r", Task.TEXT, text="look: <image_placeholder>"), RejectReason.SPECIAL_TOKEN),
        (Record("r", Task.TEXT, text="a <｜▁pad▁｜> b"), RejectReason.SPECIAL_TOKEN),
        (Record("r", Task.GENERATION, text="", images=(PICTURE,)), RejectReason.EMPTY_TEXT),
        (Record("r", Task.GENERATION, text="A <begin_of_image> cat", images=(PICTURE,)), RejectReason.SPECIAL_TOKEN),
        (Record("r", Task.GENERATION, text="A cat"), RejectReason.NO_IMAGE),
        (Record("r", Task.GENERATION, text="A cat", images=(PICTURE,) * 2), RejectReason.IMAGE_COUNT),
        (Record("r", Task.GENERATION, text="A cat", images=(PICTURE[:100],)), RejectReason.BAD_IMAGE),
    ],
)
def test_a_bad_record_is_rejected_with_its_reason(record, reason):
    with pytest.raises(RejectedRecord) as error:
        ExampleBuilder(processor())(record)
    assert error.value.reason is reason


@pytest.mark.parametrize("tokens", [(), (1, 2, 3), (-1,) * processor().num_gen_tokens])
def test_image_tokens_of_another_model_are_rejected(tokens):
    with pytest.raises(RejectedRecord) as error:
        PRECOMPUTED(generation(1, tokens=tokens))
    assert error.value.reason is RejectReason.BAD_IMAGE_TOKENS


def test_image_paths_in_messages_are_not_opened(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(PICTURE)
    message = {"role": "user", "content": "<image_placeholder>", "images": [str(tmp_path / "secret.jpg")]}
    answer = {"role": "assistant", "content": "A secret."}
    with pytest.raises(RejectedRecord) as error:
        ExampleBuilder(processor())(Record("r", Task.UNDERSTANDING, messages=(message, answer)))
    assert error.value.reason is RejectReason.NO_IMAGE
