"""Checks the import rules of docs/architecture.md."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = ("examples", "janus_jax", "checkpoints_convert", "configs", "launch", "benchmarks", "tests")
ARRAYS = ("jax", "jaxlib", "flax", "optax", "orbax")

BASE = (
    "janus_jax.accelerators",
    "janus_jax.batch",
    "janus_jax.buckets",
    "janus_jax.config",
    "janus_jax.coordination",
    "janus_jax.devices",
    "janus_jax.distributed",
    "janus_jax.errors",
    "janus_jax.extras",
    "janus_jax.files",
    "janus_jax.image_files",
    "janus_jax.progress",
    "janus_jax.registries",
    "janus_jax.storage",
)
SHARED = ("janus_jax.models", "janus_jax.processing", "janus_jax.sharding")

# Packages that each package may import, in addition to BASE. The longest matching key applies.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(BASE, ()),
    "janus_jax.models": ("janus_jax.models",),
    "janus_jax.processing": ("janus_jax.processing",),
    "janus_jax.sharding": ("janus_jax.sharding",),
    "janus_jax.data": ("janus_jax.processing", "janus_jax.data"),
    "janus_jax.data.prepare": (*SHARED, "janus_jax.data", "janus_jax.generation.padding", "checkpoints_convert"),
    "janus_jax.generation": (*SHARED, "janus_jax.generation"),
    "janus_jax.training": (*SHARED, "janus_jax.data", "janus_jax.generation", "janus_jax.training"),
    "janus_jax.training.image_tokenizer": (
        *SHARED,
        "janus_jax.data",
        "janus_jax.evaluation.metrics",
        "janus_jax.generation.padding",
        "janus_jax.training",
    ),
    "janus_jax.training.image_tokenizer.task": (
        *SHARED,
        "janus_jax.evaluation.metrics",
        "janus_jax.training",
        "checkpoints_convert",
    ),
    "janus_jax.training.rl": (
        *SHARED,
        "janus_jax.generation",
        "janus_jax.pretrained",
        "janus_jax.rewards",
        "janus_jax.training",
    ),
    "janus_jax.training.siglip": (*SHARED, "janus_jax.data", "janus_jax.training", "checkpoints_convert"),
    "janus_jax.training.init_from": (*SHARED, "janus_jax.training", "checkpoints_convert"),
    "janus_jax.training.callbacks": (
        *SHARED,
        "janus_jax.data.pipeline",
        "janus_jax.generation",
        "janus_jax.pretrained",
        "janus_jax.evaluation",
        "janus_jax.training",
    ),
    "janus_jax.aot": (*SHARED, "janus_jax.data", "janus_jax.generation", "janus_jax.training", "janus_jax.aot"),
    "janus_jax.training.model_card": (*SHARED, "janus_jax.training", "checkpoints_convert"),
    "janus_jax.training.export": (*SHARED, "janus_jax.training", "checkpoints_convert"),
    "janus_jax.evaluation": ("janus_jax.processing", "janus_jax.data", "janus_jax.pretrained", "janus_jax.evaluation"),
    "janus_jax.evaluation.generation": (
        *SHARED,
        "janus_jax.data",
        "janus_jax.generation",
        "janus_jax.evaluation",
        "checkpoints_convert",
    ),
    "janus_jax.evaluation.metrics": (*SHARED, "janus_jax.evaluation", "checkpoints_convert"),
    "janus_jax.rewards": (
        "janus_jax.evaluation.metrics",
        "janus_jax.generation",
        "janus_jax.rewards",
        "checkpoints_convert.tensor_files",
    ),
    "janus_jax.serving": ("janus_jax.processing", "janus_jax.generation", "janus_jax.rewards", "janus_jax.serving"),
    "janus_jax.commands": ("janus_jax", "checkpoints_convert"),
    "janus_jax": ("janus_jax", "checkpoints_convert"),
    "checkpoints_convert": (*SHARED, "checkpoints_convert"),
    "configs": ("janus_jax",),
    "launch": ("janus_jax.commands",),
    "examples": ("janus_jax", "checkpoints_convert", "examples"),
}
# Modules that do not import an array library at module level, because janus-prepare and thin clients use them.
WITHOUT_ARRAYS = (
    *BASE,
    "janus_jax.processing",
    "janus_jax.data.pipeline",
    "janus_jax.data.sources",
    "janus_jax.evaluation.benchmark",
    "janus_jax.evaluation.generation",
    "janus_jax.evaluation.journal",
    "janus_jax.evaluation.metrics.clip_score",
    "janus_jax.evaluation.metrics.fid",
    "janus_jax.evaluation.registry",
    "janus_jax.evaluation.results",
    "janus_jax.evaluation.runner",
    "janus_jax.evaluation.understanding",
    "janus_jax.rewards",
    "janus_jax.commands.cli",
    "janus_jax.commands.evaluate",
)


def sources(packages=("janus_jax", "checkpoints_convert", "configs", "launch", "examples")):
    """Returns the files of these packages and modules."""
    files = sorted(path for top in {name.split(".")[0] for name in packages} for path in (ROOT / top).rglob("*.py"))
    return [path for path in files if within(module_name(path), packages)]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports(path, *, inside_functions=True):
    """Yields the modules that a file imports; `from a import b` yields `a.b`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if inside_functions else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_modules_import_only_allowed_packages(path):
    name = module_name(path)
    owner = max((key for key in MAY_IMPORT if within(name, [key])), key=len)
    forbidden = {
        found for found in imports(path) if within(found, PROJECT) and not within(found, (*BASE, *MAY_IMPORT[owner]))
    }
    assert not forbidden


@pytest.mark.parametrize("path", sources(WITHOUT_ARRAYS), ids=module_name)
def test_modules_for_data_workers_import_no_array_library(path):
    assert not {found for found in imports(path, inside_functions=False) if within(found, ARRAYS)}


def test_processing_starts_without_jax():
    modules = [module_name(path) for path in sources(["janus_jax.processing"])]
    code = f"import importlib, sys; list(map(importlib.import_module, {modules})); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_only_line_feeds_separate_the_lines_of_user_files():
    """str.splitlines also splits at U+2028 and other characters that occur within a line of text."""
    own_text = {"janus_jax.aot.collectives", "janus_jax.commands.evaluate"}  # Text that no user writes.
    files = sources(["janus_jax", "checkpoints_convert"])
    assert {module_name(path) for path in files if ".splitlines(" in path.read_text()} <= own_text


def flags_of(path):
    """Yields the names of the flags that a file defines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "define_recipe_flag":
                yield "config"
            elif (
                called.startswith("DEFINE_")
                and called != "DEFINE_config_file"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                yield node.args[0].value


def test_modules_that_tests_import_define_different_flags():
    """The tests run in one process, in which each flag can be defined only once."""
    files = {module_name(path): path for path in sources(["janus_jax.commands", "benchmarks"])}
    found, left = set(), [path for path in sources(["tests"]) if "parity" not in path.parts]
    while left:
        named = {name for path in left for name in imports(path)}
        new = {name for name in files if any(within(one, [name]) for one in named)} - found
        found |= new
        left = [files[name] for name in new]
    assert len(found) > 5
    owners = {}
    for module in found:
        for flag in flags_of(files[module]):
            owners.setdefault(flag, set()).add(module)
    assert not {flag: modules for flag, modules in owners.items() if len(modules) > 1}
