"""What docs/evaluation.md says of generation knows all benchmarks, their options and files."""

from pathlib import Path

import pytest

from janus_jax.evaluation.benchmark import Amount
from janus_jax.evaluation.generation import BENCHMARKS
from janus_jax.evaluation.generation.image_requests import DRAWING
from janus_jax.evaluation.metrics import clip_score as clip
from janus_jax.evaluation.metrics import fid

TEXT = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize("benchmark", [one for one in BENCHMARKS if one.layout], ids=lambda benchmark: benchmark.name)
def test_benchmarks_and_their_options_are_told(benchmark):
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{benchmark.name}`")).replace("\\|", "|")
    for option, values in benchmark.options.items():
        if option not in DRAWING:
            allowed = f"{values.default:g}" if isinstance(values, Amount) else "|".join(values)
            assert f"`{option}={allowed}`" in row


def test_files_of_the_judges_are_told():
    for name in (fid.INCEPTION, f"{fid.REFERENCE}_clean.npz", f"{fid.REFERENCE}_pytorch.npz", f"DATA/{clip.FOLDER}"):
        assert f"`{name}`" in TEXT
    for option in DRAWING:
        assert f"`--option {option}`" in TEXT
