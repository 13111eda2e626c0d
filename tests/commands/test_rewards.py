"""`janus-rewards` serves a reward until it is stopped."""

import signal
import subprocess
import sys

import numpy as np

from janus_jax.rewards import make_reward
from tests.commands.conftest import environment

CODE = "def brightness(prompts, images, metadata, scale=1.0):\n    return scale * images.mean(axis=(1, 2, 3))\n"


def test_a_client_gets_the_values_of_the_function(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    flags = ["--reward", "mine:brightness", "--reward_option", "scale=0.5", "--port", "0"]
    command = [sys.executable, "-m", "launch.rewards", *flags]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving the reward mine:brightness at http://127.0.0.1:")
        images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (50, 100)])
        reward = make_reward("http", {"urls": (line.split()[-1],)})
        assert reward(["a", "b"], images, [{}, {}]).tolist() == [25, 50]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
