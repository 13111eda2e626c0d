"""JanusFlow on PyTorch, as its public demo runs it: transformers' LLaMA recomputes the prompt at every step.

It is written from the paper and the shapes of the released file. The modules have the names of the released parameters.
"""

import math

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional

from checkpoints_convert.released import llama_to_json
from janus_jax.config import Dtype, JanusFlowConfig, UViTConfig


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response norm, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.bias = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales each channel according to its norm relative to the mean of all norms."""
        norm = x.norm(dim=(1, 2), keepdim=True)
        return x + self.weight * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6))) + self.bias


class ConvNextBlock(nn.Module):
    """ConvNeXt V2 block, channels first. The time embedding scales and shifts its output."""

    def __init__(self, config: UViTConfig, channels: int, time_width: int) -> None:
        super().__init__()
        size, hidden = config.kernel_size, config.mlp_ratio * channels
        self.depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        self.norm = nn.RMSNorm(channels, eps=config.norm_eps)
        self.channelwise_linear_1 = nn.Linear(channels, hidden)
        self.channelwise_norm = ResponseNorm(hidden)
        self.channelwise_linear_2 = nn.Linear(hidden, channels)
        self.cond_embeds_mapper = nn.Linear(time_width, 2 * channels)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Applies the block."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.channelwise_norm(functional.gelu(self.channelwise_linear_1(y)))
        x = x + self.channelwise_linear_2(y).permute(0, 3, 1, 2)
        scale, shift = self.cond_embeds_mapper(functional.silu(time))[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class Blocks(nn.Module):
    """Sequence of ConvNeXt blocks."""

    def __init__(self, config: UViTConfig, channels: int, time_width: int, depth: int) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ConvNextBlock(config, channels, time_width) for _ in range(depth))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Applies the blocks."""
        for block in self.res_blocks:
            x = block(x, time)
        return x


class TimeEmbed(nn.Module):
    """Sinusoidal embedding of times, followed by an MLP."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.half = inputs // 2
        self.linear_1, self.linear_2 = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, times: torch.Tensor) -> torch.Tensor:
        """Returns embeddings of times in [0, 1]."""
        steps = torch.arange(self.half, dtype=torch.float32, device=times.device)
        angles = 1000 * times[:, None].float() * torch.exp(-math.log(10000) / self.half * steps)
        x = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(x)))


class Encoder(nn.Module):
    """Generation encoder, which maps latents to features."""

    def __init__(self, config: UViTConfig, llm_width: int) -> None:
        super().__init__()
        patch = config.patch_size
        self.time_embed = TimeEmbed(config.width, llm_width)
        self.in_conv = nn.Conv2d(config.latent_channels, config.width, patch, patch)
        self.mid_block = Blocks(config, config.width, llm_width, config.encoder_depth)

    def forward(self, latents: torch.Tensor, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features and time embeddings."""
        time = self.time_embed(times)
        return self.mid_block(self.in_conv(latents), time), time


class Unpatch(nn.Module):
    """Maps features to latents with a norm, a linear layer and pixel shuffle."""

    def __init__(self, config: UViTConfig, channels: int) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.norm = nn.RMSNorm(channels, eps=config.norm_eps)
        self.unpatch_conv = nn.Conv2d(channels, config.patch_dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns latents, channels first."""
        y = self.unpatch_conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return functional.pixel_shuffle(y, self.patch)


class Decoder(nn.Module):
    """Generation decoder, which maps hidden states and the encoder's features to velocities."""

    def __init__(self, config: UViTConfig, llm_width: int) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mid_block = Blocks(config, 2 * config.width, llm_width, config.decoder_depth)
        self.out_convs = nn.ModuleList([Unpatch(config, 2 * config.width)])

    def forward(self, x: torch.Tensor, skip: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Returns velocities, channels first."""
        x = self.input_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out_convs[0](self.mid_block(torch.cat([x, skip], dim=1), time))


class TorchJanusFlow(nn.Module):
    """The modules of JanusFlow that generation uses."""

    def __init__(self, config: JanusFlowConfig, dtype: Dtype, device: str) -> None:
        super().__init__()
        torch.set_grad_enabled(False)
        g, width = config.gen_encoder, config.llm.width
        llama = transformers.LlamaConfig(**llama_to_json(config.llm, dtype))
        with torch.device(device):
            self.vision_gen_enc_model = Encoder(g, width)
            self.vision_gen_enc_aligner = nn.Linear(g.width, width)
            self.vision_gen_dec_aligner_norm = nn.RMSNorm(width, eps=g.norm_eps)
            self.vision_gen_dec_aligner = nn.Linear(width, g.width)
            self.vision_gen_dec_model = Decoder(g, width)
            self.language_model = transformers.LlamaForCausalLM(llama)
        self.to(getattr(torch, dtype)).eval()

    def sample(
        self, prompt: np.ndarray, noise: np.ndarray, *, steps: int, guidance_scale: float, pad: int
    ) -> np.ndarray:
        """Returns sampled latents of one image, channels first.

        Args:
          prompt: Token ids that end with the begin-of-image token.
          noise: Latents at time 0.
          pad: Token id that replaces the prompt, except its first token, in the unconditional sequence.
        """
        device, dtype = self.vision_gen_enc_aligner.weight.device, self.vision_gen_enc_aligner.weight.dtype
        ids = torch.from_numpy(np.repeat(prompt[:, :-1], 2, axis=0)).long().to(device)
        ids[1, 1:] = pad
        embeddings = self.language_model.get_input_embeddings()(ids)
        z = torch.from_numpy(noise).to(device, dtype)
        side = self.vision_gen_enc_model.in_conv(z).shape[-1]
        mask = torch.ones(2, ids.shape[1] + 1 + side**2, dtype=torch.int, device=device)
        mask[1, 1 : ids.shape[1]] = 0
        for step in range(steps):
            times = torch.full((2,), step / steps, device=device)
            skip, time = self.vision_gen_enc_model(z.repeat(2, 1, 1, 1), times)
            x = self.vision_gen_enc_aligner(skip.flatten(2).transpose(1, 2))
            x = torch.cat([embeddings, time[:, None], x], dim=1)
            # Rotary positions count masked tokens, because no position ids are passed.
            outputs = self.language_model.model(inputs_embeds=x, attention_mask=mask, use_cache=False)
            hidden = self.vision_gen_dec_aligner(
                self.vision_gen_dec_aligner_norm(outputs.last_hidden_state[:, -(side**2) :])
            )
            hidden = hidden.transpose(1, 2).unflatten(2, (side, side))
            conditional, unconditional = self.vision_gen_dec_model(hidden, skip, time).chunk(2)
            z = z + (guidance_scale * conditional - (guidance_scale - 1) * unconditional) / steps
        result: np.ndarray = z.float().cpu().numpy()
        return result
