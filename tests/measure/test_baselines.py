"""Baselines: each does what its name says, better than nothing."""

import math

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.measure import baselines, limits
from srlib.measure.conditions import Case, draw
from srlib.measure.lsd import PLAIN, Spectra, lsd
from srlib.measure.metrics import si_sdr_db, snr_db, snr_low_db, tone_suppression_db

WHITE = {"noise_type": "white", "noise_amplitude": 0.02}
BLIND = {"replication": lambda wav: baselines.band_replication(wav, 4000), "wiener": baselines.wiener,
         "notch": baselines.notch}  # fmt: skip


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("samples", [1, 48000])
def test_blind_baselines_keep_length_and_type_and_leave_silence(name, samples, coloured):
    restored = BLIND[name](coloured(1.0)[:samples])
    assert restored.shape == (samples,) and restored.dtype == np.float32 and np.isfinite(restored).all()
    assert np.abs(BLIND[name](np.zeros(samples, np.float32))).max() < 1e-6


@pytest.mark.parametrize("cutoff_hz", [2000, 8000, 16000])
def test_band_replication_goes_on_at_the_level_of_the_band_below(cutoff_hz):
    reference = (0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
    degraded = Degradation(cutoff_hz, "boxcar").apply(reference, SAMPLE_RATE)
    restored = baselines.band_replication(degraded, cutoff_hz)
    assert snr_low_db(reference, restored, 0.95 * cutoff_hz) > 35
    slope, source = baselines.TILT_DB_PER_OCTAVE[cutoff_hz], np.linspace(2**-0.5, 0.99, 1000)
    for ratio in (1.1, 1.3):  # a line of that slope through the mean of the logs of the half octave below
        band = ratio * cutoff_hz - 100, ratio * cutoff_hz + 100
        level_db = 10 * math.log10(Spectra(restored[None]).power(*band) / Spectra(reference[None]).power(*band))
        assert level_db == pytest.approx(slope * (math.log2(ratio) - np.log2(source).mean()), abs=0.8)
    np.testing.assert_array_equal(baselines.band_replication(degraded, None), degraded)


def test_wiener_takes_white_noise_away_and_leaves_clean_audio(music):
    reference = 0.3 * music
    degraded = Degradation(**WHITE).apply(reference, SAMPLE_RATE)
    assert si_sdr_db(reference, baselines.wiener(degraded)) > si_sdr_db(reference, degraded) + 2
    clean = Degradation(8000).apply(reference, SAMPLE_RATE)
    assert snr_db(clean, baselines.wiener(clean)) > 40


@pytest.mark.parametrize("tone_hz", [1234.5, 14321.0])
def test_notch_removes_a_tone_and_leaves_audio_without_one(tone_hz, music):
    degraded = Degradation(noise_type="tone", noise_amplitude=0.2, tone_hz=tone_hz, seed=1).apply(music, SAMPLE_RATE)
    assert tone_suppression_db(music, baselines.notch(degraded), tone_hz, 0.2) > 30
    np.testing.assert_array_equal(baselines.notch(music), music)


@pytest.mark.parametrize(("noise", "bound"), [({}, 0.35), (WHITE, 0.6)], ids=["clean", "white"])
def test_ridge_learns_the_missing_band_and_takes_noise_away(coloured, noise, bound):
    clips = {str(seed): coloured(3.0, seed) / 3 for seed in range(6)}
    recipe, reference = {"cutoff_hz": 4000, **noise}, clips.pop("5")
    case = Case("5", "it", reference, draw(recipe, "5"))
    restored = baselines.ridge({"it": baselines.fit_ridge(recipe, clips)}, case)
    limit = limits.oracle(reference, case.degraded, case.degradation)
    found, before, best = (lsd(reference, wav, convention=PLAIN) for wav in (restored, case.degraded, limit))
    assert found < bound * before
    if not noise:
        assert found < 1.2 * best and snr_low_db(case.degraded, restored, 3900) > 50


@pytest.mark.parametrize("fill", [baselines.repetition, baselines.interpolation])
def test_gaps_in_steady_noise_are_filled_as_well_as_noise_can(fill):
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    degradation = Degradation(gaps=((1.0, 1.2),))
    degraded = degradation.apply(noise, SAMPLE_RATE)
    filled, gap = fill(degraded, degradation), degraded == 0
    np.testing.assert_array_equal(filled[~gap], noise[~gap])
    assert lsd(noise[gap], filled[gap], convention="plain") < 0.9  # two independent noises: 0.79
    assert filled[gap].std() == pytest.approx(0.1, rel=0.15)
