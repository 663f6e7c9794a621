"""Regression from degraded to clean log-mels: the mean the diffusion model starts from, and the NVSR baseline.

NVSR (Liu et al. 2022) predicts the full-band mel directly and leaves the rest to a vocoder. The same network gives
the diffusion model its base: LSD rewards the conditional mean, and what is left to generate is the residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from srlib.config import N_MELS

# Centre and spread of music's log-mels, nat: keeps activations near unit size.
LOG_MEL_CENTRE, LOG_MEL_SPREAD = -5.0, 3.0
# Fractions of a clip's frames below which a band lies: what never falls quiet is noise or a tone.
_QUANTILES = (0.1, 0.5)


class ConvNeXtBlock(nn.Module):
    """One-dimensional ConvNeXt block over frames, `[batch, channels, frames]` (Liu et al. 2022; as in Vocos)."""

    def __init__(self, channels: int, kernel_size: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.project = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.depthwise(x).transpose(1, 2))  # (B, C, T) -> (B, T, C)
        hidden = self.project(nn.functional.gelu(self.expand(hidden)))
        return x + (self.scale * hidden).transpose(1, 2)


@dataclass
class RegressorOutput(BaseOutput):
    """`log_mel` `[batch, 1, frames, 256]`, the clean estimate; `evidence` `[batch, 3, 256]`, logits for each band of
    the whole clip: that the filter passes it (above -3 dB), that it is not missing (above -20 dB), that it is noisy.
    """

    log_mel: torch.Tensor | None = None
    evidence: torch.Tensor | None = None


class MelRegressor(ModelMixin, ConfigMixin):
    """Clean log-mel from a degraded one, and what was done to it.

    Frames are vectors of bands, mixed linearly and by ConvNeXt blocks. Beside each frame stand two quantiles over
    time of every band: stationary noise and tones show there as levels that a band never falls below.
    """

    @register_to_config
    def __init__(self, hidden_size: int = 384, num_layers: int = 6, kernel_size: int = 7, expansion: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear((1 + len(_QUANTILES)) * N_MELS, hidden_size)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden_size, kernel_size, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, N_MELS)
        self.evidence = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 3 * N_MELS)
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, log_mel: torch.Tensor) -> RegressorOutput:
        frames = (log_mel[:, 0] - LOG_MEL_CENTRE) / LOG_MEL_SPREAD  # (B, T, 256)
        levels = torch.quantile(frames.float(), torch.tensor(_QUANTILES, device=frames.device), dim=1)
        levels = levels.to(frames).transpose(0, 1).flatten(1)[:, None].expand(-1, frames.shape[1], -1)
        hidden = self.embed(torch.cat([frames, levels], dim=-1)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden.transpose(1, 2))  # (B, T, hidden)
        pooled = torch.cat([hidden.mean(1), hidden.amax(1)], dim=-1)
        return RegressorOutput(
            log_mel=log_mel + LOG_MEL_SPREAD * self.head(hidden)[:, None],
            evidence=self.evidence(pooled).unflatten(1, (3, N_MELS)),
        )
