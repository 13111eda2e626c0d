"""Everything once, from nothing: makes a checkpoint, converts it, asks it about a picture, and draws.

    python -m launch.demo

The checkpoint has the files and names of a released one and pseudo-random numbers in place of trained weights: what
it answers means nothing and what it draws is abstract, but every step is the one that a released checkpoint takes.
"""

import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tqdm
from absl import flags

import janus_jax
from checkpoints_convert import convert, export, read_config
from checkpoints_convert.commands import meter
from checkpoints_convert.readers import open_tensors
from checkpoints_convert.released import manifest
from janus_jax.config import JanusConfig, LlamaConfig, SiglipConfig, VQConfig
from launch import cli, pictures, terminal
from launch.pseudo import make_checkpoint
from launch.scenery import landscape

_OUT = flags.DEFINE_string("out", "runs/demo", "folder for everything it makes; what an earlier demo left is replaced")

CONFIG = JanusConfig(
    name="demo",
    und_encoder=SiglipConfig(image_size=192, width=192, depth=4, num_heads=6, mlp_dim=768),
    gen_encoder=VQConfig(image_size=192, codebook_size=1024, base_channels=32, z_channels=64),
    llm=LlamaConfig(
        vocab_size=640, width=256, depth=6, num_heads=8, num_kv_heads=8, head_dim=32, mlp_dim=704, max_positions=2048
    ),
    gen_head_width=256,
)
"""Janus-Pro in miniature: every part, the released patch and downsampling, 144 places an image."""

CORPUS = (
    "A picture of a lake in the mountains at sunset, with the light of the low sun on the water and on the hills.",
    "The photograph shows a small town near the sea; there are boats, white houses, and a lighthouse on the rocks.",
    "In the foreground there is a path through a green meadow. Behind it stand old trees, and above them clouds drift.",
    "The image is mostly blue and orange. It looks calm: nobody is seen, nothing moves, and the evening is near.",
    "On the left a bird sits on a branch, looking at the moon. On the right, a river runs down into the dark valley.",
    "What is in this picture? Describe the scene in a few words. Which colours are there, and where is the sun?",
)
QUESTION = "What is in this picture?"
PROMPTS = ("A lighthouse at dusk", "A meadow in spring, seen from above", "An old map of an island")
IMAGES_PER_PROMPT = 3
TEMPERATURE = 0.3
"""Lower than a trained model wants: ids that repeat make shapes."""


def main(_: Sequence[str]) -> None:
    """Runs all steps."""
    cli.enable_compilation_cache()
    with pictures.output_folder(Path(_OUT.value)) as out:
        run(out, CONFIG)


def run(out: Path, config: JanusConfig) -> None:
    """All steps with a model of that config, into a folder."""
    began = time.monotonic()
    released, converted, back = (out / name for name in ("Janus-demo", "Janus-demo-jax", "Janus-demo-back"))
    for earlier in (released, converted, back):
        shutil.rmtree(earlier, ignore_errors=True)

    _step(1, f"A checkpoint in the released layout, of pseudo-random numbers: {released}")
    with tqdm.tqdm(total=len(manifest(config)), unit=" tensors", desc="making") as bar:
        make_checkpoint(released, config, CORPUS, bar.update)
    size = sum(file.stat().st_size for file in released.iterdir())
    _say(f"{size / 1e6:.1f} MB: {', '.join(sorted(file.name for file in released.iterdir()))}")

    _step(2, f"Converted for JAX: {converted}")
    _say(str(convert(released, converted, meter=meter)))

    _step(3, f"And back again, to be compared: {back}")
    export(converted, back, "released", meter)
    _say(f"{compare(released, back)} tensors, and every other file, are the same to the last bit.")
    shutil.rmtree(back)

    photo = out / "landscape.png"
    _step(4, f"A question about a picture: {photo}")
    pictures.save_png(landscape(), photo, {"Title": "A landscape out of numbers"})
    model = janus_jax.load(converted, "float32")
    _say(f"{config.num_params:,} parameters loaded. The first word waits for the compiler.")
    _ask(model, photo)

    _step(5, f"Pictures of {len(PROMPTS)} prompts, {IMAGES_PER_PROMPT} each, drawn with guidance: {out / 'drawn.png'}")
    _draw(model, out)

    print(f"\nDone in {time.monotonic() - began:.0f} s. The same with any checkpoint, this one or a released one:\n")
    print(f"   python -m launch.chat --model {converted} --image {photo} --prompt '{QUESTION}'")
    print(f"   python -m launch.generate --model {converted} --prompt '{PROMPTS[0]}' --out {out}/more\n")


def _ask(model: janus_jax.Pretrained, photo: Path) -> None:
    pieces = model.chat_stream([terminal.question(QUESTION, [photo])], None, 14, 1.0, seed=3)
    _say(f"Question: {QUESTION}")
    print("   Answer:   ", end="")
    for piece in terminal.without_leading_space(pieces):
        print(piece.replace("\n", " "), end="", flush=True)
    print(" ...")
    _say("(Words at random: the weights have learnt nothing. What was computed is real, what was said is not.)")


def _draw(model: janus_jax.Pretrained, out: Path) -> None:
    with pictures.drawing_bar(model, len(PROMPTS), IMAGES_PER_PROMPT) as report:
        drawn = model.generate(PROMPTS, IMAGES_PER_PROMPT, temperature=TEMPERATURE, report=report)
    for number, (prompt, images) in enumerate(zip(PROMPTS, drawn, strict=True)):
        _say(f"{number:05}_0.png ... {number:05}_{len(images) - 1}.png: {prompt}")
        for index, image in enumerate(images):
            pictures.save_png(image, out / f"{number:05}_{index}.png", {"prompt": prompt, "image_number": index})
    pictures.save_png(pictures.contact_sheet(drawn), out / "drawn.png", {"prompt": "; ".join(PROMPTS)})
    _say("(Abstract, as untrained weights draw.)")


def compare(first: Path, second: Path) -> int:
    """Holds two checkpoint folders against each other; the number of tensors they hold.

    Raises:
      AssertionError: a tensor or a file of the first is not the same in the second.
    """
    before, after = open_tensors(first), open_tensors(second)
    if before.keys() != after.keys():
        raise AssertionError(f"Tensors that only one has: {sorted(before.keys() ^ after.keys())}")
    for name, array in tqdm.tqdm(before.items(), unit=" tensors", desc="comparing"):
        if array.dtype != after[name].dtype or not np.array_equal(_bits(array), _bits(after[name])):
            raise AssertionError(f"{name} is not what it was")
    for file in first.glob("*.json"):
        if file.name != "config.json" and file.read_bytes() != (second / file.name).read_bytes():
            raise AssertionError(f"{file.name} is not what it was")
    if replace(read_config(first), name="") != replace(read_config(second), name=""):
        raise AssertionError("config.json does not say what it said")
    return len(before)


def _step(number: int, text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{number}. {text}{plain}", flush=True)


def _say(text: str) -> None:
    for line in text.splitlines():
        print(textwrap.fill(line, 112, initial_indent="   ", subsequent_indent="   "), flush=True)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


if __name__ == "__main__":
    cli.run(main)
