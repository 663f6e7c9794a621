"""Log-mel to waveform: an ISTFT vocoder for the compact sizes, HiFi-GAN (transformers) for AudioSR's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from srlib.audio.stft import envelope, istft_same, normalise, stft
from srlib.config import FRAME_PAD, HOP_LENGTH, N_FFT, N_MELS, ModelSize
from srlib.machine import stage

_BINS = N_FFT // 2 + 1


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
    """A fixed excitation, shaped by the mel envelope and by what ConvNeXt blocks add to it in gain and phase.

    The excitation is a loop of noise of `excitation_frames`, its short-time spectrum made flatter by
    `excitation_iterations`: flat scores a lower LSD, Gaussian sounds as rough as music does. Scaled by the envelope
    it is a usable vocoder without training; the network starts at zero and learns a correction. One inverse STFT
    makes the waveform, as in Vocos (Siuzdak 2023).
    """

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 256,
        num_layers: int = 5,
        kernel_size: int = 7,
        expansion: int = 3,
        excitation_frames: int = 1024,
        excitation_iterations: int = 0,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv1d(N_MELS, hidden_size, kernel_size, padding=kernel_size // 2)
        self.blocks = nn.ModuleList(ConvNeXtBlock(hidden_size, kernel_size, expansion) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, 2 * _BINS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        excitation = flat_noise(excitation_frames * HOP_LENGTH, excitation_iterations)
        self.register_buffer("excitation", excitation, persistent=False)  # seeded: no need to store it

    def forward(self, log_mel: torch.Tensor, first_frame: int = 0) -> torch.Tensor:
        """Waveform `[batch, 480 * frames]` of a log-mel `[batch, 1, frames, 256]`.

        `first_frame` is where in the loop the excitation starts; overlapping chunks can share it.
        """
        frames = log_mel.shape[2]
        hidden = normalise(log_mel[:, 0].transpose(1, 2))  # (B, 256, T)
        hidden = self.embed(hidden.to(self.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        gain, phase = self.head(self.norm(hidden.transpose(1, 2))).float().chunk(2, dim=-1)
        magnitude = torch.exp(envelope(log_mel[:, 0].float()) + gain.clamp(max=4.0))
        spectrum = self._excitation_spectrum(first_frame, frames) * torch.polar(magnitude, phase)
        return istft_same(spectrum)

    def _excitation_spectrum(self, first_frame: int, frames: int) -> torch.Tensor:
        """STFT `[frames, 1025]` of the looped excitation from a frame on, aligned as the front end's frames."""
        index = torch.arange(-FRAME_PAD, frames * HOP_LENGTH + FRAME_PAD, device=self.excitation.device)
        loop = self.excitation.float()[(index + first_frame * HOP_LENGTH) % len(self.excitation)]
        return stft(loop)


def flat_noise(samples: int, iterations: int, seed: int = 0) -> torch.Tensor:
    """Circular noise `[samples]` with a mean STFT magnitude of one, flattened by Griffin and Lim's (1984) iterations.

    Zero iterations leave Gaussian noise, whose bins scatter by 5.6 dB as music's do; each iteration takes some of that
    scatter, and with it distance to any other signal's scatter, but also the texture.
    """
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(samples).astype(np.float32))
    edge = N_FFT
    for _ in range(iterations):
        spectrum = stft(torch.cat([noise[-edge:], noise, noise[: edge + HOP_LENGTH]]))
        wav = istft_same(torch.polar(torch.ones_like(spectrum.real), spectrum.angle())[None])[0]
        start = edge - FRAME_PAD  # istft_same drops its padding
        noise = wav[start : start + samples]
    return noise / stft(noise).abs().mean()  # log-mels hold mean magnitudes


def build_vocoder(size: ModelSize) -> nn.Module:
    """The untrained vocoder of a model size."""
    if size.prior:
        return IstftVocoder(**size.vocoder)
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig  # slow to import, and only AudioSR needs it

    return SpeechT5HifiGan(SpeechT5HifiGanConfig(**size.vocoder))


@stage("vocoder")
def vocode(vocoder: nn.Module, log_mel: torch.Tensor, first_frame: int = 0, tile_frames: int = 256) -> torch.Tensor:
    """Waveform `[batch, 480 * frames]`, float32, of a log-mel `[batch, 1, frames, 256]` with either vocoder.

    HiFi-GAN holds hundreds of values a sample: it runs over tiles of `tile_frames` with all the context that its
    convolutions see, so that memory is bounded and the result the same. Its odd upsampling rate adds 16 samples, which
    are dropped here.
    """
    if isinstance(vocoder, IstftVocoder):
        return vocoder(log_mel, first_frame)
    frames, context = log_mel.shape[2], receptive_frames(vocoder.config.to_dict())
    tiles = []
    for start in range(0, frames, tile_frames):
        stop, lead = min(start + tile_frames, frames), min(start, context)
        wav = _hifigan(vocoder, log_mel[:, 0, start - lead : stop + context])
        tiles.append(wav[:, lead * HOP_LENGTH : (lead + stop - start) * HOP_LENGTH])
    return torch.cat(tiles, dim=1)


def receptive_frames(hifigan: Mapping[str, Any]) -> int:
    """Frames on either side that a frame of HiFi-GAN's output depends on, from the arguments of its configuration."""
    blocks = zip(hifigan["resblock_kernel_sizes"], hifigan["resblock_dilation_sizes"], strict=True)
    widest = max((kernel - 1) // 2 * (sum(dilations) + len(dilations)) for kernel, dilations in blocks)
    reach, rate = 3.0, 1  # of the first convolution, frames; values a frame
    for stride, kernel in zip(hifigan["upsample_rates"], hifigan["upsample_kernel_sizes"], strict=True):
        reach += kernel / stride / rate
        rate *= stride
        reach += widest / rate
    return math.ceil(reach + 3 / rate)


def _hifigan(vocoder: nn.Module, log_mel: torch.Tensor) -> torch.Tensor:
    """SpeechT5HifiGan's forward on `[batch, frames, 256]`, its first and last convolution in float32.

    In bfloat16 those two would round the log-mel and the waveform itself to eight bits, for no gain in time.
    """
    dtype, count = vocoder.conv_pre.weight.dtype, vocoder.num_kernels
    hidden = _conv_float32(vocoder.conv_pre, log_mel.transpose(1, 2)).to(dtype)
    for level, upsample in enumerate(vocoder.upsampler):
        hidden = upsample(F.leaky_relu(hidden, vocoder.config.leaky_relu_slope))
        mixed = torch.zeros_like(hidden)
        for block in vocoder.resblocks[level * count : (level + 1) * count]:
            mixed += block(hidden)
        hidden = mixed / count
    return torch.tanh(_conv_float32(vocoder.conv_post, F.leaky_relu(hidden)))[:, 0]


def _conv_float32(conv: nn.Conv1d, values: torch.Tensor) -> torch.Tensor:
    return F.conv1d(values.float(), conv.weight.float(), conv.bias.float(), padding=conv.padding)
