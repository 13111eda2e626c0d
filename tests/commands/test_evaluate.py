"""Tests of `janus-evaluate`: runs of POPE with a tiny checkpoint, and user errors."""

import json
import subprocess
import sys
import time

import pytest

from janus_jax.evaluation.generation import geneval
from janus_jax.evaluation.understanding import pope
from tests.commands.conftest import environment, run
from tests.evaluation.fakes import OWN_BENCHMARK, write_image
from tests.evaluation.test_benchmarks import SPLITS, gqa_entry, json_lines, pope_entry, write_files
from tests.evaluation.test_benchmarks import geneval as geneval_file
from tests.training.test_processes import run_processes

DEVICES = "--xla_force_host_platform_device_count={}"


def write_pope(folder, images=True):
    entries = [pope_entry(n, label, image=f"{n}.jpg") for n, label in enumerate(["yes", "no"])]
    write_files(folder, {f"coco_pope_{split}.json": json_lines(*entries) for split in SPLITS})
    for n in range(2 if images else 1):
        write_image(folder / "val2014" / f"{n}.jpg", n)
    return folder


def command(checkpoint, folder):
    data, out = folder / "data", folder / "out"
    flags = [f"--model={checkpoint}", "--benchmark=pope", f"--data={data}", f"--out={out}", "--dtype=float32"]
    return ["-m", "launch.evaluate", *flags]


def evaluate(checkpoint, folder, *more, devices=1):
    return run(*command(checkpoint, folder)[1:], *more, XLA_FLAGS=DEVICES.format(devices))


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """Returns a folder with the data and results of one run, and the finished process."""
    folder = tmp_path_factory.mktemp("pope")
    write_pope(folder / "data")
    process = evaluate(checkpoint, folder, "--batch_size=4")
    assert process.returncode == 0, process.stderr
    return folder, process


@pytest.mark.slow
def test_results_contain_scores_and_settings(finished):
    folder, _ = finished
    results = json.loads((folder / "out" / "results.json").read_text())
    assert {f"{part}.accuracy" for part in (*SPLITS, "mean")} <= set(results["scores"])
    assert results["number of questions"] == 6
    assert results["skipped questions"] == []
    assert results["run"]["benchmark"] == "pope"
    assert (results["run"]["dtype"], results["run"]["seed"], results["run"]["limit"]) == ("float32", 0, None)
    assert results["config"]["name"] == "tiny"
    assert {"python", "jax", "flax"} <= set(results["versions"])


def test_answers_are_recorded_and_written_for_the_scorer(finished):
    folder, _ = finished
    answers = [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]
    assert {answer["id"] for answer in answers} == {f"{split}/{n}" for split in SPLITS for n in range(2)}
    for split in SPLITS:
        lines = (folder / "out" / "predictions" / f"coco_pope_{split}.jsonl").read_text().splitlines()
        texts = {answer["id"]: answer["answer"] for answer in answers}
        assert [json.loads(line)["text"] for line in lines] == [texts[f"{split}/{n}"] for n in range(2)]


def test_scores_and_progress_are_printed(finished):
    _, process = finished
    assert "random.accuracy" in process.stdout
    assert "6/6" in process.stderr


@pytest.mark.slow
def test_another_seed_is_refused_and_a_finished_run_asks_nothing(finished, checkpoint):
    folder, first = finished
    refused = evaluate(checkpoint, folder, "--seed=1")
    assert refused.returncode == 2
    assert "belongs to a run with seed 0, not 1" in refused.stderr
    answers = (folder / "out" / "answers.jsonl").read_bytes()
    again = evaluate(checkpoint, folder, "--batch_size=2")
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    assert (folder / "out" / "answers.jsonl").read_bytes() == answers


# The command with a fake model, whose answers are the maximum number of tokens. It loads and compiles nothing.
WITH_FAKE_MODEL = """
from types import SimpleNamespace
from janus_jax.commands import evaluate, model_flags

def answer(prompts, max_new_tokens, temperature):
    return [str(max_new_tokens)] * len(prompts)

model_flags.load_model = lambda opened: SimpleNamespace(processor=opened.processor, answer=answer)
evaluate.run()
"""


@pytest.mark.slow
def test_damaged_images_are_skipped_and_counted_in_a_list_of_benchmarks(checkpoint, tmp_path):
    def evaluate_list(*more):
        flags = [f"--model={checkpoint}", "--data=data", "--out=out", "--benchmark=own_benchmark:mine,pope", *more]
        command = [sys.executable, "-c", WITH_FAKE_MODEL, "--max_new_tokens=2", *flags]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )

    (tmp_path / "own_benchmark.py").write_text(OWN_BENCHMARK)
    for name in ("mine", "pope"):
        write_pope(tmp_path / "data" / name)
    (tmp_path / "data" / "mine" / "val2014" / "1.jpg").write_bytes(b"")
    refused = evaluate_list()
    assert refused.returncode == 2, refused.stderr
    assert (
        "Question random/1: The image data/mine/val2014/1.jpg is empty; fetch the image again, or skip its questions "
        "with --skip_damaged."
    ) in refused.stderr
    done = evaluate_list("--skip_damaged")
    assert done.returncode == 0, done.stderr
    assert "3 questions with damaged images were skipped." in done.stdout
    assert "mine has 6 questions in data/mine; the official number is 9,000 or 8,910." in done.stdout
    mine, whole = (json.loads((tmp_path / "out" / name / "results.json").read_text()) for name in ("mine", "pope"))
    assert mine["skipped questions"] == [f"{split}/1" for split in SPLITS]
    assert (mine["number of questions"], whole["number of questions"]) == (3, 6)
    assert mine["run"]["max_new_tokens"] == 2
    answers = (tmp_path / "out" / "pope" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in answers] == ["2"] * 6


def test_list_needs_no_model_and_shows_all_benchmarks():
    done = run("launch.evaluate", "--list", JAX_PLATFORMS="nowhere")
    assert done.returncode == 0, done.stderr
    for benchmark in (pope.BENCHMARK, geneval.BENCHMARK):
        assert benchmark.name in done.stdout
        assert all(line in done.stdout for line in benchmark.layout.splitlines())


USER_ERRORS = {
    "no benchmark": (["--benchmark="], "--benchmark is empty; there are pope, mme"),
    "no such benchmark": (["--benchmark=poope"], "--benchmark poope is unknown; use pope"),
    "no data": (["--data="], "--data is required for pope; --list shows the expected files."),
    "no such data": (["--data=absent"], "coco_pope_random.json does not exist"),
    "a missing image": (["--data=no_image"], "1.jpg, the image of question random/1, is missing"),
    "two benchmarks in one folder": (
        ["--benchmark=pope,gqa"],
        "data/pope/coco_pope_random.json does not exist",
    ),
    "a second benchmark without an image": (
        ["--benchmark=pope,gqa", "--data=both"],
        "both/gqa/images/7.jpg, the image of question 201, is missing",
    ),
    "a second benchmark with another column": (
        ["--benchmark=pope,mmvet", "--data=both"],
        "mm-vet.json, entry 0: the field imagename is missing",
    ),
    "a second benchmark that does not exist": (["--benchmark=pope,absent:colors"], "absent:colors: No module named"),
    "a length of answers for images": (
        ["--benchmark=geneval", "--max_new_tokens=4", "--data=both/geneval"],
        "--max_new_tokens has no effect on geneval, which generate images",
    ),
    "a background for benchmarks without images": (
        ["--benchmark=geneval", "--background=white", "--data=both/geneval"],
        "--background has no effect on geneval; omit it.",
    ),
    "an option of no benchmark": (["--option=prompt=official"], "--option prompt=official is not an option of pope"),
    "an option without a value": (["--option=prompt"], "--option prompt has no value"),
    "an invalid option value": (["--benchmark=mmmu", "--option=prompt=maybe"], "it must be authors|official"),
    "a file instead of a folder": (["--out=taken"], "taken cannot be written"),
    "no such model": (["--model=absent"], "absent does not exist"),
    "truncated weights": (["--model=truncated_weights"], "model.safetensors is truncated"),
    "no tokenizer": (["--model=without_tokenizer"], "tokenizer.json is missing"),
}


@pytest.mark.parametrize("error", USER_ERRORS)
def test_a_user_error_is_one_sentence_before_any_device_is_used(refuses, spoiled, checkpoint, error):
    write_pope(spoiled / "data")
    write_pope(spoiled / "no_image", images=False)
    write_pope(spoiled / "both" / "pope")
    write_files(spoiled / "both" / "gqa", {"testdev_balanced_questions.json": {"201": gqa_entry(imageId="7")}})
    write_files(spoiled / "both" / "mmvet", {"mm-vet.json": {"0": {"question": "What?"}}})
    write_files(spoiled / "both" / "geneval", geneval_file())
    arguments, message = USER_ERRORS[error]
    given = {argument.split("=")[0] for argument in arguments}
    defaults = {"--model": checkpoint, "--benchmark": "pope", "--data": "data", "--out": "out"}
    arguments = [*arguments, *(f"{flag}={value}" for flag, value in defaults.items() if flag not in given)]
    assert message in refuses("launch.evaluate", *arguments, cwd=spoiled)
    assert not (spoiled / "out").exists()


def same_results(one, other):
    return all(one[name] == other[name] for name in ("scores", "run", "number of questions"))


@pytest.mark.nightly
def test_a_killed_run_has_the_results_of_an_uninterrupted_run(finished, checkpoint, tmp_path):
    folder, _ = finished
    write_pope(tmp_path / "data")
    answers = tmp_path / "out" / "answers.jsonl"
    killed = subprocess.Popen(
        [sys.executable, *command(checkpoint, tmp_path), "--batch_size=1"],
        env=environment(XLA_FLAGS=DEVICES.format(1)),
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not (answers.exists() and answers.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    before = answers.read_text()
    assert before
    again = evaluate(checkpoint, tmp_path)
    assert again.returncode == 0, again.stderr
    after = answers.read_text()
    assert after.startswith(before[: before.rfind("\n") + 1])
    assert len({json.loads(line)["id"] for line in after.splitlines()}) == len(after.splitlines()) == 6
    one, two = (json.loads((path / "out" / "results.json").read_text()) for path in (folder, tmp_path))
    assert same_results(one, two)


@pytest.mark.nightly
def test_eight_devices_have_the_results_of_one(finished, checkpoint, tmp_path):
    folder, _ = finished
    write_pope(tmp_path / "data")
    spread = evaluate(checkpoint, tmp_path, devices=8)
    assert spread.returncode == 0, spread.stderr
    one, eight = (json.loads((path / "out" / "results.json").read_text()) for path in (folder, tmp_path))
    assert (one["devices"]["mesh"], eight["devices"]["mesh"]) == (None, "-1,1,1")
    assert same_results(one, eight)


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(finished, checkpoint, tmp_path):
    folder, _ = finished
    arguments = [f"--model={checkpoint}", f"--data={folder / 'data'}", f"--out={tmp_path}", "--dtype=float32"]
    outputs = run_processes(
        2, "-m", "launch.evaluate", "--benchmark=pope", "--distributed", "--batch_size=2", *arguments
    )
    assert "random.accuracy" in outputs[0]
    assert "random.accuracy" not in outputs[1]
    journals = [(tmp_path / f"answers.{index}.jsonl").read_text().splitlines() for index in range(2)]
    assert [len(lines) for lines in journals] == [3, 3]
    one, two = (json.loads((out / "results.json").read_text()) for out in (folder / "out", tmp_path))
    assert same_results(one, two)
    assert two["devices"]["processes"] == 2
