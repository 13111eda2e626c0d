"""The processes of janus-prepare import processing without jax."""

import subprocess
import sys
from pathlib import Path


def test_processing_does_not_import_jax():
    code = "import sys, janus_jax.processing; sys.exit('jax' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
