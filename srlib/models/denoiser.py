"""The denoiser of the compact sizes: a residual network over latent cells, with weights shared by all bands."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

_DILATIONS = (1, 2, 4)  # over time, block after block: six blocks see 1.6 s and 12 latent bands either way


class LatentDenoiser(ModelMixin, ConfigMixin):
    """Residual convolutions over time and bands, called as the U-Net of AudioSR's size is.

    Noise changes a cell in the same way in every band, so all bands share the weights. A network that reads all bands
    of a frame at once overfits to the training tracks.

    Args:
        in_channels: of the noisy latent and its conditions.
        out_channels: of the velocity.
        bands: latent bands, each with a bias of its own.
        width: channels of the residual blocks, of which there are `depth`.
        dropout: share of the channels that a block leaves out, while training.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bands: int = 32,
        width: int = 64,
        depth: int = 6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, 1)
        self.band = nn.Parameter(torch.randn(1, width, 1, bands) * 0.02)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(width, width)
        self.modulate = nn.Linear(width, depth * 2 * width)
        self.blocks = nn.ModuleList(_Block(width, _DILATIONS[i % len(_DILATIONS)], dropout) for i in range(depth))
        self.head = nn.Conv2d(width, out_channels, 1)
        for layer in (self.modulate, self.head):  # training starts from the prediction zero
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: None = None) -> UNet2DOutput:
        """Velocity `[batch, out_channels, frames, bands]` of `[batch, in_channels, frames, bands]` at timesteps."""
        time = self.time_proj(timestep.expand(len(sample)).to(sample.device)).to(self.dtype)
        modulation = self.modulate(F.silu(self.time_embed(time)))[:, :, None, None].chunk(len(self.blocks), dim=1)
        hidden = self.embed(sample.contiguous(memory_format=torch.channels_last)) + self.band
        for block, change in zip(self.blocks, modulation, strict=True):
            hidden = block(hidden, change)
        return UNet2DOutput(self.head(F.silu(_normalised(hidden))))


class _Block(nn.Module):
    """Two convolutions of 3 x 3 cells; the timestep scales and shifts their input."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=(dilation, 1), dilation=(dilation, 1))
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout2d(dropout)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        inner = self.first(F.silu(_normalised(hidden) * (1 + scale) + shift))
        return hidden + self.second(self.dropout(F.silu(_normalised(inner))))


def _normalised(hidden: torch.Tensor) -> torch.Tensor:
    """Mean zero and variance one over the channels of each cell: nothing depends on how long a chunk is."""
    return F.layer_norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2]).permute(0, 3, 1, 2)
