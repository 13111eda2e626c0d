"""A checkpoint folder or file, whatever its layout, as a config and the leaves of our tree."""

import functools
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from checkpoints_convert import released, released_flow, transformers_janus
from checkpoints_convert.jsons import Section
from checkpoints_convert.layout import Layout, Unit
from checkpoints_convert.parts import PARTS
from checkpoints_convert.readers import find_weights, open_tensors
from checkpoints_convert.tree import Leaf, leaves
from janus_jax.config import (
    PRESETS,
    ConversationStyle,
    JanusFlowConfig,
    LlamaConfig,
    ModelConfig,
    SiglipConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.errors import JanusError
from janus_jax.files import naming, read_json, read_json_if_exists, read_text, reading

StrPath = str | os.PathLike[str]
Config = ModelConfig | SiglipConfig | VQConfig | VAEConfig | LlamaConfig

_WHOLE_MODELS = {"multi_modality": released, "janus": transformers_janus}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checkpoint in PyTorch's world, opened and checked, not read.

    Attributes:
      path: where it lies.
      layout: its table of names.
      config: of the whole model, or of the one part that the checkpoint holds.
      tensors: the tensors in use, by their names in the file.
      unused: the tensors that no network here uses, by their names in the file.
      image_token_id: the image placeholder's id, where the config states it.
    """

    path: Path
    layout: Layout
    config: Config
    tensors: Mapping[str, np.ndarray]
    unused: Mapping[str, np.ndarray]
    image_token_id: int | None = None

    @functools.cached_property
    def units(self) -> list[Unit]:
        """Every leaf, layer by layer, with the tensors it is made of."""
        return self.layout.units(leaves(self.config))

    @functools.cached_property
    def leaves(self) -> list[Leaf]:
        """Every leaf of the tree that this checkpoint fills."""
        return leaves(self.config)

    def dtypes(self) -> dict[str, np.dtype]:
        """By leaf path, the narrowest dtype that holds every tensor of the leaf as it is."""
        found: dict[str, np.dtype] = {}
        for unit in self.units:
            for piece in unit.pieces:
                dtype = self.tensors[piece.name].dtype
                found[unit.leaf.path] = _joint(found.get(unit.leaf.path, dtype), dtype)
        return found

    def params(
        self, dtype: np.dtype | str | None = None, parts: Collection[str] | None = None
    ) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
        """Every leaf as (keys, layer, numbers), in the tree's order, a stacked leaf layer by layer.

        Args:
          dtype: of the arrays; the leaf's own dtype (`dtypes`) where None. Where nothing has to be cast or
            transposed, the array is a view of the file.
          parts: first keys of the leaves that are wanted; the others are not read. None for all.
        """
        own = self.dtypes() if dtype is None else {}
        for unit in self.units:
            if parts is not None and unit.leaf.keys[0] not in parts:
                continue
            array = unit.read(self.tensors)
            yield unit.leaf.keys, unit.layer, array.astype(own.get(unit.leaf.path, dtype), copy=False)


def _joint(left: np.dtype, right: np.dtype) -> np.dtype:
    # numpy itself knows none for float16 and bfloat16.
    return left if left == right else np.dtype(np.float64 if 8 in (left.itemsize, right.itemsize) else np.float32)


def detect_layout(path: StrPath) -> str:
    """Name of the layout: "converted", "released", "transformers", or that of a part.

    Raises:
      JanusError: there is nothing there, or nothing that is known.
    """
    path = Path(path)
    if is_converted(path):
        return "converted"
    return open_source(path, conversation="janus_pro").layout.name


def is_converted(path: Path) -> bool:
    """Whether this is a folder that `convert` wrote."""
    file = path / "config.json"
    with reading(path):
        return file.is_file() and read_json(file).get("format") == "janus_jax"


def open_source(path: StrPath, conversation: ConversationStyle | None = None, vae: StrPath | None = None) -> Source:
    """Opens a released Janus or JanusFlow, transformers' Janus, or one of the parts that training starts from.

    Every mismatch between config and tensors is reported here, before any number is read.

    Args:
      path: the checkpoint's folder or, for a part that is a single file, that file.
      conversation: the role strings that the model was trained with; None to tell from the folder. Janus-1.3B and
        Janus-Pro-1B differ in nothing else.
      vae: folder of the VAE of a JanusFlow, in diffusers' layout; by default `vae/` in the checkpoint's, if that is
        there.

    Raises:
      JanusError: nothing is there, a file is corrupt or missing, the layout is unknown, the config describes
        another network, or tensors are missing, surplus or misshapen.
    """
    path = Path(path)
    if is_converted(path):
        raise JanusError(f"{path} is converted already; give the checkpoint that it came from.")
    if conversation is not None and conversation not in get_args(ConversationStyle):
        raise JanusError(f"--conversation is {conversation!r}; it must be one of {get_args(ConversationStyle)}.")
    with reading(path):
        weights = find_weights(path)
    file = weights.parent / "config.json"
    section = Section(read_json_if_exists(file), str(file))
    tensors = open_tensors(weights)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    described_by = file if section.values else path
    with reading(described_by), naming(described_by):
        layout, config = _recognise(path, section, shapes)
    tensors = {layout.current_name(name): tensor for name, tensor in tensors.items()}
    if isinstance(config, JanusFlowConfig):
        config, latents = _with_vae(config, weights.parent, vae)
        tensors |= latents
    elif vae is not None:
        raise JanusError(f"{path} is no JanusFlow, and only that has a VAE; leave --vae out.")
    if isinstance(config, ModelConfig):
        style = conversation or _conversation(path, section, config)
        config = replace(config, conversation=style)
        config = replace(config, name=_name(path, config))
    kept = {name: tensor for name, tensor in tensors.items() if not layout.is_dropped(name)}
    unused = {name: tensor for name, tensor in tensors.items() if layout.is_dropped(name)}
    # transformers' Janus ties where its config says nothing.
    if section.get("tie_word_embeddings", section.values.get("model_type") == "janus"):
        kept = layout.with_tied(kept)
    source = Source(path, layout, config, kept, unused, section.get("image_token_id", 0) or None)
    layout.check(source.units, kept, str(path))
    return source


def _recognise(path: Path, file: Section, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Layout, Config]:
    kind = file.values.get("model_type")
    if kind == "multi_modality" and "vision_gen_enc_config" in file:
        return released_flow.LAYOUT, released_flow.read_config(file, shapes)
    if kind in _WHOLE_MODELS:
        module = _WHOLE_MODELS[kind]
        return module.LAYOUT, module.read_config(file, shapes)
    for name, layout, read in PARTS:
        if name in shapes:
            return layout, read(path, shapes)
    if any(name.startswith(("language_model.", "gen_vision_model.", "model.language_model.")) for name in shapes):
        what = f"says model_type {kind!r}" if file.values else "does not exist"
        raise JanusError(
            f"{path} holds tensors of a Janus, but {file.where} {what}; it should say 'multi_modality' (the released "
            f"layout) or 'janus' (transformers')."
        )
    raise JanusError(
        f"{path} is of no known layout (its first tensor is {next(iter(shapes), 'absent')}); known are "
        f"{', '.join(dict.fromkeys(['released', 'transformers', *(part.name for _, part, _ in PARTS)]))}."
    )


def _with_vae(
    config: JanusFlowConfig, folder: Path, vae: StrPath | None
) -> tuple[JanusFlowConfig, Mapping[str, np.ndarray]]:
    """The config with the VAE that was named or lies within, and its tensors; neither where there is none."""
    path = Path(vae) if vae is not None else folder / released_flow.VAE_FOLDER
    if vae is None and not path.is_dir():
        return config, {}
    opened = open_source(path)
    if not isinstance(opened.config, VAEConfig):
        raise JanusError(f"{path} is no VAE in diffusers' layout; give the folder of SDXL's (sdxl-vae).")
    tensors = {released_flow.VAE_PREFIX + name: tensor for name, tensor in opened.tensors.items()}
    with naming(path):
        return replace(config, vae=opened.config), tensors


def _conversation(path: Path, file: Section, config: ModelConfig) -> ConversationStyle:
    stated = file.values.get("conversation")
    for style in get_args(ConversationStyle):
        if stated == style:
            return style
    if isinstance(config, JanusFlowConfig):
        return config.conversation
    folder = path if path.is_dir() else path.parent
    template = _chat_template(folder)
    if "<|User|>" in template:
        return "janus_pro"
    # A released tokenizer may carry the template of the language model it was, so there "User" tells nothing.
    if file.values.get("model_type") == "janus" and re.search(r"\bUser\b", template):
        return "janus"
    # The innermost name that tells anything: a parent's may stand for something else.
    for name in (*folder.resolve().parts[:-4:-1], str(file.values.get("_name_or_path", ""))):
        if re.search(r"(?<![a-z])pro(?![a-z])", name, re.IGNORECASE):
            return "janus_pro"
        if re.search(r"janus[-_]?1[._]?3b", name, re.IGNORECASE):
            return "janus"
    if config.llm.width != PRESETS["janus_pro_7b"].llm.width:
        _log.warning(
            "%s does not tell whether it is a Janus or a Janus-Pro, which differ in their role strings; taking "
            "Janus-Pro's. Pass --conversation janus if it is Janus-1.3B.",
            path,
        )
    return "janus_pro"


def _chat_template(folder: Path) -> str:
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return read_text(plain)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if template := read_json_if_exists(folder / name).get("chat_template"):
            return str(template)
    return ""


def _name(path: Path, config: ModelConfig) -> str:
    for name, known in PRESETS.items():
        if _without_vae(replace(config, name=name)) == _without_vae(known):
            return name
    return (path if path.is_dir() else path.parent).resolve().name


def _without_vae(config: ModelConfig) -> ModelConfig:
    """A JanusFlow is the same model whichever VAE stands beside it, or none yet."""
    return replace(config, vae=None) if isinstance(config, JanusFlowConfig) else config
