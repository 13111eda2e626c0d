"""Opens a checkpoint in any layout.

`open_checkpoint` checks the folder and reads its config; parameters are read later, one array at a time.
"""

import functools
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import ml_dtypes
import numpy as np

from checkpoints_convert import hub, released, released_flow, transformers_janus
from checkpoints_convert.adapter import Adapter, is_adapter, open_adapter
from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.layout import Layout, MappedParameter, Shapes
from checkpoints_convert.parameters import PARTS, Config, Parameter, layer_by_layer, model_parameters
from checkpoints_convert.parts import PART_LAYOUTS
from checkpoints_convert.quantized import read_quantization
from checkpoints_convert.tensor_files import find_weights, open_tensors
from janus_jax.config import (
    PRESETS,
    ConversationStyle,
    JanusConfig,
    JanusFlowConfig,
    ModelConfig,
    Quantization,
    StoredQuantization,
    VAEConfig,
    config_from_dict,
)
from janus_jax.errors import JanusError
from janus_jax.files import prefix_errors, read_json, read_json_if_exists, read_text, reading

if TYPE_CHECKING:
    from checkpoints_convert.orbax_params import OrbaxParams

StrPath = str | os.PathLike[str]

FORMAT = "janus_jax"
ORBAX = "orbax"
PARAMS_FOLDER = "params"
UNUSED_STEM = "unused"
REMEDY = "convert it again"

KINDS: dict[str, type[Config]] = {"janus": JanusConfig, "janusflow": JanusFlowConfig, **PARTS}
"""Config class by the value of `part` in the config.json of an Orbax folder."""

_WRAPPERS = ("module.", "model.", "_orig_mod.", "base_model.model.")
"""Prefixes of DistributedDataParallel, of training frameworks, of torch.compile, and of peft."""
_MARKERS = (
    "language_model.model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    *(layout.marker for layout in PART_LAYOUTS),
)
"""Names of tensors, of which a file without wrappers has one."""

_DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint(ABC):
    """An opened checkpoint. Config and tensors are checked; no values have been read.

    Attributes:
      path: The folder, or the file if a part consists of a single file.
      layout: Name of the layout.
      config: Config of the model, or of the only part that the checkpoint holds.
      metadata: Facts about the original checkpoint, all optional: its `layout`, the `name` of its folder, its
        `image_token_id`, `tied` (whether the output head is the embedding table), and `dtypes`, the dtype by name of
        each tensor that has a narrower dtype than its parameter.
      adapter: LoRA adapter that `read` and `params` merge into the parameters; None for none.
      quantization: Format of the weights of 8 bits, or "none".
    """

    path: Path
    layout: str
    config: Config
    metadata: Mapping[str, Any]
    adapter: Adapter | None = field(default=None, kw_only=True)
    quantization: StoredQuantization = field(default="none", kw_only=True)

    @property
    def folder(self) -> Path:
        """The folder with config.json, tokenizer and processor files."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def model_config(self) -> ModelConfig:
        """The config of a whole model.

        Raises:
          JanusError: The checkpoint holds only one part of a model.
        """
        if not isinstance(self.config, ModelConfig):
            raise JanusError(
                f"{self.path} holds one part of a model ({type(self.config).__name__}); give the folder of a whole "
                f"model: Janus, Janus-Pro or JanusFlow."
            )
        return self.config

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters that the checkpoint holds."""
        return model_parameters(self.config, self.quantization)

    def check_unquantized(self, purpose: str) -> None:
        """Checks that the weights have not been quantized.

        Raises:
          JanusError: They have 8 bits. The message names the purpose for which they do not suffice.
        """
        if self.quantization != "none":
            raise JanusError(
                f"{self.path} has weights of 8 bits ({self.quantization}), which are for sampling only; {purpose} "
                f"needs the checkpoint that they were made from."
            )

    def sampling_quantization(self, requested: Quantization) -> Quantization:
        """Returns the quantization of a model that samples: the requested one, or that of the checkpoint if "none".

        Raises:
          JanusError: The checkpoint stores other weights of 8 bits than the request needs.
        """
        if self.quantization == "none" or requested.removesuffix("_dynamic") == self.quantization:
            return requested
        if requested != "none":
            raise JanusError(
                f"{self.path} has weights of 8 bits in the format {self.quantization}, and quantization is "
                f"{requested!r}; leave it out, or give the checkpoint that they were made from."
            )
        return self.quantization

    def params(
        self, dtype: np.dtype | str | None = None, parts: Collection[str] | None = None
    ) -> Iterator[tuple[tuple[str, ...], int | None, np.ndarray]]:
        """Yields the parameters, one array at a time.

        Stacked parameters are read layer by layer: first all parameters of one block, then those of the next. Arrays
        that need neither a cast nor a transposition are views of the memory-mapped files.

        Args:
          dtype: Dtype of the arrays. None: for each parameter, the dtype that `dtypes` returns. Quantized weights and
            their scales keep their dtypes.
          parts: First keys of the parameters to read; None for all.

        Yields:
          (keys from the root of the tree, layer, values). The layer is None if the parameter is not stacked.
        """
        wanted = numpy_dtype(dtype) if isinstance(dtype, str) else dtype
        dtypes = self.dtypes() if wanted is None else {}
        for parameter, layer in layer_by_layer(self.parameters):
            if parts is None or parameter.keys[0] in parts:
                # Not assigned to a variable, which would hold this array while the next one is read.
                target = parameter.dtype or dtypes.get(parameter.path, wanted)
                yield parameter.keys, layer, self.read(parameter, layer).astype(target, copy=False)

    @abstractmethod
    def dtypes(self) -> dict[str, np.dtype]:
        """Returns the narrowest dtype that holds all layers of a parameter exactly, by parameter path."""

    def read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Returns one layer, or a parameter that is not stacked (layer None).

        The dtype is that of the file, or float32 for a matrix that the adapter changes.
        """
        array = self._read(parameter, layer)
        return array if self.adapter is None else self.adapter.merge(parameter.path, layer, array)

    @abstractmethod
    def _read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Returns what `read` returns without the adapter."""

    @abstractmethod
    def unused(self) -> Mapping[str, np.ndarray]:
        """Returns the tensors of the original checkpoint that janus_jax does not use, by their original names."""


@dataclass(frozen=True)
class TorchCheckpoint(Checkpoint):
    """A checkpoint in one of PyTorch's layouts.

    Attributes:
      mapped: The tensors of every parameter.
      tensors: All tensors by name.
      unused_names: Names of the tensors that janus_jax does not use.
    """

    mapped: list[MappedParameter]
    tensors: Mapping[str, np.ndarray]
    unused_names: Collection[str]

    @functools.cached_property
    def _by_parameter(self) -> dict[tuple[str, int | None], MappedParameter]:
        return {(one.parameter.path, one.layer): one for one in self.mapped}

    def dtypes(self) -> dict[str, np.dtype]:
        return _common_dtypes(self.mapped, self.tensors)

    def _read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        return self._by_parameter[parameter.path, layer].read(self.tensors)

    def unused(self) -> Mapping[str, np.ndarray]:
        return {name: self.tensors[name] for name in self.unused_names}


@dataclass(frozen=True)
class OrbaxCheckpoint(Checkpoint):
    """A folder that `convert` wrote in the Orbax layout."""

    @functools.cached_property
    def _stored(self) -> "OrbaxParams":
        from checkpoints_convert.orbax_params import OrbaxParams  # Orbax takes seconds to import.

        return OrbaxParams(self.path / PARAMS_FOLDER, self.parameters)

    def dtypes(self) -> dict[str, np.dtype]:
        return {parameter.path: self._stored.dtype(parameter) for parameter in self.parameters}

    def _read(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        return self._stored.read(parameter, layer)

    def unused(self) -> Mapping[str, np.ndarray]:
        file = self.path / f"{UNUSED_STEM}.safetensors"
        return open_tensors(file) if file.is_file() else {}


def numpy_dtype(name: str) -> np.dtype:
    """Returns the numpy dtype with this name.

    Raises:
      JanusError: The name is not that of a dtype for parameters.
    """
    if name not in _DTYPES:
        raise JanusError(f"dtype is {name!r}; it must be one of {', '.join(_DTYPES)}.")
    return np.dtype(_DTYPES[name])


def is_converted(path: Path) -> bool:
    """Returns whether the path is a folder that `convert` wrote in the Orbax layout."""
    file = path / "config.json"
    with reading(path):
        return file.is_file() and read_json(file).get("format") == FORMAT


def open_checkpoint(
    path: StrPath,
    conversation: ConversationStyle | None = None,
    vae: StrPath | None = None,
    *,
    adapter: StrPath | None = None,
) -> Checkpoint:
    """Opens a checkpoint in any layout.

    The path is a converted folder, a released model, a Janus model saved by transformers, or a pretrained part that
    training starts from. Every mismatch between config and tensors is reported before any value is read.

    Args:
      path: The folder, the file of a part that consists of a single file, or a hub id. Of a model on the hub or on a
        bucket, a local copy is opened (`hub.local_path`). The folder of a LoRA adapter stands for its base model with
        this adapter.
      conversation: Role strings that the model was trained with. None: they are detected. The configs of Janus-1.3B
        and Janus-Pro-1B differ only in their role strings.
      vae: Folder or hub id of JanusFlow's VAE in diffusers' layout. None: the folder `vae/` of the checkpoint, if it
        exists; for a checkpoint from the hub that has none, the VAE that its config names.
      adapter: Folder or hub id of a LoRA adapter in peft's layout, which is merged into the parameters.

    Raises:
      JanusError: The path does not exist, the hub does not provide the model, a file is corrupt or missing, the layout
        is unknown, the config describes a network that janus_jax does not have, or tensors are missing, surplus or
        misshapen.
    """
    if conversation is not None and conversation not in get_args(ConversationStyle):
        raise JanusError(f"--conversation is {conversation!r}; it must be one of {get_args(ConversationStyle)}.")
    path = hub.local_path(os.fspath(path))
    opened = None if adapter is None else open_adapter(hub.local_path(os.fspath(adapter)))
    if is_adapter(path):
        if adapter is not None:
            raise JanusError(f"{path} is an adapter, and {adapter} another one; give a base model and one adapter.")
        opened = open_adapter(path)
        if not opened.base:
            raise JanusError(f"{path} names no base model; give that model, and the adapter with --adapter {path}.")
        path = hub.local_path(opened.base)
    checkpoint = _open(path, conversation, vae)
    if opened is not None:
        checkpoint.check_unquantized("merging an adapter")
        opened.check(checkpoint.parameters)
    return replace(checkpoint, adapter=opened)


def _open(path: Path, conversation: ConversationStyle | None, vae: StrPath | None) -> Checkpoint:
    if not is_converted(path):
        return _open_torch(path, conversation, vae)
    if vae is not None:
        raise JanusError(f"{path} is converted and holds its own VAE; leave --vae out, or {REMEDY}.")
    return _open_orbax(path)


def _open_orbax(path: Path) -> OrbaxCheckpoint:
    file = path / "config.json"
    content = read_json(file, REMEDY)
    if not (path / PARAMS_FOLDER).is_dir():
        raise JanusError(f"{path} is a converted folder without its {PARAMS_FOLDER}/; {REMEDY}.")
    with reading(file, REMEDY), prefix_errors(file):
        part = content.get("part", "janus")
        if part not in KINDS:
            raise JanusError(f"part is {part!r}; it must be one of {', '.join(KINDS)}.")
        config = config_from_dict(KINDS[part], content["model"])
    return OrbaxCheckpoint(path, ORBAX, config, JsonObject(content, str(file)).object("source").values)


def _open_torch(path: Path, conversation: ConversationStyle | None, vae: StrPath | None) -> TorchCheckpoint:
    with reading(path):
        weights = find_weights(path)
    file = weights.parent / "config.json"
    json = JsonObject(read_json_if_exists(file), str(file))
    tensors = _without_wrappers(open_tensors(weights))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config_source = file if json.values else path
    with reading(config_source), prefix_errors(config_source):
        quantization = read_quantization(json)
        layout = _detect_layout(path, json, shapes)
        config: Config = layout.read_config(json, shapes)
    tensors = {layout.current_name(name): tensor for name, tensor in tensors.items()}
    if isinstance(config, JanusFlowConfig):
        config, vae_tensors = _add_vae(config, weights.parent, vae or _vae_from_hub(json, weights.parent))
        tensors |= vae_tensors
    elif vae is not None:
        raise JanusError(f"{path} is not a JanusFlow model, and only JanusFlow has a VAE; leave --vae out.")
    if isinstance(config, ModelConfig):
        config = replace(config, conversation=conversation or _detect_conversation(path, json, config))
        config = replace(config, name=_model_name(path, config))
    is_tied = _is_tied(json) and bool(layout.tied.keys() - tensors.keys())
    if is_tied:
        tensors = layout.with_tied(tensors)
    unused = [name for name in tensors if layout.is_unused(name)]
    with reading(config_source), prefix_errors(config_source):
        parameters = model_parameters(config, quantization)
    mapped = layout.map(parameters)
    layout.check(mapped, {name: tensor for name, tensor in tensors.items() if name not in unused}, str(path))
    metadata: dict[str, Any] = {
        "layout": layout.name,
        "name": hub.folder_name(path),
        "dtypes": _narrower_dtypes(mapped, tensors),
    }
    if is_tied:
        metadata["tied"] = True
    if image_token_id := json.get("image_token_id", 0):
        metadata["image_token_id"] = image_token_id
    return TorchCheckpoint(path, layout.name, config, metadata, mapped, tensors, unused, quantization=quantization)


def _without_wrappers(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes prefixes that wrappers of PyTorch put before every name, if the rest are the names of a known layout."""
    found = tensors
    while found and not any(marker in found for marker in _MARKERS):
        prefix = next((one for one in _WRAPPERS if all(name.startswith(one) for name in found)), None)
        if prefix is None:
            return tensors
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _is_tied(json: JsonObject) -> bool:
    """Returns whether config.json says that the output head is the embedding table."""
    # In transformers' Janus, embeddings are tied unless config.json states otherwise. Its text_config has no effect.
    if json.values.get("model_type") == "janus":
        return json.get("tie_word_embeddings", True)
    return json.get("tie_word_embeddings", json.object("language_config").get("tie_word_embeddings", False))


def _common_dtypes(mapped: Collection[MappedParameter], tensors: Mapping[str, np.ndarray]) -> dict[str, np.dtype]:
    found: dict[str, np.dtype] = {}
    for one in mapped:
        for tensor in one.tensors:
            dtype = tensors[tensor.name].dtype
            found[one.parameter.path] = _common_dtype(found.get(one.parameter.path, dtype), dtype)
    return found


def _common_dtype(left: np.dtype, right: np.dtype) -> np.dtype:
    # numpy defines no common dtype of float16 and bfloat16.
    return left if left == right else np.dtype(np.float64 if 8 in (left.itemsize, right.itemsize) else np.float32)


def _narrower_dtypes(mapped: Collection[MappedParameter], tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    common = _common_dtypes(mapped, tensors)
    return {
        tensor.name: tensors[tensor.name].dtype.name
        for one in mapped
        for tensor in one.tensors
        if tensors[tensor.name].dtype != common[one.parameter.path]
    }


def _detect_layout(path: Path, json: JsonObject, shapes: Shapes) -> Layout:
    kind = json.values.get("model_type")
    if kind == "multi_modality":
        return released_flow.LAYOUT if "vision_gen_enc_config" in json else released.LAYOUT
    if kind == "janus":
        return transformers_janus.LAYOUT
    for layout in PART_LAYOUTS:
        if layout.marker in shapes:
            return layout
    if any(name.startswith(("language_model.", "gen_vision_model.", "model.language_model.")) for name in shapes):
        found = f"has model_type {kind!r}" if json.values else "does not exist"
        raise JanusError(
            f"{path} holds tensors of a Janus model, but {json.where} {found}; model_type must be 'multi_modality' "
            f"(released layout) or 'janus' (transformers)."
        )
    known = dict.fromkeys(["released", "transformers", *(layout.name for layout in PART_LAYOUTS)])
    raise JanusError(
        f"{path} has no known layout (its first tensor is {next(iter(shapes), 'absent')}); known layouts are "
        f"{', '.join(known)}."
    )


def _vae_from_hub(json: JsonObject, folder: Path) -> Path | None:
    """Fetches the VAE of a checkpoint from the hub that has none. Returns None if there is no need, or it fails."""
    if not hub.is_cached(folder) or (folder / released_flow.VAE_FOLDER).is_dir():
        return None
    try:
        return hub.local_path(json.get("vae_id", released_flow.VAE_ID))
    except JanusError as error:
        # A model without its VAE still answers questions.
        _log.warning("The model has no VAE and cannot generate images: %s", error)
        return None


def _add_vae(
    config: JanusFlowConfig, folder: Path, vae: StrPath | None
) -> tuple[JanusFlowConfig, Mapping[str, np.ndarray]]:
    """Returns the config with its VAE, and the VAE's tensors. Without a VAE, the config is unchanged."""
    path = hub.local_path(os.fspath(vae)) if vae is not None else folder / released_flow.VAE_FOLDER
    if vae is None and not path.is_dir():
        return config, {}
    opened = open_checkpoint(path)
    if not isinstance(opened.config, VAEConfig) or not isinstance(opened, TorchCheckpoint):
        raise JanusError(f"{path} is not a VAE in diffusers' layout; give the folder of SDXL's VAE (sdxl-vae).")
    tensors = {released_flow.VAE_PREFIX + name: tensor for name, tensor in opened.tensors.items()}
    with prefix_errors(path):
        return replace(config, vae=opened.config), tensors


def _detect_conversation(path: Path, json: JsonObject, config: ModelConfig) -> ConversationStyle:
    stated = json.values.get("conversation")
    for style in get_args(ConversationStyle):
        if stated == style:
            return style
    if isinstance(config, JanusFlowConfig):
        return config.conversation
    folder = path if path.is_dir() else path.parent
    template = _chat_template(folder)
    if "<|User|>" in template:
        return "janus_pro"
    # The tokenizer of a released model may have the chat template of its base model, which also uses "User".
    if json.values.get("model_type") == "janus" and re.search(r"\bUser\b", template):
        return "janus"
    # The innermost folder comes first, because the name of an outer folder may describe something else.
    names = (hub.folder_name(folder), *folder.resolve().parts[-2:-4:-1])
    for name in (*names, str(json.values.get("_name_or_path", ""))):
        if re.search(r"(?<![a-z])pro(?![a-z])", name, re.IGNORECASE):
            return "janus_pro"
        if re.search(r"janus[-_]?1[._]?3b", name, re.IGNORECASE):
            return "janus"
    if config.llm.width != PRESETS["janus_pro_7b"].llm.width:
        _log.warning(
            "%s does not state whether the model is Janus or Janus-Pro, which use different role strings. The strings "
            "of Janus-Pro are used. Pass --conversation janus if the model is Janus-1.3B.",
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


def _model_name(path: Path, config: ModelConfig) -> str:
    for name, known in PRESETS.items():
        if _without_vae(replace(config, name=name)) == _without_vae(known):
            return name
    return hub.folder_name(path if path.is_dir() else path.parent)


def _without_vae(config: ModelConfig) -> ModelConfig:
    """Returns the config without its VAE, which does not affect the name of the model."""
    return replace(config, vae=None) if isinstance(config, JanusFlowConfig) else config
