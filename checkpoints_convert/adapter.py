"""LoRA adapters in peft's layout: a folder with adapter_config.json and adapter_model.safetensors.

An adapter adds s B A to a matrix of the LLM. s is alpha / rank (arXiv 2106.09685), with rslora alpha / sqrt(rank)
(arXiv 2312.03732). Files hold A as (rank, inputs) and B as (outputs, rank).
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert.json_object import JsonObject
from checkpoints_convert.parameters import Parameter
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from checkpoints_convert.tensor_files import open_tensors
from janus_jax.errors import JanusError
from janus_jax.files import read_json, reading
from janus_jax.storage import write_json

CONFIG = "adapter_config.json"
_STEM = "adapter_model"
_WEIGHTS = (f"{_STEM}.safetensors", f"{_STEM}.bin")

_ATTENTION, _MLP = "llm/layers/attn", "llm/layers/mlp"
_MATRICES = {
    "self_attn.q_proj": (f"{_ATTENTION}/q/weight", 1),
    "self_attn.k_proj": (f"{_ATTENTION}/k/weight", 1),
    "self_attn.v_proj": (f"{_ATTENTION}/v/weight", 1),
    "self_attn.o_proj": (f"{_ATTENTION}/out/weight", 2),
    "mlp.gate_proj": (f"{_MLP}/gate/weight", 1),
    "mlp.up_proj": (f"{_MLP}/up/weight", 1),
    "mlp.down_proj": (f"{_MLP}/down/weight", 1),
}
"""Path of the parameter and number of its input axes, which come last, by the name of the module in a LLaMA block."""

LLM_PREFIXES = {"transformers": "model.language_model.", "released": "language_model.model."}
"""Prefix of the LLM's modules by layout of the base model."""

_TENSOR = re.compile(
    r"(?:base_model\.model\.|module\.|_orig_mod\.)*"
    r"(?P<module>(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)?"
    rf"layers\.(?P<layer>\d+)\.(?P<matrix>{'|'.join(map(re.escape, _MATRICES))}))"
    r"\.lora_(?P<factor>[AB])(?:\.default)?\.weight"
)
_UNCHANGED = (
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config"),
    *("exclude_modules", "inference_mode", "init_lora_weights", "loftq_config", "lora_alpha", "lora_dropout"),
    *("lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
    *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
)
"""Fields that are read below, or that have no effect on a trained adapter. All others must be off."""
_OFF: tuple[Any, ...] = (None, False, "none", [], {})
_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the matrices of the base model as they are."""


class LowRank(NamedTuple):
    """The change s B A of one matrix.

    Attributes:
      a: A, float32, (rank, inputs).
      b: B, float32, (outputs, rank).
      scale: s.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An opened LoRA adapter.

    Attributes:
      path: Its folder.
      base: Folder or hub id of the base model; "" if the config names none.
      matrices: The changes by path of the parameter and layer.
    """

    path: Path
    base: str
    matrices: Mapping[tuple[str, int | None], LowRank]

    def check(self, parameters: Iterable[Parameter]) -> None:
        """Checks that the adapter fits the parameters of a base model.

        Raises:
          JanusError: A layer does not exist, or a matrix has another shape.
        """
        found = {(one.path, layer): one.shape for one in parameters for layer in one.layer_indices}
        for (path, layer), change in self.matrices.items():
            shape = found.get((path, layer))
            if shape is None:
                raise JanusError(f"{self.path} adapts layer {layer}, which the base model does not have.")
            first = len(shape) - _input_axes(path)
            expected = math.prod(shape[:first]), math.prod(shape[first:])
            if (change.b.shape[0], change.a.shape[1]) != expected:
                raise JanusError(
                    f"{self.path} adapts matrices of shape {[change.b.shape[0], change.a.shape[1]]}, but {path} of the "
                    f"base model has {list(expected)}; give the model that the adapter was trained on."
                )

    def merge(self, path: str, layer: int | None, weight: np.ndarray) -> np.ndarray:
        """Returns W + s B A in float32; the weight itself if the adapter does not change it."""
        change = self.matrices.get((path, layer))
        if change is None:
            return weight
        return weight.astype(np.float32) + (change.scale * (change.b @ change.a)).reshape(weight.shape)

    def stacked(self, parameters: Iterable[Parameter]) -> dict[tuple[str, ...], np.ndarray]:
        """Returns the adapter as parameters of a model with stacked blocks, by path.

        They are `lora_a` (layers, rank, *inputs), `lora_b` (layers, *outputs, rank) and `lora_scale` (layers). The rank
        is the largest of the layers; smaller ones are padded with zeros, which do not change the result.
        """
        from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE  # Imports jax, which takes a second.

        arrays: dict[tuple[str, ...], np.ndarray] = {}
        adapted = {path for path, _ in self.matrices}
        for one in (parameter for parameter in parameters if parameter.path in adapted and parameter.layers):
            first = len(one.shape) - _input_axes(one.path)
            outputs, inputs = one.shape[:first], one.shape[first:]
            changes = {layer: self.matrices.get((one.path, layer)) for layer in one.layer_indices}
            rank = max(len(change.a) for change in changes.values() if change)
            a = np.zeros((len(changes), rank, math.prod(inputs)), np.float32)
            b = np.zeros((len(changes), math.prod(outputs), rank), np.float32)
            scale = np.zeros(len(changes), np.float32)
            for layer, change in enumerate(changes.values()):
                if change:
                    a[layer, : len(change.a)] = change.a
                    b[layer, :, : len(change.a)] = change.b
                    scale[layer] = change.scale
            module = one.keys[:-1]
            arrays[*module, LORA_A] = a.reshape(len(a), rank, *inputs)
            arrays[*module, LORA_B] = b.reshape(len(b), *outputs, rank)
            arrays[*module, LORA_SCALE] = scale
        return arrays


def is_adapter(path: Path) -> bool:
    """Returns whether a path is the folder of an adapter without a base model."""
    with reading(path):
        return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def open_adapter(folder: Path) -> Adapter:
    """Opens an adapter in peft's layout.

    Raises:
      JanusError: A file is missing or damaged, or the adapter is of a kind that janus_jax does not support. The message
        names the field or the tensor.
    """
    file = folder / CONFIG
    json = JsonObject(read_json(file), str(file))
    _check_supported(json)
    with reading(folder):
        weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise JanusError(f"{folder} holds no weights of an adapter; expected {' or '.join(_WEIGHTS)}.")
    factors: dict[tuple[str, int, str], dict[str, np.ndarray]] = {}
    for name, tensor in open_tensors(weights).items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise JanusError(
                f"{weights} holds {name}; janus_jax supports only LoRA of the LLM's matrices "
                f"({', '.join(matrix.partition('.')[2] for matrix in _MATRICES)})."
            )
        key = match["matrix"], int(match["layer"]), match["module"]
        factors.setdefault(key, {})[match["factor"]] = tensor
    if not factors:
        raise JanusError(f"{weights} is empty; save the adapter again.")
    matrices: dict[tuple[str, int | None], LowRank] = {
        (_MATRICES[matrix][0], layer): _low_rank(json, f"{weights}: {module}", module, found)
        for (matrix, layer, module), found in factors.items()
    }
    base, revision = json.get("base_model_name_or_path", ""), json.get("revision", "")
    return Adapter(folder, f"{base}@{revision}" if base and revision else base, matrices)


def write_adapter(folder: Path, matrices: Mapping[tuple[str, int], LowRank], base: str, layout: str) -> None:
    """Writes an adapter that peft loads.

    Args:
      folder: An existing folder.
      matrices: See `Adapter`. All have one rank and one scale.
      base: Folder or hub id of the base model.
      layout: Layout of the base model, "transformers" or "released", which determines the names of the modules.
    """
    modules, prefix = {path: module for module, (path, _) in _MATRICES.items()}, LLM_PREFIXES[layout]
    tensors = {
        f"base_model.model.{prefix}layers.{layer}.{modules[path]}.lora_{factor}.weight": array
        for (path, layer), change in matrices.items()
        for factor, array in (("A", change.a), ("B", change.b))
    }
    specs = {name: (array.shape, np.dtype(np.float32)) for name, array in tensors.items()}
    with SafetensorsWriter(folder, specs, shard_bytes=1 << 62, stem=_STEM) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    first = next(iter(matrices.values()))
    targets = "|".join(sorted({modules[path].partition(".")[2] for path, _ in matrices}))
    base, _, revision = base.partition("@") if not Path(base).exists() else (base, "", "")
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": len(first.a),
        "lora_alpha": first.scale * len(first.a),
        # A pattern with the LLM's prefix, because the image encoder of transformers' Janus has a q_proj too.
        "target_modules": rf"{re.escape(prefix)}layers\.\d+\..*\.({targets})",
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "task_type": None,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, content)


def _check_supported(json: JsonObject) -> None:
    json.require("peft_type", "LORA")
    for name, value in json.values.items():
        if name not in _UNCHANGED and value not in _OFF:
            raise JanusError(
                f"{json.where}: {name} is {value!r:.80}, which janus_jax does not support; merge the adapter into its "
                f"base model with peft (merge_and_unload), and give the merged model."
            )
    if json.values.get("init_lora_weights", True) not in _INITIALIZATIONS:
        raise JanusError(
            f"{json.where}: init_lora_weights is {json.values['init_lora_weights']!r}, which changes the base "
            f"model's matrices; merge the adapter with peft (merge_and_unload), and give the merged model."
        )


def _low_rank(json: JsonObject, where: str, module: str, factors: Mapping[str, np.ndarray]) -> LowRank:
    if missing := {"A", "B"} - factors.keys():
        raise JanusError(f"{where} lacks lora_{missing.pop()}; save the adapter again.")
    a, b = (factors[name].astype(np.float32) for name in "AB")
    rank = _of_module(json, "rank_pattern", module, json.get("r", 8))
    if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
        raise JanusError(
            f"{where} has A and B of shapes {list(a.shape)} and {list(b.shape)}, but {CONFIG} has rank {rank}; config "
            f"and weights belong to different adapters."
        )
    alpha = _of_module(json, "alpha_pattern", module, json.get("lora_alpha", 8.0))
    return LowRank(a, b, alpha / (math.sqrt(rank) if json.get("use_rslora", False) else rank))


def _of_module(json: JsonObject, field: str, module: str, default: Any) -> Any:
    """Returns the value of the first pattern in a field that matches the end of a module's name, as peft does."""
    for pattern, value in json.object(field).values.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _input_axes(path: str) -> int:
    return next(axes for parameter, axes in _MATRICES.values() if parameter == path)
