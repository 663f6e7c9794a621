"""Baselines: each does what its name says, better than nothing."""

import math

import numpy as np
import pytest

from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import baselines, limits, metrics
from srlib.measure.lsd import Spectra

SAMPLE_RATE = 48000


def lsd_19k(reference, estimate):
    return metrics.lsd(reference, estimate, convention="plain", f_high=19000)


@pytest.mark.parametrize("name", list(baselines.BLIND))
@pytest.mark.parametrize("samples", [1, 100, 5000, 48000])
def test_blind_baselines_keep_length_and_type_and_leave_their_input(name, samples, coloured):
    wav = coloured(1.0)[:samples]
    before = wav.copy()
    for cutoff_hz in (4000, None):
        restored = baselines.BLIND[name](wav, SAMPLE_RATE, cutoff_hz, 0)
        assert restored.shape == wav.shape and restored.dtype == np.float32 and np.isfinite(restored).all()
        np.testing.assert_array_equal(restored, baselines.BLIND[name](wav, SAMPLE_RATE, cutoff_hz, 0))
    np.testing.assert_array_equal(wav, before)
    silence = baselines.BLIND[name](np.zeros(samples, np.float32), SAMPLE_RATE, 4000, 0)
    assert np.abs(silence).max() < 1e-6


@pytest.mark.parametrize("cutoff_hz", [2000, 4000, 8000, 16000])
def test_band_replication_goes_on_at_the_level_of_the_band_below(cutoff_hz):
    reference = (0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
    degraded = Degradation(cutoff_hz, "boxcar").apply(reference, SAMPLE_RATE)
    flat = baselines.band_replication(degraded, SAMPLE_RATE, cutoff_hz, tilt_db_per_octave=0.0)
    assert metrics.level_high_db(reference, flat, 1.05 * cutoff_hz) == pytest.approx(0, abs=0.3)
    assert metrics.snr_low_db(reference, flat, 0.95 * cutoff_hz) > 35
    assert lsd_19k(reference, flat) == pytest.approx(0.79 * math.sqrt(1 - cutoff_hz / 19000), abs=0.06)
    tilted = baselines.band_replication(degraded, SAMPLE_RATE, cutoff_hz, tilt_db_per_octave=-12.0)
    power = Spectra(tilted[None]).power[0].mean(axis=0)
    octave = [power[int(f * 2048 / SAMPLE_RATE) - 5 :][:10].mean() for f in (1.1 * cutoff_hz, 1.3 * cutoff_hz)]
    assert 10 * math.log10(octave[1] / octave[0]) == pytest.approx(-12 * math.log2(1.3 / 1.1), abs=0.6)


def test_band_replication_beats_the_unprocessed_input(coloured):
    reference = coloured()
    degraded = Degradation(4000).apply(reference, SAMPLE_RATE)
    restored = baselines.band_replication(degraded, SAMPLE_RATE, 4000)
    assert lsd_19k(reference, restored) < 0.5 * lsd_19k(reference, degraded)
    assert not np.array_equal(restored, baselines.band_replication(degraded, SAMPLE_RATE, 4000, seed=1))


def test_wiener_takes_white_noise_away_and_leaves_clean_audio(notes):
    reference = notes()
    degradation = Degradation(noise_type="white", noise_amplitude=0.02)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    restored = baselines.wiener(degraded, SAMPLE_RATE)
    assert metrics.si_sdr_db(reference, restored) > metrics.si_sdr_db(reference, degraded) + 4
    clean = Degradation(8000).apply(reference, SAMPLE_RATE)
    assert metrics.snr_db(clean, baselines.wiener(clean, SAMPLE_RATE)) > 40


@pytest.mark.parametrize("tone_hz", [150.0, 1234.5, 5000.0, 14321.0])
def test_notch_finds_and_removes_a_tone(tone_hz, notes):
    reference = notes()
    degradation = Degradation(noise_type="tone", noise_amplitude=0.2, tone_hz=tone_hz, seed=1)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    restored = baselines.notch(degraded, SAMPLE_RATE)
    assert metrics.tone_suppression_db(reference, restored, tone_hz, 0.2) > 30
    assert metrics.snr_db(reference, restored) > metrics.snr_db(reference, degraded) + 6


def test_notch_leaves_audio_without_a_tone_alone(coloured, notes):
    for wav in (notes(), coloured(), Degradation(4000).apply(notes(), SAMPLE_RATE)):
        np.testing.assert_array_equal(baselines.notch(wav, SAMPLE_RATE), wav)


def test_ridge_is_least_squares_and_learns_the_missing_band(coloured):
    degradation = Degradation(4000)
    tracks = [coloured(3.0, seed) for seed in range(6)]
    pairs = [(degradation.apply(wav, SAMPLE_RATE), wav) for wav in tracks]
    ridge = baselines.Ridge.fit(pairs[:5], penalty=10.0)
    stacked = [np.concatenate([_frames(pair[side]) for pair in pairs[:5]]) for side in (0, 1)]
    features = np.concatenate([stacked[0], np.ones((len(stacked[0]), 1))], axis=1)
    rows = np.concatenate([features, math.sqrt(10.0) * np.eye(257)[:256]])  # the penalty as further data
    expected = np.linalg.lstsq(rows, np.concatenate([stacked[1], np.zeros((256, 256))]), rcond=None)[0]
    np.testing.assert_allclose(features @ ridge.weights, features @ expected, atol=1e-3)

    degraded, reference = pairs[5]
    restored = ridge.restore(degraded, degradation)
    assert lsd_19k(reference, restored) < 1.15 * lsd_19k(reference, limits.oracle(reference, degraded, degradation))
    assert metrics.snr_low_db(degraded, restored, 3900) > 50


def _frames(wav):
    """The same log-mel, from librosa's filter bank."""
    librosa = pytest.importorskip("librosa")
    bank = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=2048, n_mels=256, fmin=20, fmax=24000)
    magnitude = np.abs(limits.spectrum_of(wav))
    return np.log(np.maximum(magnitude @ bank.T, 1e-5))


def test_ridge_takes_noise_away(notes):
    degradations = [Degradation(8000, noise_type="white", noise_amplitude=0.02, seed=seed) for seed in range(4)]
    wavs = [notes(2.0, d.seed) for d in degradations]
    pairs = [(d.apply(wav, SAMPLE_RATE), wav) for d, wav in zip(degradations, wavs, strict=True)]
    ridge = baselines.Ridge.fit(pairs[:3])
    degraded, reference = pairs[3]
    assert lsd_19k(reference, ridge.restore(degraded, degradations[3])) < 0.7 * lsd_19k(reference, degraded)


def test_wrong_input_is_refused(coloured):
    wav = coloured(0.2)
    with pytest.raises(SrlibError, match="48000"):
        limits.oracle(wav, wav, Degradation(4000), sample_rate=44100)
    with pytest.raises(SrlibError, match="resample"):
        baselines.band_replication(wav, 16000, 4000)
    with pytest.raises(SrlibError, match="at least one pair"):
        baselines.Ridge.fit([])
