"""Tests of the runner: every question is answered once, regardless of interruptions, batches and processes."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from PIL import Image

from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Question, limit_items
from janus_jax.evaluation.journal import claim_folder, open_journal
from janus_jax.evaluation.runner import answer_questions, collect_answers
from janus_jax.processing import DamagedImage
from janus_jax.sharding import make_mesh
from tests import tiny
from tests.evaluation.fakes import FakeModel, write_image

SETTINGS = {"benchmark": "words", "options": {"kind": "short"}, "model": "0a1b", "seed": 0}
LENGTHS = [5, 1, 9, 3, 7, 2, 8]
EXPECTED = {f"q{n}": "W" * length for n, length in enumerate(LENGTHS)}


def make_questions(lengths=LENGTHS, **more):
    return [
        Question(id=f"q{n}", messages=[{"role": "user", "content": "w" * length}], **more)
        for n, length in enumerate(lengths)
    ]


def run(folder, model, questions=None, batch_size=2, settings=SETTINGS, **more):
    return collect_answers(
        questions or make_questions(),
        lambda items: answer_questions(model, items, batch_size),
        folder,
        settings,
        **more,
    )


def interrupt(folder):
    """Runs two batches of two questions and interrupts the third."""
    model = FakeModel(stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(folder, model)
    return model


def read_lines(folder, name="answers.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_answers_are_returned_and_recorded(tmp_path):
    assert run(tmp_path, FakeModel()) == EXPECTED
    assert {line["id"]: line["answer"] for line in read_lines(tmp_path)} == EXPECTED


def test_batches_are_full_and_sorted_by_length():
    model = FakeModel()
    list(answer_questions(model, make_questions(), 3))
    # The last batch is padded with its last question.
    assert [[len(text) for text in batch] for batch in model.batches] == [[9, 8, 7], [5, 3, 2], [1, 1, 1]]


def test_questions_with_different_token_limits_are_in_different_batches():
    model = FakeModel()
    long = Question(id="long", messages=make_questions([3])[0].messages, max_new_tokens=900)
    list(answer_questions(model, [*make_questions([4, 2]), long], 2))
    assert [[len(text) for text in batch] for batch in model.batches] == [[3, 3], [4, 2]]


def test_a_killed_run_resumes_and_asks_each_question_once(tmp_path):
    killed, second, third = interrupt(tmp_path), FakeModel(), FakeModel()
    assert len(read_lines(tmp_path)) == 4
    assert run(tmp_path, second) == EXPECTED
    texts = [text for model in (killed, second) for batch in model.batches for text in set(batch)]
    assert sorted(map(len, texts)) == sorted(LENGTHS)
    assert run(tmp_path, third) == EXPECTED
    assert third.batches == []


def test_the_question_of_an_incomplete_line_is_asked_again(tmp_path):
    interrupt(tmp_path)
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write('{"id": "q5", "answer": "Übe'.encode()[:-3])
    assert run(tmp_path, FakeModel()) == EXPECTED
    assert {line["id"]: line["answer"] for line in read_lines(tmp_path)} == EXPECTED


def test_a_damaged_line_is_reported(tmp_path):
    run(tmp_path, FakeModel())
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace('"id": "q2"', '"id": q2', 1))
    with pytest.raises(JanusError, match=r"answers.jsonl, line 1, is damaged .* asked again"):
        run(tmp_path, FakeModel())


@pytest.mark.parametrize(
    ("name", "value"), [("model", "ffff"), ("options", {"kind": "long"}), ("seed", 1), ("new", "thing")]
)
def test_a_folder_of_a_run_with_other_settings_is_refused(tmp_path, name, value):
    run(tmp_path, FakeModel())
    model = FakeModel()
    with pytest.raises(JanusError, match=f"belongs to a run with {name} .*; give another --out"):
        run(tmp_path, model, settings=SETTINGS | {name: value})
    assert model.batches == []


def test_answers_without_settings_are_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "q0", "answer": "mine"}\n')
    with pytest.raises(JanusError, match=r"contains answers but no run.json"):
        run(tmp_path, FakeModel())


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    claim_folder(tmp_path, SETTINGS)
    with open_journal(tmp_path), pytest.raises(JanusError, match="being written by another run"):
        run(tmp_path, FakeModel())


def test_special_characters_in_answers_are_preserved(tmp_path):
    answer = 'two\nlines, "quotes", \u2028 and 晚上好 \\'
    assert set(run(tmp_path, FakeModel(lambda text: answer)).values()) == {answer}


def test_progress_includes_earlier_answers(tmp_path):
    reports = []
    interrupt(tmp_path)
    run(tmp_path, FakeModel(), on_progress=lambda *counts: reports.append(counts))
    assert reports == [(4, 7), (6, 7), (7, 7)]


class ThreadCluster(Cluster):
    """A cluster whose processes are threads."""

    def __init__(self, index, barrier):
        self.index, self.count, self._barrier = index, barrier.parties, barrier

    def run_on_all(self, action):
        result = action()
        self._barrier.wait(timeout=30)
        return result


def run_processes(models, folder_of):
    """Runs one thread per model, each with its own folder. Returns the answers of each thread."""
    barrier = threading.Barrier(len(models))

    def process(index):
        return run(folder_of(index), models[index], cluster=ThreadCluster(index, barrier))

    with ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(process, range(len(models))))


def test_two_processes_share_the_questions_and_the_first_returns_all_answers(tmp_path):
    models = [FakeModel(), FakeModel()]
    assert run_processes(models, lambda index: tmp_path) == [EXPECTED, None]
    texts = [{text for batch in model.batches for text in batch} for model in models]
    assert [len(of_process) for of_process in texts] == [4, 3]
    assert not texts[0] & texts[1]
    assert [len(read_lines(tmp_path, f"answers.{index}.jsonl")) for index in range(2)] == [4, 3]


@pytest.mark.parametrize("before", [1, 2])
def test_a_run_resumes_with_another_number_of_processes(tmp_path, before):
    run(tmp_path, FakeModel(), make_questions(LENGTHS[:4]))
    if before == 2:
        (tmp_path / "answers.jsonl").rename(tmp_path / "answers.1.jsonl")
    models = [FakeModel() for _ in range(3 - before)]
    assert run_processes(models, lambda index: tmp_path)[0] == EXPECTED
    assert sum(len(set(batch)) for model in models for batch in model.batches) == 3


def test_a_folder_that_the_processes_do_not_share_is_reported(tmp_path):
    with pytest.raises(JanusError, match="lacks 3 answers of other processes; give an --out that all processes share"):
        run_processes([FakeModel(), FakeModel()], lambda index: tmp_path / str(index))


def test_a_damaged_image_is_reported_with_its_question(tmp_path):
    (tmp_path / "half.jpg").write_bytes(write_image(tmp_path / "whole.jpg").read_bytes()[:300])
    message = {"role": "user", "content": "<image_placeholder>\nWhat?", "images": [tmp_path / "half.jpg"]}
    with pytest.raises(JanusError, match=r"^Question q7: The image .*half.jpg"):
        list(answer_questions(tiny.pretrained(), [Question(id="q7", messages=[message])], 2))


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", b"\x89PNG\r\n\x1a\nxxxx", "half"])
def test_every_kind_of_damage_can_be_skipped(tmp_path, content):
    whole = write_image(tmp_path / "whole.jpg")
    file = tmp_path / "damaged.jpg"
    file.write_bytes(whole.read_bytes()[:300] if content == "half" else content)
    model = FakeModel()
    model.processor = tiny.processor()
    model.answer = lambda prompts, **options: ["yes"] * len(prompts)
    questions = [
        Question(id=path.stem, messages=[{"role": "user", "content": "<image_placeholder>\nWhat?", "images": [path]}])
        for path in (whole, file)
    ]
    with pytest.raises(DamagedImage, match=r"^Question damaged: The image .*damaged.jpg"):
        list(answer_questions(model, questions, 2))
    (answers,) = answer_questions(model, questions, 2, skip_damaged=True)
    assert answers == {"whole": "yes", "damaged": None}


def test_transparent_pixels_get_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    message = {"role": "user", "content": "<image_placeholder>\nWhat?", "images": [tmp_path / "transparent.png"]}
    seen = []
    model = FakeModel()
    model.processor = tiny.processor()
    model.answer = lambda prompts, **options: seen.append(prompts[0].und_images) or ["yes"]
    for background in ("none", "white"):
        list(answer_questions(model, [Question(id="q", messages=[message])], 1, background=background))
    assert [(images.min(), images.max()) for images in seen] == [(0, 0), (255, 255)]


def test_a_missing_image_is_not_skipped(tmp_path):
    model = FakeModel()
    model.processor = tiny.processor()
    message = {"role": "user", "content": "<image_placeholder>", "images": [tmp_path / "absent.jpg"]}
    with pytest.raises(JanusError, match=r"absent.jpg does not exist"):
        list(answer_questions(model, [Question(id="q", messages=[message])], 2, skip_damaged=True))


class DamagedModel(FakeModel):
    """A chat model for which questions of the given lengths have damaged images."""

    def __init__(self, lengths):
        super().__init__()

        def understanding_sequence(messages, images, system_prompt, background):
            text = messages[-1]["content"]
            if len(text) in lengths:
                raise DamagedImage(f"The image {text} is damaged.")
            return text

        self.processor.understanding_sequence = understanding_sequence


def run_skipping(folder, model, keep_skipped=True, **more):
    def answer_items(items):
        return answer_questions(model, items, 2, skip_damaged=keep_skipped)

    return collect_answers(make_questions(), answer_items, folder, SETTINGS, keep_skipped=keep_skipped, **more)


def test_skipped_questions_are_recorded_and_not_asked_again(tmp_path):
    # Of the batches 9 8, 7 5, 3 2, 1, the first is skipped as a whole.
    model, later = DamagedModel([9, 8, 3, 1]), DamagedModel([9, 8, 3, 1])
    expected = {id: text for id, text in EXPECTED.items() if len(text) in (7, 5, 2)}
    assert run_skipping(tmp_path, model) == expected
    assert [[len(text) for text in batch] for batch in model.batches] == [[7, 5], [2, 2]]
    assert {line["id"]: line["answer"] for line in read_lines(tmp_path)} == dict.fromkeys(EXPECTED) | expected
    assert run_skipping(tmp_path, later) == expected
    assert later.batches == []


def test_skipped_questions_are_asked_again_without_skipping(tmp_path):
    run_skipping(tmp_path, DamagedModel([9, 3]))
    with pytest.raises(DamagedImage, match=r"Question q2: The image w{9} is damaged"):
        run_skipping(tmp_path, DamagedModel([9, 3]), keep_skipped=False)
    repaired = DamagedModel([])
    assert run_skipping(tmp_path, repaired, keep_skipped=False) == EXPECTED
    assert [[len(text) for text in batch] for batch in repaired.batches] == [[9, 3]]


def test_the_first_process_knows_what_the_others_skipped(tmp_path):
    barrier = threading.Barrier(2)

    def process(index):
        return run_skipping(tmp_path, DamagedModel([5, 1, 9]), cluster=ThreadCluster(index, barrier))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(process, range(2))
    assert second is None
    assert first == {id: text for id, text in EXPECTED.items() if len(text) not in (5, 1, 9)}


@pytest.mark.slow
def test_answers_do_not_depend_on_batch_size_or_mesh(tmp_path):
    questions = [
        Question(
            id=str(number),
            messages=[
                {
                    "role": "user",
                    "content": "<image_placeholder>\nWhat is it?" + " A lake." * number,
                    "images": [write_image(tmp_path / f"{number}.png", number)],
                }
            ],
            max_new_tokens=6,
        )
        for number in range(5)
    ]
    on_mesh = tiny.pretrained(make_mesh(2, 1, 1, jax.devices()[:2]))
    first = run(tmp_path / "first", tiny.pretrained(), questions, batch_size=5)
    second = run(tmp_path / "second", on_mesh, questions, batch_size=2)
    assert first == second
    assert len(set(first.values())) > 1


@pytest.mark.slow
def test_answers_end_where_the_context_ends():
    model = tiny.pretrained()
    questions = [
        Question(id=text, messages=[{"role": "user", "content": text}], max_new_tokens=1024)
        for text in ("Hello", "What is it?")
    ]
    lengths = {q.id: len(model.processor.understanding_sequence(q.messages, system_prompt="")) for q in questions}
    context = max(lengths.values()) + 4
    (answers,) = answer_questions(tiny.with_context(model, context), questions, 2)
    assert answers == {
        q.id: model.chat(q.messages, max_new_tokens=context - lengths[q.id], system_prompt="") for q in questions
    }


def test_a_limit_keeps_whole_groups_and_depends_on_the_seed():
    items = [Question(id=f"{n}/{k}", messages=[], group=str(n)) for n in range(20) for k in range(2)]
    kept = limit_items(items, 9, seed=3)
    assert len(kept) == 10
    assert len({item.group for item in kept}) == 5
    assert kept == limit_items(items, 9, seed=3)
    assert kept != limit_items(items, 9, seed=4)
    assert [items.index(item) for item in kept] == sorted(items.index(item) for item in kept)
    assert limit_items(items, None, 0) == items
