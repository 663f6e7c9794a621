"""The merges on signals whose right answer is known: what must be kept, what must go, what must be filled."""

import math

import numpy as np
import pytest
import torch

from srlib.degrade import Degradation
from srlib.mel import band_edges_hz, log_mel
from srlib.merge import (
    FULL_BAND,
    Band,
    merge,
    noise_gain,
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


def test_gain_merge_of_a_restoration_that_changes_nothing_keeps_the_known_band(degraded):
    mel = log_mel(degraded)[0, 0]
    gain = noise_gain(mel, mel, torch.ones(256))
    assert gain.abs().max() == 0
    restored = merge(white(0.1, 0), degraded, BAND, "gain", gain)
    assert restored.shape == degraded.shape
    assert band_snr_db(degraded, restored, 0, 7900) > 60
    untouched = merge(white(0.1, 0), degraded, FULL_BAND, "gain", gain)
    torch.testing.assert_close(untouched, degraded, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["gain", "replace"])
def test_low_band_is_the_degraded_one_and_high_band_the_generated_one(degraded, mode):
    generated = white(0.1, 0)
    restored = merge(generated, degraded, BAND, mode)
    assert band_snr_db(degraded, restored, 0, BAND.known_hz - 100) > 60
    assert band_snr_db(generated, restored, BAND.missing_hz + 100, 24000) > 40


def test_none_is_all_generated(degraded):
    generated = white(0.1, 0)
    assert torch.equal(merge(generated, degraded, BAND, "none"), generated)


@pytest.mark.parametrize(("level", "at_least_db"), [(0.0005, 0), (0.002, 0), (0.02, 3)])
def test_exact_mels_take_white_noise_out(clip, degraded, level, at_least_db):
    quiet, noisy = 0.1 * clip, 0.1 * degraded + white(level, 1)
    gain = noise_gain(log_mel(quiet)[0, 0], log_mel(noisy)[0, 0], torch.ones(256))
    restored = merge(quiet, noisy, BAND, "gain", gain)
    pasted = merge(quiet, noisy, BAND, "replace")
    before = band_snr_db(quiet, noisy, 0, 7900)
    assert band_snr_db(quiet, restored, 0, 7900) >= before + at_least_db
    assert band_snr_db(quiet, pasted, 0, 7900) == pytest.approx(before, abs=0.1)  # replacement pastes it back


def test_exact_mels_take_a_tone_out(clip, degraded):
    time = torch.arange(SAMPLES, dtype=torch.float64) / SAMPLE_RATE
    quiet, noisy = 0.1 * clip, 0.1 * degraded + (0.1 * torch.sin(2 * torch.pi * 5000 * time)).float()
    gain = noise_gain(log_mel(quiet)[0, 0], log_mel(noisy)[0, 0], torch.ones(256))
    restored = merge(quiet, noisy, BAND, "gain", gain)
    assert band_snr_db(quiet, restored, 0, 7900) > band_snr_db(quiet, noisy, 0, 7900) + 25


def test_noise_gain_only_lowers_and_only_where_told():
    degraded = torch.full((4, 256), -3.0)
    restored = degraded.clone()
    restored[:, :64] -= 2.0  # much lower: noise
    restored[:, 64:128] -= 0.05  # within the model's error: left alone
    restored[:, 128:192] += 2.0  # a gain never amplifies
    restored[:, 192:] -= 2.0
    noisy = torch.ones(256)
    noisy[192:] = 0.0  # lower too, but not believed to be noise
    gain = noise_gain(restored, degraded, noisy)
    torch.testing.assert_close(gain[:, :64], torch.full((4, 64), -2.0))
    assert gain[:, 64:].abs().max() == 0


def test_merge_fills_gaps_with_the_generated_audio(degraded):
    generated = white(0.1, 0)
    gapped = degraded.clone()
    gapped[24000:36000] = 0
    restored = merge(generated, gapped, FULL_BAND, "gain", gaps=((0.5, 0.75),))
    torch.testing.assert_close(restored[24300:35700], generated[24300:35700], atol=1e-5, rtol=0)
    torch.testing.assert_close(restored[:23500], gapped[:23500], atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 479, 481, 5000])
@pytest.mark.parametrize("mode", ["gain", "replace", "none"])
def test_every_length_is_kept(mode, samples):
    restored = merge(white(0.1, 0, samples), white(0.1, 1, samples), BAND, mode, torch.zeros(1, 256))
    assert restored.shape == (samples,)
    assert torch.isfinite(restored).all()


def test_replace_mel_takes_the_bands_below_the_cutoff():
    restored, degraded = torch.zeros(1, 1, 3, 256), torch.ones(1, 1, 3, 256)
    below = torch.from_numpy(band_edges_hz()[1:-1] <= 8000)
    merged = replace_mel(restored, degraded, BAND)
    assert merged[..., below].min() == 1
    assert merged[..., ~below].max() == 0


def test_digital_silence_in_a_clip_leaves_the_noise_gain_as_it_is():
    degraded = torch.full((100, 256), -4.0) + 0.2 * torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    restored, noisy = degraded - 2.0, torch.ones(256)
    silence = torch.full((50, 256), math.log(1e-5))
    alone = noise_gain(restored, degraded, noisy)
    beside = noise_gain(torch.cat([restored, silence]), torch.cat([degraded, silence]), noisy)
    assert alone.median() < -1.5
    torch.testing.assert_close(beside[:100], alone)
