"""Training step of transformers' Janus on PyTorch, with the weights and examples of `train.JaxStep`."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.batches import IMAGE
from benchmarks.shared import copy_weights
from checkpoints_convert.parameters import model_parameters
from checkpoints_convert.transformers_janus import LAYOUT, config_to_json
from janus_jax.batch import NO_POSITION, Batch
from janus_jax.config import JanusConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.param_paths import matches


class TorchStep:
    """Forward and backward pass, clipping of the gradient norm, and PyTorch's fused AdamW.

    Each example of a packed sequence becomes a sequence of its own, padded to the longest one of the batch. If nothing
    is padded, no mask is passed. The text head is applied to supervised positions only, as in this project.

    Attributes:
      padded_tokens: Number of tokens in the batch, including padding.
    """

    def __init__(
        self, config: JanusConfig, trained: Sequence[str], optimizer: OptimizerConfig, batch: Batch, cores: int
    ) -> None:
        torch.set_num_threads(cores)
        self._clip = optimizer.clip_norm
        self._model = _model(config, trained)
        self._params = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._params,
            lr=optimizer.learning_rate,
            betas=(optimizer.b1, optimizer.b2),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )
        examples, supervised = _unpack(batch)
        self._ids = pad_sequence(examples, batch_first=True)
        self._before = pad_sequence(supervised, batch_first=True).roll(-1, dims=1).reshape(-1).nonzero()[:, 0]
        self._targets = self._ids.reshape(-1)[self._before + 1]
        mask = pad_sequence([torch.ones_like(example) for example in examples], batch_first=True)
        self._mask = None if mask.all() else mask
        self.padded_tokens = mask.numel()
        # Leaves out the empty images that pad the packed batch.
        counts = (batch.und_patch_index.max(axis=1) + 1) // config.und_encoder.num_patches
        pixels = np.concatenate([images[:count] for images, count in zip(batch.und_images, counts, strict=True)])
        scaled = pixels.astype(np.float32) * np.float32(2 / 255) - 1
        self._pixels = torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()

    def __call__(self) -> float:
        """Runs a step and returns the loss before the update."""
        hidden = self._model.model(
            input_ids=self._ids, pixel_values=self._pixels, attention_mask=self._mask, use_cache=False
        ).last_hidden_state
        logits = self._model.lm_head(hidden.reshape(-1, hidden.shape[-1])[self._before])
        loss = functional.cross_entropy(logits, self._targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._params, self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def _model(config: JanusConfig, trained: Sequence[str]) -> transformers.JanusForConditionalGeneration:
    model = transformers.JanusForConditionalGeneration(
        transformers.JanusConfig(**config_to_json(config, "float32", IMAGE))
    )
    copy_weights(model, config)
    mapped = LAYOUT.map(model_parameters(config))
    trainable = {one.name for unit in mapped if matches(unit.parameter.path, trained) for one in unit.tensors}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model.train()


def _unpack(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Returns the token ids of each example, and booleans that are True at targets."""
    examples, supervised = [], []
    for ids, segments, targets in zip(batch.tokens, batch.segment_ids, np.asarray(batch.text_targets), strict=True):
        is_target = np.zeros(len(ids), bool)
        is_target[targets[targets != NO_POSITION]] = True
        for number in range(1, segments.max() + 1):
            here = segments == number
            examples.append(torch.from_numpy(ids[here]).long())
            supervised.append(torch.from_numpy(is_target[here]))
    return examples, supervised
