"""Optional packages are checked when a command starts."""

import importlib.metadata
import importlib.util
import re
import runpy
import sys

import pytest
import setuptools

from janus_jax.data.prepare.prepare import PrepareOptions, prepare
from janus_jax.data.prepare.shard_writer import DatasetSpec
from janus_jax.data.sources import SourceOptions, get_source
from janus_jax.errors import JanusError
from janus_jax.evaluation.understanding.mmmu import BENCHMARK
from janus_jax.extras import EXTRAS
from janus_jax.processing import Task
from janus_jax.training.trackers import find_trackers
from tests.test_architecture import PROJECT, ROOT, imports, sources


@pytest.fixture
def missing(monkeypatch):
    """No optional package is installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in EXTRAS else find_spec(name))


def requirements(monkeypatch):
    """Returns the required packages, and those of each extra, in setup.py."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))

    def names(lines):
        return {normalized(re.split(r"[\[<>=]", line)[0]) for line in lines}

    return names(found["install_requires"]), {extra: names(lines) for extra, lines in found["extras_require"].items()}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_imported_package_is_required_or_in_an_extra(monkeypatch):
    required, extras = requirements(monkeypatch)
    installed = importlib.metadata.packages_distributions()
    modules = {name.split(".")[0] for path in sources() for name in imports(path)}
    third_party = modules - set(sys.stdlib_module_names) - {name.split(".")[0] for name in PROJECT} - {"readline"}
    for module in third_party:
        distributions = {normalized(name) for name in installed.get(module, [module])}
        if not distributions & (required | {"jaxlib"}):
            assert module in EXTRAS, f"{module} is neither required nor optional"
            assert distributions & extras[EXTRAS[module]]


def test_beam_is_checked_before_the_input_is_read(missing, tmp_path):
    spec = DatasetSpec("captions", SourceOptions((str(tmp_path / "absent"),), Task.GENERATION), tmp_path / "out")
    with pytest.raises(JanusError, match=r"--beam needs the package apache_beam; pip install 'janus_jax\[beam\]'"):
        prepare(spec, PrepareOptions(1, 0.0, beam="--runner=DirectRunner"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow", "b.jsonl.zst"])
def test_a_table_is_checked_before_the_first_one_is_read(missing, tmp_path, name):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(JanusError, match=r"b\.\S+ needs the package pyarrow; pip install 'janus_jax\[parquet\]'"):
        next(iter(get_source("captions").parts(SourceOptions((str(tmp_path),), Task.GENERATION))))


def test_parquet_is_checked_when_a_benchmark_is_read(missing, tmp_path):
    (tmp_path / "validation-0.parquet").write_bytes(b"")
    with pytest.raises(JanusError, match=r"validation-0\.parquet needs the package pyarrow"):
        BENCHMARK.read(tmp_path, {"prompt": "authors"})


def test_a_tracker_is_checked_before_the_run(missing):
    with pytest.raises(JanusError, match=r"config\.trackers wandb needs the package wandb; pip install 'janus_jax\[w"):
        find_trackers(("tensorboard", "wandb"))


def test_the_demo_checks_its_page_first(missing):
    from examples.shapes.demo import __main__ as demo

    with pytest.raises(JanusError, match=r"demo needs the package jinja2; pip install 'janus_jax\[demo\]'"):
        demo.main([])
