"""Checks that precomputed image tokens or latents are those of the model's image tokenizer or VAE.

WORKDIR/tokenizer/image_tokenizer.json    fingerprint of the image tokenizer or VAE, written by the first stage
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from janus_jax.config import JanusConfig
from janus_jax.data.prepare.encode_images import open_image_encoder
from janus_jax.data.prepare.shard_writer import WITH_IMAGE_TOKENS, stored_tokens
from janus_jax.errors import JanusError
from janus_jax.files import read_json_if_exists
from janus_jax.processing import editing_style
from janus_jax.storage import write_json
from janus_jax.training.init_from import OpenedStage, tokenizer_folder
from janus_jax.training.recipe import Recipe

Fingerprint = Mapping[str, Any]
"""See `encode_images.OpenedEncoder.fingerprint`."""

_FILE = "image_tokenizer.json"
_RANDOM: Fingerprint = {"parameters": "random"}


def find_image_tokenizer(start: OpenedStage, workdir: str | Path) -> Fingerprint | None:
    """Returns the fingerprint of the image tokenizer or VAE that a stage trains with.

    No stage changes the image tokenizer. The first stage reads its fingerprint from the initial checkpoint and saves it
    in the workdir.

    Returns:
      The fingerprint; None if it is not known, or if the model has no VAE.
    """
    config = start.recipe.model_config
    part = "gen_encoder" if isinstance(config, JanusConfig) else "vae"
    if part not in config.pretrained_parts:
        return None
    for name in ("model", part):
        if name in start.checkpoints:
            return open_image_encoder(start.checkpoints[name]).fingerprint()
    if not start.is_resumed and start.recipe.current.initialisation.source != "stage":
        return _RANDOM
    file = tokenizer_folder(workdir) / _FILE
    return read_json_if_exists(file) or None


def save_image_tokenizer(fingerprint: Fingerprint | None, workdir: str | Path) -> None:
    """Writes the fingerprint to the workdir, in the first process."""
    if fingerprint is not None and jax.process_index() == 0:
        write_json(tokenizer_folder(workdir) / _FILE, fingerprint)


def check_image_tokens(recipe: Recipe, fingerprint: Fingerprint | None) -> None:
    """Checks the datasets of the current stage, if it reads precomputed image tokens or latents.

    Datasets that `janus-prepare --tokenizer` did not write have no fingerprint and are not checked.

    Args:
      recipe: The recipe.
      fingerprint: Fingerprint of the model's image tokenizer or VAE; None if it is not known.

    Raises:
      JanusError: A dataset was prepared with another image tokenizer or VAE.
    """
    if not recipe.precomputed_image_tokens or fingerprint is None:
        return
    is_janus = isinstance(recipe.model_config, JanusConfig)
    values, part = ("image tokens", "image tokenizer") if is_janus else ("latents", "VAE")
    for name, source in recipe.used_sources.items():
        if source.task not in (*WITH_IMAGE_TOKENS, None):
            continue
        found, style = stored_tokens(Path(source.directory))
        if style is not None and editing_style(style).crops != recipe.current.editing.format.crops:
            raise JanusError(
                f"config.sources.{name}.directory is {source.directory}, which has image tokens for the editing style "
                f"{style}; prepare it with --editing_style {recipe.current.editing.style}, or set "
                f"config.precomputed_image_tokens=False."
            )
        if found is None or found == fingerprint:
            continue
        if fingerprint == _RANDOM:
            reason = f"the {part} of the model is initialized randomly"
        elif found.get("image_size") != fingerprint.get("image_size"):
            reason = f"of {found.get('image_size')} pixels, and the model has {fingerprint.get('image_size')}"
        else:
            reason = f"fingerprint {found.get('parameters')}, and the model has {fingerprint.get('parameters')}"
        raise JanusError(
            f"config.sources.{name}.directory is {source.directory}, which has {values} of another {part} ({reason}); "
            f"prepare it with the model as --tokenizer, or set config.precomputed_image_tokens=False."
        )
