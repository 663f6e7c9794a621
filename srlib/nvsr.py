"""Regression from degraded to clean log-mels: the mean the diffusion model starts from, and the NVSR baseline.

NVSR (Liu et al. 2022) predicts the full-band mel directly and leaves the rest to a vocoder. The same network gives
the diffusion model its base: LSD rewards the conditional mean, and what is left to generate is the residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from srlib.config import N_MELS
from srlib.exemplars import FLOOR, Exemplars, Inferred, WhiteNoise, moving_mean
from srlib.mel import denormalise, normalise

# Fractions of a clip's frames below which a band lies: what never falls quiet is noise or a tone.
_QUANTILES = (0.1, 0.5, 0.9)
NOISES = ("none", "tone", "white")
_SHARPNESS = 4.0  # of the choice between them: logits are multiplied by this
_NEGLIGIBLE = 0.01  # share of an answer that is not worth its computation and left out
# Bands of a tone stand out of the median over so many, in quiet moments, by so much (normalised log-mel: 0.3 nat).
_NEIGHBOURS, _STANDS_OUT = 33, 0.1


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
    kinds of noise. `deficit_db` `[batch]`, if it was asked for, is what the missing bands of the estimate lack in
    power, as means of logarithms do.
    """

    log_mel: torch.Tensor | None = None
    evidence: torch.Tensor | None = None
    passed: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    deficit_db: torch.Tensor | None = None


class MelRegressor(ModelMixin, ConfigMixin):
    """Clean log-mel from a degraded one, and what was done to it.

    A gate tells the kind of noise from a clip's levels, and stored music what a clip like this is when it is clean
    (`srlib.exemplars`). ConvNeXt blocks, which start at zero, correct what it says.

    What a clip's frames have in common tells its corpus apart, and a network that may correct it learns the
    corpus by heart. So the blocks see how the frames move about their moving mean, which bands are known and how far
    they stand out of white noise, and correct motion alone.
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 320,
        num_layers: int = 4,
        kernel_size: int = 7,
        expansion: int = 2,
        exemplars: int = 2048,
        latent_channels: int = 16,
    ) -> None:
        super().__init__()
        self.store = Exemplars(exemplars)
        # Spread of what the base leaves over, by latent channel: the scale of what the diffusion model generates.
        self.register_buffer("residual_std", torch.ones(latent_channels))
        levels = len(_QUANTILES) * N_MELS
        self.passed = _head(levels, hidden_size, N_MELS)
        self.noise = _head(levels + N_MELS, hidden_size, len(NOISES))
        self.embed = nn.Linear(4 * N_MELS, hidden_size)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden_size, kernel_size, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, N_MELS)
        self.evidence = _head(2 * hidden_size + levels, hidden_size, 3 * N_MELS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.noise[-1].bias[0] = 2.0  # no noise until something is known of it

    def forward(
        self,
        log_mel: torch.Tensor,
        known_bands: torch.Tensor | None = None,
        white: Sequence[WhiteNoise | None] | None = None,
        with_deficit: bool = False,
    ) -> RegressorOutput:
        """Estimate `[batch, 1, frames, 256]`; without `known_bands` `[batch]`, how many pass the filter, it guesses.

        `white` is white noise that was measured, one of the batch each or None; there the gate is not asked.
        `with_deficit` also says what the estimate lacks in power.
        """
        frames = normalise(log_mel[:, 0])  # (B, T, 256)
        levels = level_quantiles(frames)  # (B, 768)
        passed = self.passed(levels.to(self.dtype)).float()
        if known_bands is None:
            known_bands = torch.sigmoid(passed).sum(1).round().long()
        clip = clip_features(levels, known_bands)
        noise = self.noise(clip.to(self.dtype)).float()
        shares = torch.softmax(_SHARPNESS * noise, dim=1)  # a faint doubt changes nothing
        white = white or [None] * len(frames)
        inferred, heard, deficit_db = self._infer(frames, known_bands, shares, white, with_deficit)
        known = clip[:, None, -N_MELS:].expand_as(frames)
        features = torch.cat([frames - moving_mean(frames), inferred - moving_mean(inferred), heard, known], dim=-1)
        hidden = self.embed(features.to(self.dtype)).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden.transpose(1, 2))  # (B, T, hidden)
        pooled = torch.cat([hidden.mean(1), hidden.amax(1), levels.to(hidden.dtype)], dim=-1)
        evidence = self.evidence(pooled).float().unflatten(1, (3, N_MELS))
        correction = self.head(hidden).float()
        estimate = inferred + correction - moving_mean(correction)
        asked = deficit_db if with_deficit else None
        return RegressorOutput(denormalise(estimate)[:, None], evidence, passed, noise, asked)

    @torch.no_grad()
    def _infer(
        self,
        frames: torch.Tensor,
        known_bands: torch.Tensor,
        shares: torch.Tensor,
        white: Sequence[WhiteNoise | None],
        with_deficit: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What stored music says, how far frames stand out of noise, both `[batch, frames, 256]`, and what they lack.

        In full precision: half costs more than it gains.
        """
        with torch.autocast(frames.device.type, enabled=False):
            clips = zip(frames.float(), known_bands, shares, white, strict=True)
            inferred, heard, deficits_db = zip(*(self._infer_clip(*clip, with_deficit) for clip in clips), strict=True)
            deficit_db = torch.tensor(deficits_db, device=frames.device)
            return torch.stack(inferred).clamp(min=FLOOR), torch.stack(heard), deficit_db

    def _infer_clip(
        self,
        frames: torch.Tensor,
        known_bands: torch.Tensor,
        shares: torch.Tensor,
        measured: WhiteNoise | None,
        with_deficit: bool,
    ) -> Inferred:
        known = torch.arange(N_MELS, device=frames.device) < known_bands.clamp(min=1)
        if measured is not None:
            return self.store.infer(frames, known, measured.to(frames.device), with_deficit)
        white = float(shares[-1])
        white = round(white) if min(white, 1 - white) < _NEGLIGIBLE else white
        if white > 0:
            noisy = self.store.infer(frames, known, WhiteNoise.find(frames, known), with_deficit)
            if white == 1:
                return noisy
        tonal = tone_bands(frames) if shares[1] > shares[0] else torch.zeros_like(known)
        quiet = self.store.infer(frames, known & ~tonal, with_deficit=with_deficit)
        if white == 0:
            return quiet
        return Inferred(*(white * one + (1 - white) * other for one, other in zip(noisy, quiet, strict=True)))


class MelResUNet(ModelMixin, ConfigMixin):
    """The baseline NVSR-ResUNet: a residual U-Net on log-mels as images corrects the degraded one (Liu et al. 2022).

    A drop-in for `MelRegressor` that says nothing of what was done to the input and makes no use of what is known of
    it, `known_bands` and `white`, nor knows what it lacks. Frames must be a multiple of 8.
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

    def forward(
        self,
        log_mel: torch.Tensor,
        known_bands: torch.Tensor | None = None,
        white: Sequence[WhiteNoise | None] | None = None,
        with_deficit: bool = False,
    ) -> RegressorOutput:
        frames = normalise(log_mel)
        change = self.unet(frames, 0).sample  # one network for all inputs: there is no timestep
        return RegressorOutput(log_mel=denormalise((frames + change.float()).clamp(min=FLOOR)))


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def tone_bands(frames: torch.Tensor) -> torch.Tensor:
    """`[256]`, True for bands that hold the loudest steady tone of `[frames, 256]`."""
    quiet = frames.float().quantile(_QUANTILES[0], dim=0)
    padded = nn.functional.pad(quiet[None, None], (_NEIGHBOURS // 2, _NEIGHBOURS // 2), mode="replicate")[0, 0]
    excess = quiet - padded.unfold(0, _NEIGHBOURS, 1).median(dim=1).values
    stands_out = excess > _STANDS_OUT
    run = (~stands_out).cumsum(0)  # the same number from one band that does not to the next
    return stands_out & (run == run[excess.argmax()])


def level_quantiles(frames: torch.Tensor) -> torch.Tensor:
    """`[batch, 3 * 256]`: levels below which a band of `[batch, frames, 256]` lies for 10, 50, 90 % of the time."""
    fractions = torch.tensor(_QUANTILES, device=frames.device)
    return torch.quantile(frames.float(), fractions, dim=1).to(frames).transpose(0, 1).flatten(1)


def clip_features(levels: torch.Tensor, known_bands: torch.Tensor) -> torch.Tensor:
    """`[batch, 4 * 256]`: a clip's level quantiles `[batch, 3 * 256]` and which bands are known, by count `[batch]`."""
    known = torch.arange(N_MELS, device=levels.device) < known_bands[:, None]
    return torch.cat([levels, known.to(levels)], dim=1)
