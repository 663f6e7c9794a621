"""The merges on signals whose right answer is known: what must be kept, what must go, what must be filled."""

import numpy as np
import pytest
import torch

from srlib.degrade import Degradation
from srlib.mel import band_edges_hz
from srlib.merge import (
    FULL_BAND,
    Band,
    frames_of,
    merge,
    replace_mel,
)

SAMPLE_RATE = 48000
SAMPLES = 96000


def white(level, seed, samples=SAMPLES):
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def band_snr_db(reference, estimate, low_hz, high_hz):
    """SNR inside a band, from windowed spectra so that other bands do not leak in."""
    window = torch.hann_window(8192)
    spectra = [
        torch.stft(wav, 8192, 4096, window=window, center=False, return_complex=True)
        for wav in (reference, estimate - reference)
    ]
    freqs_hz = torch.linspace(0, 24000, 4097)
    inside = (freqs_hz >= low_hz) & (freqs_hz <= high_hz)
    power, error = (float((spectrum[inside].abs() ** 2).sum()) for spectrum in spectra)
    return 10 * np.log10(power / max(error, 1e-30))


@pytest.fixture(scope="module")
def clip(music):
    return torch.from_numpy(music[:SAMPLES].copy())


@pytest.fixture(scope="module")
def degraded(clip):
    return torch.from_numpy(Degradation(8000).apply(clip.numpy(), SAMPLE_RATE))


BAND = Band(8000, 8560)


def test_generated_share_is_a_cosine_from_known_to_missing():
    share = BAND.generated_share(torch.tensor([0.0, 7999.0, 8000.0, 8280.0, 8560.0, 20000.0]))
    torch.testing.assert_close(share, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]))
    assert FULL_BAND.generated_share(torch.linspace(0, 24000, 1025)).abs().max() == 0
    assert Band.at(4000).known_hz == 4000
    assert Band.at(4000).missing_hz > 4000


@pytest.mark.parametrize("mode", ["gain", "replace"])
def test_full_band_without_noise_comes_back_to_the_bit(degraded, mode):
    assert torch.equal(merge(white(0.1, 0), degraded, FULL_BAND, mode), degraded)


def test_a_gain_scales_the_known_band_and_nothing_else(degraded):
    generated, frames = white(0.1, 0), frames_of(degraded)
    untouched = merge(generated, degraded, BAND, "gain", torch.ones(frames, 1025))
    torch.testing.assert_close(untouched, merge(generated, degraded, BAND, "gain"), atol=1e-6, rtol=0)
    halved = merge(generated, degraded, BAND, "gain", torch.full((frames, 1025), 0.5))
    assert band_snr_db(0.5 * degraded, halved, 0, BAND.known_hz - 100) > 60
    assert band_snr_db(generated, halved, BAND.missing_hz + 100, 24000) > 40


@pytest.mark.parametrize("mode", ["gain", "replace"])
def test_low_band_is_the_degraded_one_and_high_band_the_generated_one(degraded, mode):
    generated = white(0.1, 0)
    restored = merge(generated, degraded, BAND, mode)
    assert band_snr_db(degraded, restored, 0, BAND.known_hz - 100) > 60
    assert band_snr_db(generated, restored, BAND.missing_hz + 100, 24000) > 40


def test_none_is_all_generated(degraded):
    generated = white(0.1, 0)
    assert torch.equal(merge(generated, degraded, BAND, "none"), generated)


def test_merge_fills_gaps_with_the_generated_audio(degraded):
    generated = white(0.1, 0)
    gapped = degraded.clone()
    gapped[24000:36000] = 0
    restored = merge(generated, gapped, FULL_BAND, "gain", gaps=((0.5, 0.75),))
    torch.testing.assert_close(restored[25200:34800], generated[25200:34800], atol=1e-5, rtol=0)
    outside = torch.cat([torch.arange(24000), torch.arange(36000, SAMPLES)])
    assert torch.equal(restored[outside], gapped[outside])


@pytest.mark.parametrize("samples", [1, 479, 481, 5000])
@pytest.mark.parametrize("mode", ["gain", "replace", "none"])
def test_every_length_is_kept(mode, samples):
    restored = merge(white(0.1, 0, samples), white(0.1, 1, samples), BAND, mode)
    assert restored.shape == (samples,)
    assert torch.isfinite(restored).all()


def test_replace_mel_takes_the_bands_below_the_cutoff():
    restored, degraded = torch.zeros(1, 1, 3, 256), torch.ones(1, 1, 3, 256)
    below = torch.from_numpy(band_edges_hz()[1:-1] <= 8000)
    merged = replace_mel(restored, degraded, BAND)
    assert merged[..., below].min() == 1
    assert merged[..., ~below].max() == 0
