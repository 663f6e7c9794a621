"""The vocoders: exact inversion, exact lengths, and a network that starts as the identity."""

import pytest
import torch
import torch.nn.functional as F

from srlib.audio.stft import istft_same, log_mel, mel_filters, stft
from srlib.config import TINY
from srlib.models.vocoder import build_vocoder, vocode

PAD = 784  # samples that a frame starts before its hop


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vocoder():
    """A tiny vocoder whose network does something."""
    torch.manual_seed(0)
    vocoder = build_vocoder(TINY).eval()
    torch.nn.init.normal_(vocoder.head.weight, std=0.1)
    return vocoder


def test_istft_inverts_the_aligned_stft():
    wav = noise(2, 48000)
    spectra = torch.stack([stft(F.pad(row, (PAD, PAD))) for row in wav])
    assert spectra.shape == (2, 100, 1025)
    torch.testing.assert_close(istft_same(spectra), wav, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 7, 64])
def test_istft_vocoder_gives_480_samples_a_frame_and_loops_its_excitation(vocoder, frames):
    log_mels = noise(2, 1, frames, 256) - 5
    wav = vocode(vocoder, log_mels, first_frame=3)
    assert wav.shape == (2, 480 * frames) and torch.isfinite(wav).all()
    assert torch.equal(wav, vocode(vocoder, log_mels, first_frame=vocoder.config.excitation_frames + 3))


@torch.no_grad()
def test_overlapping_chunks_agree_inside(vocoder):
    log_mels = noise(1, 1, 96, 256) - 5
    whole = vocode(vocoder, log_mels)
    later = vocode(vocoder, log_mels[:, :, 32:], first_frame=32)
    edge = 6 * 480  # the network sees 2 frames around, a sample belongs to at most 5 frames
    torch.testing.assert_close(later[:, edge:-edge], whole[:, 32 * 480 + edge : -edge], atol=1e-5, rtol=0)
    assert (vocode(vocoder, log_mels[:, :, 32:]) - later).abs().max() > 0.01  # the position matters


@torch.no_grad()
def test_without_training_the_level_of_every_band_is_kept():
    area = mel_filters().sum(1).clamp(min=1e-4)  # what a flat spectrum of magnitude one has in each band
    wanted = (-1 + torch.linspace(1, -1, 256) + area.log()).expand(1, 1, 512, 256)
    found = log_mel(vocode(build_vocoder(TINY).eval(), wanted)[0])[0, 0, 8:-8].exp().mean(0).log()
    error = found - wanted[0, 0, 0]
    assert error[20:].abs().max() < 0.2  # a band of one or two bins follows its noise
    assert error[150:].abs().max() < 0.1 and error[20:].mean().abs() < 0.03
