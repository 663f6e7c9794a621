"""The vocoders: exact inversion, exact lengths, and a network that starts as the identity."""

import pytest
import torch
import torch.nn.functional as F

from srlib.audio.stft import envelope, istft_same, log_mel, mel_filters, stft
from srlib.config import AUDIOSR, TINY
from srlib.models.vocoder import IstftVocoder, build_vocoder, flat_noise, vocode

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


@pytest.mark.parametrize("level", [1e-3, 1.0, 30.0])
def test_envelope_of_a_flat_spectrum_is_its_level_in_every_bin(level):
    flat = torch.full((3, 1025), level)
    log_mels = torch.log((flat @ mel_filters().T).clamp(min=1e-5))
    torch.testing.assert_close(envelope(log_mels), torch.log(flat), atol=1e-4, rtol=0)


def test_envelope_follows_a_slope():
    magnitude = torch.exp(torch.linspace(2, -4, 1025))
    log_mels = torch.log(magnitude @ mel_filters().T)
    torch.testing.assert_close(envelope(log_mels)[4:-8], torch.log(magnitude)[4:-8], atol=0.1, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 7, 64])
def test_istft_vocoder_gives_480_samples_a_frame(vocoder, frames):
    wav = vocode(vocoder, noise(2, 1, frames, 256) - 5)
    assert wav.shape == (2, 480 * frames)
    assert torch.isfinite(wav).all()


@torch.no_grad()
def test_hifigan_s_extra_16_samples_are_dropped():
    torch.manual_seed(0)
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    hifigan = SpeechT5HifiGan(SpeechT5HifiGanConfig(**(AUDIOSR.vocoder | {"upsample_initial_channel": 32}))).eval()
    log_mels = noise(1, 1, 12, 256) - 5
    raw = hifigan(log_mels[:, 0])
    assert raw.shape == (1, 480 * 12 + 16)
    assert torch.equal(vocode(hifigan, log_mels), raw[:, : 480 * 12])


@torch.no_grad()
def test_overlapping_chunks_agree_inside(vocoder):
    log_mels = noise(1, 1, 96, 256) - 5
    whole = vocode(vocoder, log_mels)
    later = vocode(vocoder, log_mels[:, :, 32:], first_frame=32)
    edge = 6 * 480  # the network sees 2 frames around, a sample belongs to at most 5 frames
    torch.testing.assert_close(later[:, edge:-edge], whole[:, 32 * 480 + edge : -edge], atol=1e-5, rtol=0)
    elsewhere = vocode(vocoder, log_mels[:, :, 32:])
    assert (elsewhere - later).abs().max() > 0.01  # the position matters


@torch.no_grad()
def test_the_excitation_loops(vocoder):
    loop = vocoder.config.excitation_frames
    log_mels = noise(1, 1, 8, 256) - 5
    assert torch.equal(vocode(vocoder, log_mels, first_frame=3), vocode(vocoder, log_mels, first_frame=loop + 3))


@torch.no_grad()
def test_without_training_the_level_of_every_band_is_kept():
    torch.manual_seed(0)
    vocoder = IstftVocoder(**TINY.vocoder).eval()
    area = mel_filters().sum(1).clamp(min=1e-4)  # what a flat spectrum of magnitude one has in each band
    wanted = (-1 + torch.linspace(1, -1, 256) + area.log()).expand(1, 1, 512, 256)
    found = log_mel(vocode(vocoder, wanted)[0])[0, 0, 8:-8].exp().mean(0).log()  # mean magnitudes of noise
    error = found - wanted[0, 0, 0]
    assert error[20:].abs().max() < 0.2  # a band of one or two bins follows its noise
    assert error[150:].abs().max() < 0.1
    assert error[20:].mean().abs() < 0.03


def circular_magnitudes(wav):
    return stft(torch.cat([wav, wav[:2048]])).abs()


def test_flat_noise_gets_flatter_and_keeps_its_mean_magnitude():
    spreads = []
    for iterations in (0, 2, 8):
        magnitude = circular_magnitudes(flat_noise(64 * 480, iterations))
        assert magnitude.mean() == pytest.approx(1, rel=0.05)
        spreads.append(float((20 * torch.log10(magnitude + 1e-6)).std()))
    assert spreads[0] == pytest.approx(5.57, abs=0.3)  # a Rayleigh magnitude's spread, dB
    assert spreads[2] < 0.75 * spreads[0]
    assert spreads[0] > spreads[1] > spreads[2]
