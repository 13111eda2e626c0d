import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from checkpoints_convert import convert, open_checkpoint
from janus_jax import load
from janus_jax.errors import JanusError
from janus_jax.processing import Processor, make_byte_level_tokenizer
from tests import tiny
from tests.checkpoints_convert.checkpoints import SMALL, save_released, save_transformers

QUESTION = [{"role": "user", "content": "<image_placeholder>\nWhat is in the picture?", "images": [tiny.picture(0)]}]


@pytest.fixture(scope="module")
def janus():
    return tiny.pretrained()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of one small model, by layout."""
    root = tmp_path_factory.mktemp("models")
    config = dataclasses.replace(SMALL, llm=dataclasses.replace(SMALL.llm, vocab_size=320))
    found = {
        "released": save_released(root / "Janus-Pro-small", config),
        "transformers": save_transformers(root / "transformers-pro", config),
    }
    for folder in found.values():
        make_byte_level_tokenizer(
            folder, tiny.CORPUS, 320, "janus_pro", config.und_encoder.image_size, config.und_encoder.num_patches
        )
    found["converted"] = root / "converted"
    convert(found["released"], found["converted"])
    return found


def test_all_layouts_load_the_same_model(folders):
    answers, images = set(), []
    for path in folders.values():
        janus = load(path, dtype="float32")
        answers.add(janus.chat(QUESTION, max_new_tokens=8))
        images.append(np.asarray(janus.generate("A red boat", seed=1)[0][0]))
    assert len(answers) == 1
    assert all((image == images[0]).all() for image in images)


@pytest.mark.slow
def test_default_dtype_is_bfloat16(folders):
    janus = load(folders["converted"])
    assert janus.params["llm"]["head"]["weight"].dtype == "bfloat16"
    assert isinstance(janus.chat(QUESTION, max_new_tokens=4), str)


def test_unknown_dtype_is_reported(folders):
    with pytest.raises(JanusError, match="dtype"):
        load(folders["released"], dtype="float64")


def test_missing_tokenizer_is_reported(folders, tmp_path):
    for file in folders["released"].iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(JanusError, match=r"tokenizer\.json"):
        load(tmp_path)


@pytest.mark.parametrize("layout", ["released", "transformers"])
def test_byte_order_marks_in_json_files_are_ignored(folders, tmp_path, layout):
    marked = shutil.copytree(folders[layout], tmp_path / folders[layout].name)
    for file in marked.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    config = open_checkpoint(marked).config
    assert config == open_checkpoint(folders[layout]).config
    processor, expected = (Processor.from_directory(folder, config) for folder in (marked, folders[layout]))
    assert processor.tokenizer.encode("A red boat") == expected.tokenizer.encode("A red boat")


def test_streamed_pieces_add_up_to_the_answer(janus):
    pieces = list(janus.chat_stream(QUESTION, max_new_tokens=40))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == janus.chat(QUESTION, max_new_tokens=40)


def test_answer_ends_before_a_stop_string(janus):
    free = janus.chat(QUESTION, max_new_tokens=40)
    stop = free[10:13]
    assert janus.chat(QUESTION, max_new_tokens=40, stop=[stop]) == free[: free.index(stop)].strip()
    streamed = "".join(janus.chat_stream(QUESTION, max_new_tokens=40, stop=[stop]))
    assert streamed == free[: free.index(stop)]


def test_batch_equals_single_answers(janus):
    questions = [QUESTION, [{"role": "user", "content": "Hello"}]]
    assert janus.chat_batch(questions, max_new_tokens=10) == [
        janus.chat(question, max_new_tokens=10) for question in questions
    ]


def test_sampled_answers_depend_on_the_seed(janus):
    answers = [janus.chat(QUESTION, max_new_tokens=20, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def pixels(images):
    return np.stack([np.asarray(image) for group in images for image in group])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_images_do_not_depend_on_the_batch(janus, batch_size):
    expected = janus.generate(["A red boat", "Ink"], images_per_prompt=3, seed=4)
    actual = janus.generate(["A red boat", "Ink"], images_per_prompt=3, seed=4, batch_size=batch_size)
    assert [len(group) for group in actual] == [3, 3]
    assert np.abs(pixels(actual).astype(int) - pixels(expected)).max() <= 1


def test_images_depend_on_the_seed(janus):
    one, again, other = (pixels(janus.generate("Ink", seed=seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_reports_add_up_to_all_steps(janus):
    reports = []
    janus.generate(["A red boat", "Ink"], images_per_prompt=3, batch_size=2, report=reports.append)
    assert sum(reports) == 6 * janus.image_sampler().num_steps(janus.config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"images_per_prompt": 0},
        {"batch_size": 0},
        {"guidance_scale": float("nan")},
        {"temperature": -0.5},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
    ],
    ids=str,
)
def test_number_out_of_range_is_reported(janus, wrong):
    with pytest.raises(JanusError, match=next(iter(wrong))):
        janus.generate("A red boat", **wrong)


def test_conversation_longer_than_the_context_is_reported(janus):
    with pytest.raises(JanusError, match="1024"):
        janus.chat([{"role": "user", "content": "long " * 2000}])


def test_each_answer_ends_where_the_context_ends(janus):
    questions = [QUESTION, [{"role": "user", "content": "Hello"}]]
    lengths = [len(janus.processor.understanding_sequence(question)) for question in questions]
    context = max(lengths) + 5
    answers = tiny.with_context(janus, context).chat_batch(questions)
    left = [context - length for length in lengths]
    assert left[1] > left[0] == 5
    assert answers == [
        janus.chat(question, max_new_tokens=count) for question, count in zip(questions, left, strict=True)
    ]


def test_prompt_without_room_for_an_answer_is_reported(janus):
    length = len(janus.processor.understanding_sequence(QUESTION))
    assert tiny.with_context(janus, length + 1).chat(QUESTION) == janus.chat(QUESTION, max_new_tokens=1)
    with pytest.raises(JanusError, match=f"has {length} tokens, which leaves no room .* context of {length}"):
        tiny.with_context(janus, length).chat(QUESTION)


def test_answers_depend_on_the_background_of_transparent_images(janus):
    def ask(image, **options):
        question = {"role": "user", "content": "<image_placeholder>\nWhat is it?", "images": [image]}
        (batched,) = janus.chat_batch([[question]], max_new_tokens=8, **options)
        assert batched == janus.chat([question], max_new_tokens=8, **options)
        return batched

    clear = tiny.picture(0).convert("RGBA")
    clear.putalpha(0)
    white = ask(Image.new("RGB", clear.size, "white"))
    assert ask(clear, background="white") == white
    assert ask(clear) == ask(clear.convert("RGB")) != white


def test_no_conversations_give_no_answers(janus):
    assert janus.chat_batch([]) == []


def test_max_new_tokens_must_be_positive(janus):
    with pytest.raises(JanusError, match="max_new_tokens"):
        janus.chat(QUESTION, max_new_tokens=0)
