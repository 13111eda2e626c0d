"""A run ends with every question answered once, however often it is killed and however the work is shared."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from janus_jax.distributed import Cluster
from janus_jax.errors import JanusError
from janus_jax.evaluation.benchmark import Question, limited
from janus_jax.evaluation.journal import appending, claim
from janus_jax.evaluation.runner import answering, collect
from janus_jax.sharding import make_mesh
from tests import tiny
from tests.evaluation.asking import FakeModel, put_picture

BEGAN = {"benchmark": "words", "options": {"kind": "short"}, "model": "0a1b", "seed": 0}
LENGTHS = [5, 1, 9, 3, 7, 2, 8]


def questions(lengths=LENGTHS, **more):
    return [
        Question(id=f"q{n}", messages=[{"role": "user", "content": "w" * length}], **more)
        for n, length in enumerate(lengths)
    ]


def lines(folder, name="answers.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


EXPECTED = {f"q{n}": "W" * length for n, length in enumerate(LENGTHS)}


def test_every_answer_is_there_by_id_and_on_disk(tmp_path):
    assert collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN) == EXPECTED
    assert {line["id"]: line["answer"] for line in lines(tmp_path)} == EXPECTED


def test_batches_are_full_and_of_one_length_the_longest_first():
    model = FakeModel()
    list(answering(model, 3)(questions()))
    # The last is filled up with its last.
    assert [[len(text) for text in batch] for batch in model.asked] == [[9, 8, 7], [5, 3, 2], [1, 1, 1]]


def test_questions_with_other_limits_are_in_other_batches():
    model = FakeModel()
    mixed = [*questions([4, 2]), *[Question(id="long", messages=questions([3])[0].messages, max_new_tokens=900)]]
    list(answering(model, 2)(mixed))
    assert [[len(text) for text in batch] for batch in model.asked] == [[3, 3], [4, 2]]


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path):
    killed, second = FakeModel(stop_at=2), FakeModel()
    with pytest.raises(KeyboardInterrupt):
        collect(questions(), answering(killed, 2), tmp_path, BEGAN)
    assert len(lines(tmp_path)) == 4
    assert collect(questions(), answering(second, 2), tmp_path, BEGAN) == EXPECTED
    asked = [text for model in (killed, second) for batch in model.asked for text in set(batch)]
    assert sorted(map(len, asked)) == sorted(LENGTHS)
    third = FakeModel()
    assert collect(questions(), answering(third, 2), tmp_path, BEGAN) == EXPECTED
    assert third.asked == []


def test_a_line_that_was_broken_off_is_asked_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(questions(), answering(FakeModel(stop_at=2), 2), tmp_path, BEGAN)
    with (tmp_path / "answers.jsonl").open("ab") as file:
        file.write('{"id": "q5", "answer": "Übe'.encode()[:-3])
    assert collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN) == EXPECTED
    assert {line["id"]: line["answer"] for line in lines(tmp_path)} == EXPECTED


def test_a_damaged_line_is_named(tmp_path):
    collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN)
    file = tmp_path / "answers.jsonl"
    file.write_text(file.read_text().replace('"id": "q2"', '"id": q2', 1))
    with pytest.raises(JanusError, match=r"answers.jsonl, line 1, is damaged .* asked again"):
        collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN)


@pytest.mark.parametrize(
    ("name", "value"), [("model", "ffff"), ("options", {"kind": "long"}), ("seed", 1), ("new", "thing")]
)
def test_a_folder_begun_with_something_else_is_refused(tmp_path, name, value):
    collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN)
    model = FakeModel()
    with pytest.raises(JanusError, match=f"was begun with {name} .*; give another --out"):
        collect(questions(), answering(model, 2), tmp_path, BEGAN | {name: value})
    assert model.asked == []


def test_answers_of_nobody_are_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "q0", "answer": "mine"}\n')
    with pytest.raises(JanusError, match=r"holds answers but no run.json"):
        collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    claim(tmp_path, BEGAN)
    with appending(tmp_path), pytest.raises(JanusError, match="being written by another run"):
        collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN)


def test_what_an_answer_holds_comes_back_from_disk(tmp_path):
    odd = 'two\nlines, "quotes", \u2028 and 晚上好 \\'
    model = FakeModel(lambda text: odd)
    assert set(collect(questions(), answering(model, 4), tmp_path, BEGAN).values()) == {odd}


def test_progress_counts_what_was_there_before(tmp_path):
    told = []
    with pytest.raises(KeyboardInterrupt):
        collect(questions(), answering(FakeModel(stop_at=2), 2), tmp_path, BEGAN)
    collect(questions(), answering(FakeModel(), 2), tmp_path, BEGAN, report=lambda *counts: told.append(counts))
    assert told == [(4, 7), (6, 7), (7, 7)]


class Threads(Cluster):
    """Processes that are threads of this one."""

    def __init__(self, index, barrier):
        self.index, self.count, self._barrier = index, barrier.parties, barrier

    def run_on_all(self, action):
        result = action()
        self._barrier.wait(timeout=30)
        return result


def shared(folder, models, folder_of=lambda folder, index: folder):
    barrier = threading.Barrier(len(models))

    def one(index):
        own = folder_of(folder, index)
        return collect(questions(), answering(models[index], 2), own, BEGAN, Threads(index, barrier))

    with ThreadPoolExecutor(len(models)) as pool:
        return list(pool.map(one, range(len(models))))


def test_two_processes_share_the_questions_and_the_first_has_all_answers(tmp_path):
    models = [FakeModel(), FakeModel()]
    assert shared(tmp_path, models) == [EXPECTED, None]
    texts = [{text for batch in model.asked for text in batch} for model in models]
    assert [len(own) for own in texts] == [4, 3]
    assert not texts[0] & texts[1]
    assert [len(lines(tmp_path, f"answers.{index}.jsonl")) for index in range(2)] == [4, 3]


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_goes_on(tmp_path, before):
    collect(questions(LENGTHS[:4]), answering(FakeModel(), 2), tmp_path, BEGAN)
    if before == 2:
        (tmp_path / "answers.jsonl").rename(tmp_path / "answers.1.jsonl")
    models = [FakeModel() for _ in range(3 - before)]
    assert shared(tmp_path, models)[0] == EXPECTED
    assert sum(len(set(batch)) for model in models for batch in model.asked) == 3


def test_a_folder_that_is_not_shared_is_told(tmp_path):
    with pytest.raises(JanusError, match="lacks 3 answers of other processes; give an --out that all of them see"):
        shared(tmp_path, [FakeModel(), FakeModel()], lambda folder, index: folder / str(index))


def test_a_picture_that_will_not_do_is_told_with_its_question(tmp_path):
    (tmp_path / "half.jpg").write_bytes(put_picture(tmp_path / "whole.jpg").read_bytes()[:300])
    message = {"role": "user", "content": "<image_placeholder>\nWhat?", "images": [tmp_path / "half.jpg"]}
    work = answering(tiny.pretrained(), 2)
    with pytest.raises(JanusError, match=r"^Question q7: The image .*half.jpg"):
        list(work([Question(id="q7", messages=[message])]))


def test_answers_do_not_depend_on_batch_size_or_mesh(tmp_path):
    asked = [
        Question(
            id=str(number),
            messages=[
                {
                    "role": "user",
                    "content": "<image_placeholder>\nWhat is it?" + " A lake." * number,
                    "images": [put_picture(tmp_path / f"{number}.png", number)],
                }
            ],
            max_new_tokens=6,
        )
        for number in range(5)
    ]
    model, spread = tiny.pretrained(), tiny.pretrained(make_mesh(2, 1, 1, jax.devices()[:2]))
    one = collect(asked, answering(model, 5), tmp_path / "one", BEGAN)
    other = collect(asked, answering(spread, 2), tmp_path / "other", BEGAN)
    assert one == other
    assert len(set(one.values())) > 1


def test_a_limit_keeps_groups_whole_and_is_the_same_for_a_seed():
    items = [Question(id=f"{n}/{k}", messages=[], group=str(n)) for n in range(20) for k in range(2)]
    kept = limited(items, 9, seed=3)
    assert len(kept) == 10
    assert len({item.group for item in kept}) == 5
    assert kept == limited(items, 9, seed=3)
    assert kept != limited(items, 9, seed=4)
    assert [items.index(item) for item in kept] == sorted(items.index(item) for item in kept)
    assert limited(items, None, 0) == items
