"""The notebooks run on the small models, as they are in a checkout."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(file, kind):
    return ["".join(cell["source"]) for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs a notebook in a copy of the checkout and returns the printed text."""
    import nbformat
    from nbclient import NotebookClient

    # The commands of the notebooks are those of this environment.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    folder = tmp_path / "docs" / "notebooks"
    shutil.copytree(
        ROOT / "docs" / "notebooks", folder, ignore=lambda _, names: [n for n in names if ".ipynb" not in n]
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    def run(name, **changes):
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        for variable, value in changes.items():
            (cell,) = (cell for cell in notebook.cells if re.search(rf"^{variable} = ", cell.source, re.MULTILINE))
            cell.source = re.sub(rf"^{variable} = .*", f"{variable} = {value}", cell.source, flags=re.MULTILINE)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
        outputs = [one for cell in notebook.cells if cell.cell_type == "code" for one in cell.outputs]
        assert any("image/png" in one.get("data", {}) for one in outputs)
        return "".join(one.get("text", "") for one in outputs).replace("\r\n", "\n")

    return run


@pytest.mark.slow
def test_first_steps_generate_an_image_and_describe_it(run):
    printed = run("first_steps")
    assert "yellow\n" in printed
    assert "user | What color is the star?\nassistant | blue\n" in printed


@pytest.mark.nightly
def test_the_fine_tuned_model_knows_a_new_word(run):
    before, after = run("fine_tune", STEPS=30).split("initializing the parameters")
    assert "a pink heart" not in before
    assert "hearts: stage 1 at step 30\n" in after
    assert "a pink heart\n" in after


@pytest.mark.slow
def test_the_benchmark_of_the_notebook_scores_the_model(run):
    printed = run("evaluate")
    (accuracy,) = re.findall(r"\{'accuracy': ([\d.]+)\}", printed)
    assert float(accuracy) > 0.7
    assert f"{round(24 * (1 - float(accuracy)))} of 24 answers are wrong." in printed


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_notebook_is_stored_without_outputs_and_its_links_exist(file):
    for cell in json.loads(file.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    links = re.findall(r"\]\(([^)#]+)", "\n".join(cells(file, "markdown")))
    assert [link for link in links if not (file.parent / link).exists()] == []
    assert any(re.search(r'^MODEL = "../../examples/', code, re.MULTILINE) for code in cells(file, "code"))
