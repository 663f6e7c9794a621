"""Limits: the oracle and the ideal Wiener gain are what they claim to be."""

import math

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.measure import baselines, limits
from srlib.measure.lsd import PLAIN, lsd
from srlib.measure.metrics import level_high_db, snr_db, snr_low_db, texture_high


@pytest.mark.parametrize("cutoff_hz", [4000, 8000])
def test_oracle_of_rayleigh_audio_is_the_limit_of_two_independent_rayleigh_bins(cutoff_hz, coloured):
    reference, degradation = coloured(5.0), Degradation(cutoff_hz)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    limit = limits.oracle(reference, degraded, degradation)
    missing = 1 - degradation.passband_hz(SAMPLE_RATE) / 19000  # share of bins up to 19 kHz
    assert lsd(reference, limit, convention=PLAIN) == pytest.approx(0.79 * math.sqrt(missing), rel=0.05)
    assert abs(level_high_db(reference, limit, degradation.stopband_hz(SAMPLE_RATE))) < 0.5
    assert texture_high(reference, limit, degradation.stopband_hz(SAMPLE_RATE)) == pytest.approx(1, abs=0.05)
    assert snr_low_db(degraded, limit, 0.97 * cutoff_hz) > 50  # clean: as it is


@pytest.mark.parametrize("noise", [{"noise_type": "white", "noise_amplitude": 0.02},
                                   {"noise_type": "tone", "noise_amplitude": 0.2, "tone_hz": 3000.0}])  # fmt: skip
@pytest.mark.parametrize("cutoff_hz", [8000, None])
def test_oracle_takes_noise_away_where_that_is_better(noise, cutoff_hz, music):
    reference, degradation = 0.3 * music, Degradation(cutoff_hz, **noise)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    limit = limits.oracle(reference, degraded, degradation)
    assert lsd(reference, limit, convention=PLAIN) < 0.9 * lsd(reference, degraded, convention=PLAIN)
    assert snr_low_db(reference, limit, 8000) > snr_low_db(reference, degraded, 8000) + 1


def test_oracle_fills_gaps_at_the_level_of_the_reference(coloured):
    reference, degradation = coloured(), Degradation(8000, gaps=((1.0, 1.25),))
    degraded = degradation.apply(reference, SAMPLE_RATE)
    limit, gap = limits.oracle(reference, degraded, degradation), degraded == 0
    assert 20 * np.log10(limit[gap].std() / reference[gap].std()) == pytest.approx(0, abs=2)


def test_the_ideal_wiener_gain_is_the_limit_of_gains(music):
    clean = 0.3 * music
    noisy = Degradation(noise_type="white", noise_amplitude=0.02).apply(clean, SAMPLE_RATE)
    ideal, blind = limits.ideal_wiener(clean, noisy), baselines.wiener(noisy)
    assert snr_db(clean, ideal) > snr_db(clean, blind) > snr_db(clean, noisy)
    assert snr_db(music, limits.ideal_wiener(music, music)) > 100
