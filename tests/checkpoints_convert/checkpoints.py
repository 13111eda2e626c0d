"""Writes checkpoints of pseudo-weights in every layout."""

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert import released, released_flow, transformers_janus
from checkpoints_convert.diffusers_vae import DIFFUSERS_VAE, WEIGHTS_STEM, vae_to_json
from checkpoints_convert.parameters import Shape, model_parameters
from checkpoints_convert.safetensors_writer import SafetensorsWriter
from janus_jax.config import (
    JanusConfig,
    JanusFlowConfig,
    LlamaConfig,
    SiglipConfig,
    UViTConfig,
    VAEConfig,
    VQConfig,
)
from janus_jax.processing import make_byte_level_tokenizer
from tests.golden.pseudo_weights import tensor

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)

# A small model that transformers can run too: 32 norm groups, as many image tokens as patches, gen_head_width = width.
SMALL = JanusConfig(
    name="small",
    und_encoder=SiglipConfig(image_size=32, patch_size=8, width=64, depth=2, num_heads=2, mlp_dim=128),
    gen_encoder=VQConfig(
        image_size=16,
        codebook_size=96,
        base_channels=32,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        z_channels=48,
    ),
    llm=LlamaConfig(
        vocab_size=128, width=64, depth=3, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=160, max_positions=512
    ),
    gen_head_width=64,
)

SMALL_VAE = VAEConfig(base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, scaling_factor=0.5)
SMALL_FLOW = JanusFlowConfig(
    name="JanusFlow-small",
    und_encoder=SMALL.und_encoder,
    gen_encoder=UViTConfig(latent_size=8, width=32, encoder_depth=1, decoder_depth=2, kernel_size=3, mlp_ratio=2),
    vae=SMALL_VAE,
    llm=SMALL.llm,
)


def pseudo(
    manifest: Mapping[str, Shape], dtype: np.dtype | Callable[[str], np.dtype] = BFLOAT16
) -> dict[str, np.ndarray]:
    """Returns a pseudo-weight for every name."""
    choose = dtype if callable(dtype) else lambda _: dtype
    return {name: _tensor(name, shape).astype(choose(name)) for name, shape in manifest.items()}


_tensor = functools.cache(tensor)


def save(
    folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None, shard_bytes=1 << 40
) -> Path:
    """Writes a folder with safetensors and config.json, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    with SafetensorsWriter(folder, specs, shard_bytes) as writer:
        for name, array in tensors.items():
            writer.write(name, array)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_released(folder: Path, config: JanusConfig = SMALL, dtype=BFLOAT16, **options) -> Path:
    """Writes a Janus model in the released layout."""
    return save(
        folder, pseudo(released.manifest(config), dtype), released.config_to_json(config, "bfloat16"), **options
    )


def save_flow(folder: Path, config: JanusFlowConfig = SMALL_FLOW, dtype=BFLOAT16, **options) -> Path:
    """Writes a JanusFlow model in the released layout, without its VAE."""
    config = replace(config, vae=None)
    tensors = pseudo(released_flow.manifest(config), dtype)
    return save(folder, tensors, released_flow.config_to_json(config, "bfloat16"), **options)


def save_vae(folder: Path, config: VAEConfig = SMALL_VAE, dtype=FLOAT32, rename=lambda name: name) -> Path:
    """Writes a VAE in diffusers' layout. `rename` changes the tensor names."""
    tensors = pseudo(DIFFUSERS_VAE.manifest(model_parameters(config)), dtype)
    save(folder, {rename(name): array for name, array in tensors.items()}, vae_to_json(config, 32))
    (folder / "model.safetensors").rename(folder / f"{WEIGHTS_STEM}.safetensors")
    return folder


def save_flow_with_tokenizer(root: Path) -> Path:
    """Writes a JanusFlow model with a tokenizer to `root/JanusFlow-small`, and its VAE to `root/sdxl-vae`."""
    config = replace(SMALL_FLOW, llm=replace(SMALL_FLOW.llm, vocab_size=320))
    folder, und = save_flow(root / "JanusFlow-small", config), config.und_encoder
    save_vae(root / "sdxl-vae")
    corpus = ["A small red boat on a quiet lake.", "What is in the picture?"]
    make_byte_level_tokenizer(folder, corpus, 320, config.conversation, und.image_size, und.num_patches)
    return folder


def save_transformers(folder: Path, config: JanusConfig = SMALL, dtype=BFLOAT16, **options) -> Path:
    """Writes a Janus model in transformers' layout, with the same values as `save_released`."""
    values = pseudo(released.manifest(config), dtype)
    parameters = model_parameters(config)
    mapped = zip(released.LAYOUT.map(parameters), transformers_janus.LAYOUT.map(parameters), strict=True)
    tensors = {name: part for source, target in mapped for name, part in target.write(source.read(values))}
    return save(folder, tensors, transformers_janus.config_to_json(config, "bfloat16", 7), **options)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies a function to the content of config.json in a folder."""
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
