"""A training step of transformers' Janus on PyTorch, with the weights and the samples of ours."""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from benchmarks.rows import IMAGE
from benchmarks.shared import weights
from checkpoints_convert.transformers_janus import config_to_json
from janus_jax.batch import NO_POSITION, Batch
from janus_jax.config import JanusConfig
from janus_jax.training.optimizers import OptimizerConfig
from janus_jax.training.param_paths import matches


class Theirs:
    """The step: forward and backward pass, the gradient's norm clipped, PyTorch's fused AdamW.

    A packed row's samples have a row each, padded to the longest of the batch; where all are of one length there is no
    padding, and no mask is given. The text head reads supervised places alone, as ours does.

    Attributes:
      places: of its batch, padding included.
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
        samples, learnt = _samples(batch)
        self._ids = pad_sequence(samples, batch_first=True)
        self._before = pad_sequence(learnt, batch_first=True).roll(-1, dims=1).reshape(-1).nonzero()[:, 0]
        self._targets = self._ids.reshape(-1)[self._before + 1]
        mask = pad_sequence([torch.ones_like(sample) for sample in samples], batch_first=True)
        self._mask = None if mask.all() else mask
        self.places = mask.numel()
        # Our rows are filled up with empty images, of which no place holds a patch.
        shown = (batch.und_patch_index.max(axis=1) + 1) // config.und_encoder.num_patches
        pixels = np.concatenate([images[:count] for images, count in zip(batch.und_images, shown, strict=True)])
        scaled = pixels.astype(np.float32) * np.float32(2 / 255) - 1
        self._pixels = torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous()

    def __call__(self) -> float:
        """One more step; its loss before it."""
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
    state, kept = model.state_dict(), set()
    for unit, array in weights(config):
        for name, part in unit.write(array):
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(part)))
            if matches(unit.parameter.path, trained):
                kept.add(name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return model.train()


def _samples(batch: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Ids of each sample, and which of them are learnt."""
    samples, learnt = [], []
    for ids, segments, targets in zip(batch.tokens, batch.segment_ids, np.asarray(batch.text_targets), strict=True):
        is_target = np.zeros(len(ids), bool)
        is_target[targets[targets != NO_POSITION]] = True
        for number in range(1, segments.max() + 1):
            here = segments == number
            samples.append(torch.from_numpy(ids[here]).long())
            learnt.append(torch.from_numpy(is_target[here]))
    return samples, learnt
