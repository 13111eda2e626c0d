"""Rewards of CLIP models: `clip_score` (arXiv 2104.08718) and `hps`, Human Preference Score v2.1 (arXiv 2306.09341)."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from janus_jax.evaluation.metrics.clip_score import CLIPScorer, read_tokenizer
from janus_jax.rewards.base import register_reward


@register_reward("clip_score")
@dataclass(frozen=True)
class CLIPReward:
    """Cosine of CLIP's embeddings of an image and its prompt.

    Attributes:
      folder: Folder of the model in transformers' layout. With `weights`, only its `tokenizer.json` is read.
      weights: Weight file of open_clip (`CLIPScorer`). "": the model in `folder`.

    Raises:
      JanusError: A file is missing or malformed.
    """

    folder: str
    weights: str = ""

    def __post_init__(self) -> None:
        # Files are checked before the run. The first call loads the model.
        open_tensors(Path(self.weights) if self.weights else Path(self.folder) / "model.safetensors")
        read_tokenizer(Path(self.folder) / "tokenizer.json")

    def __call__(
        self, prompts: Sequence[str], images: UInt8[np.ndarray, "B H W 3"], metadata: Sequence[Mapping[str, Any]]
    ) -> Float[np.ndarray, " B"]:
        """See `Reward`."""
        return _scorer(self.folder, self.weights).cosines(images, prompts)


@register_reward("hps")
@dataclass(frozen=True)
class HPSReward(CLIPReward):
    """Human Preference Score v2.1: the cosine of the embeddings of a ViT-H/14 that is trained on preferences.

    Attributes:
      folder: Folder with CLIP's `tokenizer.json`, such as that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
      weights: `HPS_v2.1_compressed.pt`.
    """

    def __post_init__(self) -> None:
        if not self.weights:
            raise JanusError("The reward hps needs the option weights, the file HPS_v2.1_compressed.pt.")
        super().__post_init__()


@functools.cache
def _scorer(folder: str, weights: str) -> CLIPScorer:
    return CLIPScorer(Path(folder), Path(weights) if weights else None)
