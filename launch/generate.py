"""Draws images of prompts.

    python -m launch.generate --model DIR --prompt TEXT --num_images N --seed S --out DIR

Image i of prompt p becomes OUT/p_i.png (00000_0.png ...), with prompt, seed and settings in its metadata. It is drawn
the same again by the same model, prompts in the same order, seed and settings; --batch_size changes no more than
rounding does.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tqdm
from absl import flags

from janus_jax.errors import JanusError
from launch import cli, models, pictures

_PROMPT = flags.DEFINE_multi_string("prompt", [], "what to draw; may be given several times")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "a text file with further prompts, one a line")
_NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "images of each prompt", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "folder for the pictures; made if need be", required=True)
_GUIDANCE_SCALE = models.define_amount("guidance_scale", 5.0, "weight of the prompt; 1 leaves guidance out")
_TEMPERATURE = models.define_amount("temperature", 1.0, "0 takes the likeliest id at every step")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "images drawn at a time", lower_bound=1)
flags.adopt_module_key_flags(models)


def main(_: Sequence[str]) -> None:
    """Draws, and prints the path of every picture."""
    prompts = [models.some_text(prompt, "--prompt") for prompt in _PROMPT.value] + read_prompts(_PROMPTS_FILE.value)
    if not prompts:
        raise JanusError("There is nothing to draw; give --prompt or --prompts_file.")
    settings: dict[str, Any] = {
        "guidance_scale": _GUIDANCE_SCALE.value,
        "temperature": _TEMPERATURE.value,
        "top_k": models.TOP_K.value,
        "top_p": models.TOP_P.value,
    }
    with pictures.output_folder(Path(_OUT.value)) as out:
        model = models.load_model()
        common = {
            "seed": models.SEED.value,
            "model": f"{model.config.name} ({models.MODEL.value})",
            "settings": json.dumps(settings | {"dtype": models.resolve_dtype(models.DTYPE.value)}),
            "Software": "janus_jax",
        }
        with pictures.drawing_bar(model, len(prompts), _NUM_IMAGES.value) as report:
            # Saved batch by batch: what a killed run has drawn is not lost.
            for drawn in model.generate_stream(
                prompts,
                _NUM_IMAGES.value,
                seed=models.SEED.value,
                batch_size=_BATCH_SIZE.value,
                report=report,
                **settings,
            ):
                path = out / f"{drawn.prompt:05}_{drawn.number}.png"
                place = {"prompt_number": drawn.prompt, "image_number": drawn.number}
                pictures.save_png(drawn.image, path, {"prompt": prompts[drawn.prompt], **place, **common})
                tqdm.tqdm.write(str(path), file=sys.stdout)


def read_prompts(path: str | None) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
      JanusError: it cannot be read, or has none.
    """
    if path is None:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise JanusError(f"{path} cannot be read as a text file ({error}); give one with a prompt a line.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise JanusError(f"{path} holds no prompt; write one a line.")
    return prompts


if __name__ == "__main__":
    cli.run(main)
