"""Regression from degraded to clean log-mels: the mean the diffusion model starts from, and the NVSR baseline.

NVSR (Liu et al. 2022) predicts the full-band mel directly and leaves the rest to a vocoder. The same network gives
the diffusion model its base: LSD rewards the conditional mean, and what is left to generate is the residual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from srlib.config import LOG_MEL_FLOOR, N_MELS
from srlib.mel import band_of_hz

# Centre and spread of music's log-mels, nat: keeps activations near unit size.
LOG_MEL_CENTRE, LOG_MEL_SPREAD = -5.0, 3.0
# Fractions of a clip's frames below which a band lies: what never falls quiet is noise or a tone.
_QUANTILES = (0.1, 0.5, 0.9)
# One linear expert for each of these cutoffs (Hz; the last is full band) and each kind of noise.
EXPERT_CUTOFFS_HZ = (2000, 2600, 3300, 4200, 5400, 7000, 9000, 11_000, 13_000, 16_000, 24_000)
NOISES = ("none", "tone", "white")
# Added to the variance of each band when the missing ones are inferred: keeps loud, similar bands from being trusted
# to more digits than the next clip has in common with the corpus.
_BAND_VARIANCE = 0.015
# Of the covariance of motion, over the share of bands that are missing, added to that of levels: there are few clips
# that differ but many frames, what moves together mostly differs together, and the more bands are known, the more
# slopes are to be told from these few.
_MOTION_SHARE = 0.25
_SHARPNESS = 4.0  # of the choice between experts: logits are multiplied by this
_SLOW_FRAMES = 128  # to either side: what lasts longer than 2.57 s is a property of the clip, the rest is its motion


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
    """What the regressor says of a clip.

    `log_mel` `[batch, 1, frames, 256]` is the clean estimate. `evidence` `[batch, 3, 256]` are logits for each band of
    the whole clip: that the filter passes it (above -3 dB), that it is not missing (above -20 dB), that it is noisy.
    `passed` `[batch, 256]` are the first of these as the levels alone show them, `noise` `[batch, 3]` logits of the
    kinds of noise.
    """

    log_mel: torch.Tensor | None = None
    evidence: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    noise: torch.Tensor | None = None


class MelRegressor(ModelMixin, ConfigMixin):
    """Clean log-mel from a degraded one, and what was done to it.

    Without noise the missing bands are first inferred from the known ones by the means of normal distributions fitted
    to music (`srlib.experts`), one of what a clip's frames have in common (their moving mean) and one of how they move
    about it; with noise, by ridge regressions from degraded to clean frames, one for each cutoff and kind of noise.
    All have a closed form and are not trained further. ConvNeXt blocks, which start at zero, correct what they say.

    What a clip's frames have in common tells its corpus apart, and a network that may correct it learns the
    corpus by heart. So the blocks see the motion alone and correct no more than that, as far as there is no white
    noise. Where there is, they also see the clip's level quantiles: stationary noise shows as levels that a band never
    falls below.
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 320,
        num_layers: int = 4,
        kernel_size: int = 7,
        expansion: int = 2,
        latent_channels: int = 16,
    ) -> None:
        super().__init__()
        noisy = (len(NOISES) - 1) * len(EXPERT_CUTOFFS_HZ)
        identity = torch.cat([torch.eye(N_MELS), torch.zeros(1, N_MELS)])
        self.register_buffer("experts", identity.repeat(noisy, 1, 1))  # [22, 256 + 1, 256], the last row constant
        self.register_buffer("frame_mean", torch.zeros(N_MELS))
        self.register_buffer("level_covariance", torch.eye(N_MELS))  # of moving means
        self.register_buffer("motion_covariance", torch.eye(N_MELS))  # of frames about them
        # Spread of what the base leaves over, by latent channel: the scale of what the diffusion model generates.
        self.register_buffer("residual_std", torch.ones(latent_channels))
        levels = len(_QUANTILES) * N_MELS
        self.passed = _head(levels, hidden_size, N_MELS)
        self.noise = _head(levels + N_MELS, hidden_size, len(NOISES))
        self.embed = nn.Linear(3 * N_MELS + levels, hidden_size)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden_size, kernel_size, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, N_MELS)
        self.evidence = _head(2 * hidden_size + levels, hidden_size, 3 * N_MELS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, log_mel: torch.Tensor, known_bands: torch.Tensor | None = None) -> RegressorOutput:
        """Estimate `[batch, 1, frames, 256]`; without `known_bands` `[batch]`, how many pass the filter, it guesses."""
        frames = normalise(log_mel[:, 0])  # (B, T, 256)
        levels = level_quantiles(frames)  # (B, 768)
        passed = self.passed(levels.to(self.dtype)).float()
        if known_bands is None:
            known_bands = torch.sigmoid(passed).sum(1).round().long()
        noise = self.noise(clip_features(levels, known_bands).to(self.dtype)).float()
        slow = moving_mean(frames)
        linear = self._linear(frames, slow, known_bands, noise)
        noisy = _decided(noise)[:, -1:]  # white: a tone leaves nearly all bands as they are
        clip = clip_features(noisy * levels, known_bands)[:, None].expand(-1, frames.shape[1], -1)
        features = torch.cat([frames - slow, linear - moving_mean(linear), clip], dim=-1)
        hidden = self.embed(features.to(self.dtype)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden.transpose(1, 2))  # (B, T, hidden)
        pooled = torch.cat([hidden.mean(1), hidden.amax(1), levels.to(hidden.dtype)], dim=-1)
        evidence = self.evidence(pooled).float().unflatten(1, (3, N_MELS))
        correction = self.head(hidden).float()
        correction = correction - (1 - noisy)[..., None] * moving_mean(correction)
        return RegressorOutput(denormalise(linear + correction)[:, None], evidence, passed, noise)

    def _linear(
        self, frames: torch.Tensor, slow: torch.Tensor, known_bands: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """What the closed forms say, mixed by the kind of noise, in full precision: half costs more than it gains."""
        with torch.autocast(frames.device.type, enabled=False):
            frames, slow, share = frames.float(), slow.float(), _decided(noise)
            shares = (share[:, 1:, None] * expert_shares(known_bands)[:, None].to(share)).flatten(1)
            weights = torch.einsum("be,eio->bio", shares, self.experts.float())
            noisy = torch.baddbmm(weights[:, -1:], frames, weights[:, :-1])
            clean = torch.stack([self._conditional_mean(*clip) for clip in zip(frames, slow, known_bands, strict=True)])
            return (noisy + share[:, :1, None] * clean).clamp(min=normalise(_FLOOR_NAT))

    def _conditional_mean(self, frames: torch.Tensor, slow: torch.Tensor, known_bands: torch.Tensor) -> torch.Tensor:
        """`[frames, 256]` with the known lowest bands kept and the others' conditional mean given these."""
        known, mean, motion = int(known_bands), self.frame_mean.float(), self.motion_covariance.float()
        share = _MOTION_SHARE * N_MELS / max(1, N_MELS - known)
        level = (slow - mean)[:, :known] @ _slopes(self.level_covariance.float() + share * motion, known)
        change = (frames - slow)[:, :known] @ _slopes(motion, known)
        return torch.cat([frames[:, :known], mean[known:] + level + change], dim=1)


class MelResUNet(ModelMixin, ConfigMixin):
    """The baseline NVSR-ResUNet: a residual U-Net on log-mels as images corrects the degraded one (Liu et al. 2022).

    A drop-in for `MelRegressor` that says nothing of what was done to the input and asks nothing of it. Frames must be
    a multiple of 8.
    """

    @register_to_config
    def __init__(
        self, channels: tuple[int, ...] = (16, 24, 32, 48), layers: int = 1, latent_channels: int = 16
    ) -> None:
        super().__init__()
        self.unet = UNet2DModel(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            norm_num_groups=8,
            add_attention=False,
        )
        self.register_buffer("residual_std", torch.ones(latent_channels))  # as MelRegressor's
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, log_mel: torch.Tensor, known_bands: torch.Tensor | None = None) -> RegressorOutput:
        frames = normalise(log_mel)
        change = self.unet(frames, 0).sample  # one network for all inputs: there is no timestep
        return RegressorOutput(log_mel=denormalise((frames + change.float()).clamp(min=normalise(_FLOOR_NAT))))


_FLOOR_NAT = math.log(LOG_MEL_FLOOR)


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def normalise(log_mel: torch.Tensor | float) -> torch.Tensor | float:
    """Log-mel in nat to about unit size."""
    return (log_mel - LOG_MEL_CENTRE) / LOG_MEL_SPREAD


def denormalise(values: torch.Tensor) -> torch.Tensor:
    """Inverse of `normalise`."""
    return values * LOG_MEL_SPREAD + LOG_MEL_CENTRE


def _decided(noise: torch.Tensor) -> torch.Tensor:
    """Shares `[batch, 3]` of the kinds of noise: probabilities, sharpened so that a faint doubt changes nothing.

    Nothing flows back: the distance would open the gate to correct the levels of clean input.
    """
    return torch.softmax(_SHARPNESS * noise, dim=1).detach()


def _slopes(covariance: torch.Tensor, known: int) -> torch.Tensor:
    """`[known, 256 - known]`: how the missing bands follow the known ones."""
    inner = covariance[:known, :known] + _BAND_VARIANCE * torch.eye(known, device=covariance.device)
    return torch.linalg.solve(inner, covariance[:known, known:])


def level_quantiles(frames: torch.Tensor) -> torch.Tensor:
    """`[batch, 3 * 256]`: levels below which a band of `[batch, frames, 256]` lies for 10, 50, 90 % of the time."""
    fractions = torch.tensor(_QUANTILES, device=frames.device)
    return torch.quantile(frames.float(), fractions, dim=1).to(frames).transpose(0, 1).flatten(1)


def clip_features(levels: torch.Tensor, known_bands: torch.Tensor) -> torch.Tensor:
    """`[batch, 4 * 256]`: a clip's level quantiles `[batch, 3 * 256]` and which bands are known, by count `[batch]`."""
    known = torch.arange(N_MELS, device=levels.device) < known_bands[:, None]
    return torch.cat([levels, known.to(levels)], dim=1)


def moving_mean(frames: torch.Tensor) -> torch.Tensor:
    """Mean over 2.57 s around each frame of `[batch, frames, bands]`, over fewer frames at the ends."""
    count = frames.shape[1]
    total = nn.functional.pad(frames.float().cumsum(1), (0, 0, 1, 0))
    index = torch.arange(count, device=frames.device)
    first, last = (index - _SLOW_FRAMES).clamp(min=0), (index + _SLOW_FRAMES + 1).clamp(max=count)
    return ((total[:, last] - total[:, first]) / (last - first)[:, None]).to(frames.dtype)


def expert_shares(known_bands: torch.Tensor) -> torch.Tensor:
    """Weights `[batch, 11]` of the cutoffs' experts: linear interpolation in the number of known bands `[batch]`."""
    centres = torch.tensor([band_of_hz(hz) for hz in EXPERT_CUTOFFS_HZ], dtype=torch.float32)
    position = known_bands.float().cpu()[:, None].clamp(centres[0], centres[-1])
    spacing = centres.diff()
    below, above = torch.cat([spacing[:1], spacing])[None], torch.cat([spacing, spacing[-1:]])[None]
    distance = position - centres[None]
    return (1 - torch.where(distance < 0, -distance / below, distance / above)).clamp(min=0)
