"""A one-dimensional diffusion transformer over latent frames: a token is one latent frame, 80 ms and all bands."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

_ROTARY_BASE = 10_000.0  # of the wavelengths of positions (Su et al. 2021)


@dataclass
class LatentTransformerOutput(BaseOutput):
    """`sample` `[batch, out_channels, frames, bands]`: the predicted velocity."""

    sample: torch.Tensor


class LatentTransformer(ModelMixin, ConfigMixin):
    """A DiT (Peebles and Xie 2023) with rotary self-attention over time, called as the U-Net of AudioSR's size is.

    Args:
        in_channels, out_channels: channels of the noisy latent with its conditions, and of the velocity.
        bands: latent bands; all channels of all bands of a latent frame make one token.
        width, depth, heads: of the transformer.
        mlp_ratio: hidden width of the feed-forward layers over `width`.
        dropout: after attention and in the feed-forward layers, while training.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bands: int = 32,
        width: int = 256,
        depth: int = 6,
        heads: int = 4,
        mlp_ratio: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(in_channels * bands, width)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(width, width)
        self.modulate = nn.Linear(width, 6 * width)  # shared by all blocks, as in PixArt
        self.blocks = nn.ModuleList(_Block(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_channels * bands)
        for layer in (self.modulate, self.head):  # training starts from the prediction zero
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: None = None
    ) -> LatentTransformerOutput:
        """Velocity `[batch, out_channels, frames, bands]` of `[batch, in_channels, frames, bands]` at timesteps.

        `encoder_hidden_states` is there for the U-Net's sake; there is no text.
        """
        time = self.time_proj(timestep.expand(len(sample)).to(sample.device)).to(self.dtype)
        modulation = self.modulate(F.silu(self.time_embed(time))).unflatten(-1, (6, -1))  # (B, 6, width)
        hidden = self.embed(sample.transpose(1, 2).flatten(2))  # (B, C, T, bands) -> (B, T, width)
        rotary = _rotary(hidden.shape[1], self.config.width // self.config.heads, hidden.device)
        for block in self.blocks:
            hidden = block(hidden, modulation, rotary)
        tokens = self.head(self.norm(hidden))
        return LatentTransformerOutput(tokens.unflatten(-1, (self.config.out_channels, -1)).transpose(1, 2))


class _Block(nn.Module):
    """Attention over time and a feed-forward layer, each scaled, shifted and gated by the timestep."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * width, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden: torch.Tensor, modulation: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (modulation + self.modulation)[:, :, None].unbind(1)
        attended = self._attend(self.norms[0](hidden) * (1 + scale) + shift, rotary)
        hidden = hidden + gate * self.dropout(attended)
        return hidden + mlp_gate * self.dropout(self.mlp(self.norms[1](hidden) * (1 + mlp_scale) + mlp_shift))

    def _attend(self, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        query, key, value = self.attention_in(hidden).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        query, key = (_rotated(values, rotary) for values in (query, key))  # (B, heads, T, width / heads)
        return self.attention_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _rotary(tokens: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines `[tokens, width / 2]` of rotary position embedding."""
    frequency = _ROTARY_BASE ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(tokens, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def _rotated(values: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    first, second = values.chunk(2, dim=-1)
    cosine, sine = (part.to(values.dtype) for part in rotary)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
