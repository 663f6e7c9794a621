"""Log-mel to waveform: an ISTFT vocoder for the compact sizes, HiFi-GAN (transformers) for AudioSR's."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from srlib.audio.stft import envelope, istft_same, stft
from srlib.config import FRAME_PAD, HOP_LENGTH, N_FFT, N_MELS, ModelSize
from srlib.machine import stage
from srlib.models.excitation import noise

# Centre and spread of music's log-mels, nat: keeps the activations near unit size.
_CENTRE_NAT, _SPREAD_NAT = -5.0, 3.0


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


class IstftVocoder(ModelMixin, ConfigMixin):
    """A fixed excitation, shaped by the mel envelope and by a gain and a phase that ConvNeXt blocks predict.

    The excitation is a loop of Gaussian noise of `excitation_frames`. Scaled by the envelope it is a usable vocoder
    without training; the network starts at zero and learns a correction. One inverse STFT makes the waveform, as in
    Vocos (Siuzdak 2023).
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 5,
        kernel_size: int = 7,
        expansion: int = 3,
        excitation_frames: int = 1024,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(N_MELS, hidden_size, kernel_size, padding=kernel_size // 2)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden_size, kernel_size, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, N_FFT + 2)  # gain and phase of each bin
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        excitation = noise(excitation_frames * HOP_LENGTH)
        excitation = excitation / stft(excitation).abs().mean()  # log-mels hold mean magnitudes
        self.register_buffer("excitation", excitation, persistent=False)  # seeded: no need to store it

    def forward(self, log_mel: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """Waveform `[batch, 480 * frames]` of a log-mel `[batch, 1, frames, 256]`.

        `first_frame` is the position in the loop of the excitation, which overlapping chunks then share.
        """
        frames = log_mel.shape[2]
        hidden = (log_mel[:, 0].transpose(1, 2) - _CENTRE_NAT) / _SPREAD_NAT  # (B, 256, T)
        hidden = self.embed(hidden.to(self.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        gain, phase = self.head(self.norm(hidden.transpose(1, 2))).float().chunk(2, dim=-1)
        magnitude = torch.exp(envelope(log_mel[:, 0].float()) + gain.clamp(max=4.0))
        index = torch.arange(-FRAME_PAD, frames * HOP_LENGTH + FRAME_PAD, device=self.excitation.device)
        looped = self.excitation.float()[(index + first_frame * HOP_LENGTH) % len(self.excitation)]
        return istft_same(stft(looped) * torch.polar(magnitude, phase))


def build_vocoder(size: ModelSize) -> Any:
    """The untrained vocoder of a model size."""
    if size.prior:
        return IstftVocoder(**size.vocoder)
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig  # slow to import, and only AudioSR needs it

    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**size.vocoder))


@stage("vocoder")
def vocode(vocoder: Any, log_mel: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
    """Waveform `[batch, 480 * frames]`, float32, of a log-mel `[batch, 1, frames, 256]` with either vocoder.

    HiFi-GAN starts every chunk alike, whatever its `first_frame`, and adds 16 samples at the end, which are dropped.
    """
    if isinstance(vocoder, IstftVocoder):
        return vocoder(log_mel, first_frame)
    wav = vocoder(log_mel[:, 0].to(vocoder.dtype)).float()
    return wav[:, : log_mel.shape[2] * HOP_LENGTH]
