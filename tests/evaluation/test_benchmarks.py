"""Tests of the benchmarks on small copies of their files: prompts, scores, predictions and malformed data."""

import codecs
import json
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from janus_jax.errors import JanusError
from janus_jax.evaluation.registry import BENCHMARKS, find_benchmark
from janus_jax.evaluation.understanding.mme import COGNITION, PERCEPTION
from tests.evaluation.fakes import answer_in_order, prompt_text, write_image

# Other tests register benchmarks, too.
BUILT_IN = [name for name, one in BENCHMARKS.items() if one.read.__module__.startswith("janus_jax.")]

SPLITS = ("random", "popular", "adversarial")
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."


class Case(NamedTuple):
    """A benchmark's files, with the expected results of the given answers."""

    benchmark: str
    files: dict[str, Any]
    prompt: str
    images: list[str]
    answers: list[str]
    scores: dict[str, float]
    predictions: dict[str, Any]
    options: tuple[tuple[str, str], ...] = ()


def json_lines(*entries):
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def gqa_entry(**more):
    entry = {"question": "Is it overcast?", "imageId": "n161313", "answer": "no"}
    return entry | {"types": {"structural": "verify"}} | more


def pope_entry(number, label, **more):
    image = f"COCO_val2014_{number:012}.jpg"
    return {"question_id": number, "image": image, "text": f"Is there a cat {number}?", "label": label} | more


def pope_scores(split, *values):
    names = ("f1", "accuracy", "precision", "recall", "yes")
    return {f"{split}.{name}": value for name, value in zip(names, values, strict=True)}


def seed_entry(number, kind, answer, **more):
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": 4}
    image = {"data_id": f"145442{number}_2591111986", "data_type": "image"}
    question = {"question_id": f"10166{number}", "question": f"How many {number}?", "question_type_id": kind}
    return choices | image | question | {"answer": answer} | more


def seed_files(*questions):
    kinds = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    return {"SEED-Bench.json": {"questions": questions, "question_type": kinds}}


def vqa_questions(split, *questions):
    entries = [{"question_id": n, "image_id": n // 1000, "question": text} for n, text in questions]
    return {f"v2_OpenEnded_mscoco_{split}_questions.json": {"info": {}, "questions": entries}}


def vqa_annotations(*annotations):
    entries = [
        {"question_id": n, "answer_type": kind, "answers": [{"answer": answer} for answer in answers]}
        for n, kind, answers in annotations
    ]
    return {"v2_mscoco_val2014_annotations.json": {"annotations": entries}}


def vqa_predictions(split, *answers):
    content = [{"question_id": n, "answer": answer} for (n, _), answer in zip(VQA_QUESTIONS, answers, strict=True)]
    return {f"v2_OpenEnded_mscoco_{split}_results.json": content}


VQA_QUESTIONS = [(42000, "What color?"), (42001, "How many?"), (43000, "Is it?")]
VQA_ANNOTATIONS = [
    (42000, "other", ["red"] * 3 + ["dark red"] * 7),
    (42001, "number", ["2"] * 2 + ["3"] * 8),
    (43000, "yes/no", ["yes"] * 10),
]

POPE_ANSWERS = {
    "random": ["Yes", "No", "Yes.", "No."],
    "popular": ["Yes", "Yes", "No", "No"],
    "adversarial": ["Yes"] * 4,
}

CASES = {
    "GQA ignores case and a final period": Case(
        "gqa",
        {
            "testdev_balanced_questions.json": {
                "201": gqa_entry(),
                "202": gqa_entry(imageId=2354786, answer="woman", types={"structural": "query"}),
                "203": gqa_entry(imageId="1", answer="blue", types={"structural": "query"}),
            }
        },
        f"Is it overcast?{SHORT_ANSWER}",
        ["images/n161313.jpg", "images/2354786.jpg", "images/1.jpg"],
        ["No.", "A Woman", "Blue"],
        {"accuracy": 200 / 3, "verify.accuracy": 100, "query.accuracy": 50},
        {
            "testdev_balanced_predictions.json": [
                {"questionId": "201", "prediction": "no"},
                {"questionId": "202", "prediction": "a woman"},
                {"questionId": "203", "prediction": "blue"},
            ]
        },
    ),
    "MM-Vet has no scores": Case(
        "mmvet",
        {"mm-vet.json": {"v1_0": {"imagename": "0.png", "question": "What is x?", "answer": "-1<AND>-5"}}},
        "What is x?",
        ["images/0.png"],
        ["x is -1\nor 晚上."],
        {},
        {"mm-vet_predictions.json": {"v1_0": "x is -1\nor 晚上."}},
    ),
    # Random: all answers are correct. Popular: one correct yes and one correct no. Adversarial: always yes.
    "POPE has scores per split and means": Case(
        "pope",
        {
            f"coco_pope_{split}.json": json_lines(
                *(pope_entry(n, label) for n, label in enumerate(["yes", "no", "yes", "no"], 1))
            )
            for split in SPLITS
        },
        f"Is there a cat 1?{SHORT_ANSWER}",
        [f"val2014/COCO_val2014_{n:012}.jpg" for n in (1, 2, 3, 4)] * 3,
        [text for texts in POPE_ANSWERS.values() for text in texts],
        pope_scores("random", 100, 100, 100, 100, 50)
        | pope_scores("popular", 50, 50, 50, 50, 50)
        | pope_scores("adversarial", 200 / 3, 50, 50, 100, 100)
        | pope_scores("mean", 650 / 9, 200 / 3, 200 / 3, 250 / 3, 200 / 3),
        {
            f"coco_pope_{split}.jsonl": [
                {"question_id": n, "answer": text, "text": text} for n, text in enumerate(texts, 1)
            ]
            for split, texts in POPE_ANSWERS.items()
        }
        | {
            "llava_pope.jsonl": [
                {"question_id": f"{split}/{n}", "category": split, "text": text}
                for split, texts in POPE_ANSWERS.items()
                for n, text in enumerate(texts, 1)
            ]
        },
    ),
    # The official file contains the id 49914 twice, for two questions.
    "SEED-Bench omits videos and keeps questions with equal ids": Case(
        "seed",
        seed_files(
            seed_entry(1, 5, "A", question_id="49914"),
            seed_entry(2, 5, "D"),
            seed_entry(3, 1, "B", question_id="49914"),
            seed_entry(4, 10, "C", data_type="video"),
        ),
        "How many 1?\nA. One\nB. Two\nC. Three\nD. 4\n\n"
        "Answer with the option's letter from the given choices directly.",
        [f"SEED-Bench-image/145442{n}_2591111986" for n in (1, 2, 3)],
        ["A", "Four", "B. Two"],
        {"accuracy": 200 / 3, "Instances Counting.accuracy": 50, "Scene Understanding.accuracy": 100},
        {
            "seed_image.jsonl": [
                {"question_id": "49914", "prediction": "A"},
                {"question_id": "101662", "prediction": ""},
                {"question_id": "49914", "prediction": "B"},
            ]
        },
    ),
    "VQA v2 has scores for the annotated split": Case(
        "vqav2",
        vqa_questions("val2014", *VQA_QUESTIONS) | vqa_annotations(*VQA_ANNOTATIONS),
        f"What color?{SHORT_ANSWER}",
        [f"val2014/COCO_val2014_{n:012}.jpg" for n in (42, 42, 43)],
        ["Red.", "Two", "Yes"],
        {"val.accuracy": 250 / 3, "val.other": 90, "val.number": 60, "val.yes/no": 100},
        vqa_predictions("val2014", "red", "2", "yes"),
    ),
    "VQA v2 has no scores for a test split": Case(
        "vqav2",
        vqa_questions("test-dev2015", *VQA_QUESTIONS),
        f"What color?{SHORT_ANSWER}",
        [f"test2015/COCO_test2015_{n:012}.jpg" for n in (42, 42, 43)],
        ["The red one.", "Two", "Yes"],
        {},
        vqa_predictions("test-dev2015", "red 1", "2", "yes"),
        (("split", "test-dev2015"),),
    ),
}


def write_files(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prompts_scores_and_predictions(case, tmp_path):
    benchmark = find_benchmark(case.benchmark)
    data, out = tmp_path / "data", tmp_path / "out"
    write_files(data, case.files)
    out.mkdir()
    options = benchmark.resolve_options(dict(case.options))
    questions = benchmark.read(data, options)
    assert prompt_text(questions[0]) == f"<image_placeholder>\n{case.prompt}"
    (paths,) = zip(*(question.messages[0]["images"] for question in questions), strict=True)
    assert [str(path.relative_to(data)) for path in paths] == case.images
    answers = answer_in_order(questions, *case.answers)
    assert benchmark.score(questions, answers, options) == pytest.approx(case.scores)
    benchmark.write_predictions(questions, answers, out)
    for name, content in case.predictions.items():
        text = (out / name).read_text()
        assert (list(map(json.loads, text.splitlines())) if name.endswith(".jsonl") else json.loads(text)) == content
    assert {file.name for file in out.iterdir()} == set(case.predictions)


def gqa(**changes):
    return {"testdev_balanced_questions.json": {"7": gqa_entry() | changes}}


def mmbench(**changes):
    row = {"index": "7", "question": "What is it?", "A": "Boat", "B": "Car", "answer": "B", "image": "aW1hZ2U="}
    row |= changes
    return {"MMBench_DEV_EN.tsv": "\t".join(row) + "\n" + "\t".join(row.values()) + "\n"}


def mmmu(**changes):
    row = {"id": "validation_Art_1", "question": "What is <image 1>?", "options": "['One', 'Two']", "answer": "B"}
    row |= {"question_type": "multiple-choice", "image_1": "0.png"}
    return {"validation.jsonl": json_lines(row | changes)}


def pope(**changes):
    return {"coco_pope_random.json": json_lines(pope_entry(1, "no"), pope_entry(2, "yes") | changes)}


def seed(**changes):
    return seed_files(seed_entry(1, 5, "A"), seed_entry(2, 5, "D") | changes)


def geneval(**changes):
    line = {"tag": "colors", "include": [{"class": "cup"}], "prompt": "a red cup"} | changes
    return {"evaluation_metadata.jsonl": json_lines(line)}


def mjhq(**changes):
    return {"meta_data.json": {"a": {"category": "art", "prompt": "a lake"} | changes}}


MALFORMED = [
    ("gqa", gqa(answer=None), r"questions.json, entry 7: the field answer is missing; expected text"),
    ("gqa", gqa(imageId=""), r"questions.json, entry 7: imageId is ''; expected an integer or text"),
    ("gqa", gqa(question=["Who?"]), r"questions.json, entry 7: question is .*; expected text"),
    ("gqa", {"testdev_balanced_questions.json": []}, r"questions.json is list; expected a JSON object"),
    ("mmbench", mmbench(B=""), r"EN.tsv, row 1: the fields A, B ... contain 1 options"),
    ("mmbench", mmbench(image=""), r"EN.tsv, row 1: the field image is missing; expected an image in base64"),
    ("mmbench", mmbench(image="a image!"), r"EN.tsv, row 1: image is 'a image!'; expected an image in base64"),
    ("mmbench", mmbench(answer="E"), r"EN.tsv, row 1: answer is 'E'; expected one of A, B"),
    ("mmbench", mmbench(index="first"), r"EN.tsv, row 1: index is 'first'; expected an integer"),
    ("mmbench", mmbench() | {"b.tsv": ""}, r"contains 2 tables \(MMBench_DEV_EN.tsv, b.tsv\); expected one"),
    ("mmmu", mmmu(options="six"), r"jsonl, line 1: options is 'six'; expected a list or"),
    ("mmmu", mmmu(options="['x']"), r"jsonl, line 1: options contains 1 options"),
    ("mmmu", mmmu(answer="F"), r"jsonl, line 1: answer is 'F'; expected one of A, B"),
    ("mmmu", mmmu(question_type="essay"), r"line 1: question_type is 'essay'; expected one of multiple-choice, open"),
    ("mmmu", mmmu(image_1=None), r"jsonl, line 1: the field image_1 is missing; expected an image"),
    ("mmmu", mmmu(id="test_Art_1"), r"jsonl, line 1: id is 'test_Art_1'; expected validation_SUBJECT_NUMBER"),
    ("mmmu", {}, r"contains no \*validation\*.parquet"),
    ("mmvet", {"mm-vet.json": {"0": {"question": "?"}}}, r"mm-vet.json, entry 0: the field imagename is missing"),
    ("pope", {}, r"coco_pope_random.json does not exist"),
    ("pope", {"coco_pope_random.json": '{"question_id": 1, "im'}, r"line 1 is not JSON .*; expected a JSON object"),
    ("pope", pope(label=None), r"random.json, line 2: the field label is missing; expected one of yes, no"),
    ("pope", pope(label="perhaps"), r"random.json, line 2: label is 'perhaps'; expected one of yes, no"),
    ("pope", pope(text=7), r"random.json, line 2: text is 7; expected text"),
    ("pope", pope(image="../secret.jpg"), r"random.json, line 2: the image '../secret.jpg' is outside"),
    ("pope", pope(question_id=[1]), r"random.json, line 2: question_id is \[1\]; expected an integer or text"),
    ("seed", seed(choice_c=None), r"SEED-Bench.json: questions, entry 2: the field choice_c is missing"),
    ("seed", seed(answer="E"), r"questions, entry 2: answer is 'E'; expected one of A, B, C, D"),
    ("seed", seed(data_id=["a", "b"]), r"questions, entry 2: data_id is .*; expected the name of an image"),
    ("seed", seed(data_type="sound"), r"questions, entry 2: data_type is 'sound'; expected one of image, video"),
    (
        "vqav2",
        vqa_questions("val2014", *VQA_QUESTIONS) | vqa_annotations(*VQA_ANNOTATIONS[:2]),
        r"questions, entry 3: question_id 43000 has no entry in v2_mscoco_val",
    ),
    (
        "vqav2",
        vqa_questions("val2014", (42000, None)) | vqa_annotations(*VQA_ANNOTATIONS),
        r"questions.json: questions, entry 1: the field question is missing",
    ),
    (
        "vqav2",
        {"v2_OpenEnded_mscoco_val2014_questions.json": {"questions": {}}} | vqa_annotations(),
        r"questions.json: questions is dict; expected a list of objects",
    ),
    ("vqav2", vqa_annotations((1, "other", [])), r"annotations, entry 1: answers is empty"),
    ("geneval", geneval(tag="mood"), r"metadata.jsonl, line 1: tag is 'mood'; expected one of single_object"),
    ("geneval", geneval(prompt=None), r"metadata.jsonl, line 1: the field prompt is missing"),
    ("geneval", geneval(include=None), r"metadata.jsonl, line 1: the field include is missing"),
    ("geneval", geneval(include=[{}]), r"line 1: include, entry 1: the field class is missing"),
    ("dpg", {}, r"prompts does not exist"),
    ("coco30k", {"captions_val2014.json": {"annotations": [{"id": 1}]}}, r"entry 1: the field caption is missing"),
    ("mjhq30k", mjhq(category=None), r"meta_data.json, entry a: the field category is missing"),
    ("mjhq30k", mjhq(prompt=None), r"meta_data.json, entry a: the field prompt is missing"),
    ("mjhq30k", mjhq(category="../.."), r"meta_data.json, entry a: '../..' is used as a file name"),
]


@pytest.mark.parametrize(("name", "files", "message"), MALFORMED)
def test_malformed_data_is_reported(name, files, message, tmp_path):
    write_files(tmp_path, files)
    benchmark = find_benchmark(name)
    with pytest.raises(JanusError, match=message):
        benchmark.read(tmp_path, benchmark.resolve_options({}))


WELL_FORMED = {case.benchmark: (case.files, dict(case.options)) for case in CASES.values()} | {
    "coco30k": ({"captions_val2014.json": {"annotations": [{"id": 1, "caption": "A cat"}]}}, {}),
    "dpg": ({"prompts/0.txt": "A red cup"}, {}),
    "geneval": (geneval(), {}),
    "imgedit": ({"basic_edit.json": {"1": {"id": "a.jpg", "prompt": "Make it blue.", "edit_type": "adjust"}}}, {}),
    "mjhq30k": (mjhq(), {}),
    "mmbench": (mmbench(), {}),
    "mme": ({f"{task}/0.txt": "Is it?\tYes\nIs it not?\tNo\n" for task in (*PERCEPTION, *COGNITION)}, {}),
    "mmmu": (mmmu(), {}),
}


# GEdit-Bench is a Parquet file.
@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "gedit"])
def test_a_byte_order_mark_is_ignored(name, tmp_path):
    files, given = WELL_FORMED[name]
    benchmark = find_benchmark(name)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    if name == "mme":
        for task in (*PERCEPTION, *COGNITION):
            write_image(tmp_path / task / "0.png")
    write_files(tmp_path, files)
    plain = benchmark.read(tmp_path, benchmark.resolve_options(given))
    for file in files:
        (tmp_path / file).write_bytes(codecs.BOM_UTF8 + (tmp_path / file).read_bytes())
    assert benchmark.read(tmp_path, benchmark.resolve_options(given)) == plain != []


def test_a_repeated_id_is_reported(tmp_path):
    write_files(tmp_path, {f"coco_pope_{split}.json": json_lines(*[pope_entry(1, "no")] * 2) for split in SPLITS})
    with pytest.raises(JanusError, match="contains the id 'random/1' twice"):
        find_benchmark("pope").load_items(tmp_path, {})


def official_sizes(name, **options):
    benchmark = find_benchmark(name)
    sizes = benchmark.official_sizes
    return sizes(benchmark.resolve_options(options)) if callable(sizes) else sizes


def test_every_benchmark_has_an_official_size():
    for name in BUILT_IN:
        assert min(official_sizes(name), default=0) > 0, name
    assert official_sizes("geneval", images="2") == (1106,)
    assert official_sizes("vqav2", split="test-dev2015") == (107_394,)


@pytest.mark.parametrize("limit", [None, 1])
def test_an_unofficial_number_of_questions_gives_a_warning(tmp_path, limit):
    write_files(tmp_path, {"coco_pope_random.json": json_lines(*(pope_entry(n, "no") for n in range(3)))})
    for n in range(3):
        write_image(tmp_path / "val2014" / f"COCO_val2014_{n:012}.jpg")
    warnings = []
    find_benchmark("pope").load_items(tmp_path, {}, limit, warn=warnings.append)
    assert warnings == [f"pope has 3 questions in {tmp_path}; the official number is 9,000 or 8,910."]
    official = replace(find_benchmark("pope"), official_sizes=(2, 3))
    official.load_items(tmp_path, {}, limit, warn=warnings.append)
    assert len(warnings) == 1
