"""Limits: the oracle and the ideal Wiener gain are what they claim to be."""

import math

import numpy as np
import pytest
from scipy import signal

from srlib.degrade import Degradation
from srlib.measure import baselines, limits, metrics

SAMPLE_RATE = 48000


def coloured(seconds=3.0, seed=0):
    """Noise of -6 dB per octave whose level moves: Rayleigh fine structure under a changing envelope."""
    samples = int(seconds * SAMPLE_RATE)
    wav = signal.lfilter([0.02], [1, -0.97], np.random.default_rng(seed).standard_normal(samples))
    return (wav * (1.2 + np.sin(2 * np.pi * 2 * np.arange(samples) / SAMPLE_RATE))).astype(np.float32)


def notes(seconds=3.0, seed=0):
    """Decaying harmonic notes with rests between their partials: what noise reduction can tell from noise."""
    rng, time = np.random.default_rng(seed), np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wav = np.zeros_like(time)
    for start in np.arange(0, seconds, 0.25):
        held = np.clip(time - start, 0, None)
        pitch = 110 * 2 ** (rng.integers(24) / 12)
        note = sum(np.sin(2 * np.pi * pitch * k * held) / k for k in range(1, 12))
        wav += (time >= start) * np.exp(-6 * held) * note
    return (0.1 * wav).astype(np.float32)


def lsd_19k(reference, estimate):
    return metrics.lsd(reference, estimate, convention="plain", f_high=19000)


@pytest.mark.parametrize("cutoff_hz", [4000, 8000])
def test_oracle_of_rayleigh_audio_is_the_limit_of_two_independent_rayleigh_bins(cutoff_hz):
    reference = coloured(5.0)
    degradation = Degradation(cutoff_hz)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    limit = limits.oracle(reference, degraded, degradation)
    missing = 1 - degradation.passband_hz(SAMPLE_RATE) / 19000  # share of bins up to 19 kHz
    assert lsd_19k(reference, limit) == pytest.approx(0.79 * math.sqrt(missing), rel=0.05)
    assert abs(metrics.level_high_db(reference, limit, degradation.stopband_hz(SAMPLE_RATE))) < 0.5
    assert metrics.texture_high(reference, limit, degradation.stopband_hz(SAMPLE_RATE)) == pytest.approx(1, abs=0.05)
    assert metrics.snr_low_db(degraded, limit, 0.97 * cutoff_hz) > 50  # clean: as it is
    np.testing.assert_array_equal(limit, limits.oracle(reference, degraded, degradation))


@pytest.mark.parametrize("noise", [{"noise_type": "white", "noise_amplitude": 0.02},
                                   {"noise_type": "tone", "noise_amplitude": 0.2, "tone_hz": 3000.0}])  # fmt: skip
def test_oracle_takes_noise_away_where_that_is_better(noise):
    reference = notes()
    for degradation in (Degradation(8000, **noise), Degradation(**noise)):
        degraded = degradation.apply(reference, SAMPLE_RATE)
        limit = limits.oracle(reference, degraded, degradation)
        assert lsd_19k(reference, limit) < 0.6 * lsd_19k(reference, degraded)
        assert metrics.snr_low_db(reference, limit, 8000) > metrics.snr_low_db(reference, degraded, 8000) + 3


def test_oracle_fills_gaps_at_the_level_of_the_reference():
    reference = coloured()
    degradation = Degradation(8000, gaps=((1.0, 1.25),))
    limit = limits.oracle(reference, degradation.apply(reference, SAMPLE_RATE), degradation)
    inside = slice(int(1.02 * SAMPLE_RATE), int(1.23 * SAMPLE_RATE))
    assert 20 * np.log10(limit[inside].std() / reference[inside].std()) == pytest.approx(0, abs=2)


def test_oracle_of_silence_is_silence():
    silence = np.zeros(SAMPLE_RATE, np.float32)
    assert np.abs(limits.oracle(silence, silence, Degradation(4000))).max() < 1e-6


def test_the_ideal_wiener_gain_is_the_limit_of_gains(music):
    clean = 0.3 * music
    noisy = Degradation(noise_type="white", noise_amplitude=0.02).apply(clean, SAMPLE_RATE)
    ideal, blind = limits.ideal_wiener(clean, noisy), baselines.wiener(noisy, SAMPLE_RATE)
    assert metrics.snr_db(clean, ideal) > metrics.snr_db(clean, blind) > metrics.snr_db(clean, noisy)
    assert metrics.snr_db(music, limits.ideal_wiener(music, music)) > 100
