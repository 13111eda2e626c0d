"""The flag `--background` of commands that read images."""

from typing import get_args

from absl import flags

from janus_jax.processing import Background


def define_background() -> "flags.FlagHolder[str]":
    """Defines `--background` and returns its holder."""
    return flags.DEFINE_enum(
        "background",
        "none",
        get_args(Background),
        "background of transparent pixels; none: alpha is dropped, and transparent pixels show their hidden colors",
    )
