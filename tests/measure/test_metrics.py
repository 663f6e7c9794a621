"""Metrics against closed forms and known limits of their definitions."""

import math

import numpy as np
import pytest

from srlib import degrade
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import metrics
from srlib.measure.lsd import Spectra

SAMPLE_RATE = 48000


def noise(seconds=1.0, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def test_snr_closed_forms():
    wav = noise()
    assert metrics.snr_db(wav, 0.9 * wav) == pytest.approx(20, abs=1e-3)
    assert metrics.snr_db(wav, 0 * wav) == pytest.approx(0)
    assert metrics.snr_db(wav, wav) == math.inf
    assert metrics.snr_db(noise(10, 1), noise(10, 1) + noise(10, 2, 0.01)) == pytest.approx(20, abs=0.05)
    assert metrics.snr_db(0 * wav, wav) == -math.inf
    assert math.isnan(metrics.snr_db(0 * wav, 0 * wav))


def test_si_sdr_closed_forms():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    target, other = np.sin(2 * np.pi * 1000 * time), np.cos(2 * np.pi * 1000 * time)  # orthogonal
    for scale in (0.1, 1.0, -3.0):
        assert metrics.si_sdr_db(target, scale * (target + 0.1 * other)) == pytest.approx(20, abs=1e-6)
    assert metrics.si_sdr_db(target, other) < -100
    assert metrics.si_sdr_db(target, 0.3 * target) > 200
    assert math.isnan(metrics.si_sdr_db(0 * target, target))


def test_snr_low_sees_only_what_lies_below(harmonics):
    wav = harmonics()
    above = Degradation(8000, "boxcar").apply(noise(2, 5), SAMPLE_RATE)
    above = noise(2, 5) - above  # noise above 8 kHz only
    assert metrics.snr_low_db(wav, wav + above, 7900) > 40
    assert metrics.snr_db(wav, wav + above) < 20
    assert metrics.snr_low_db(wav, 0.9 * wav, 4000) == pytest.approx(20, abs=1e-3)


def test_level_high_is_the_power_ratio_above():
    wav = noise(2)
    low = Degradation(8000, "boxcar").apply(wav, SAMPLE_RATE)
    for gain in (0.5, 2.0):
        quieter = low + gain * (wav - low)
        assert metrics.level_high_db(wav, quieter, 8100) == pytest.approx(20 * math.log10(gain), abs=1e-3)
        assert metrics.level_high_db(wav, quieter, 100) < 20 * abs(math.log10(gain)) - 1
    assert metrics.level_high_db(wav, 0 * wav, 8100) == -math.inf


def test_texture_is_one_for_equal_statistics_and_falls_with_blur():
    reference = noise(4, 1)
    assert metrics.texture_high(reference, reference, 8000) == pytest.approx(1)
    assert metrics.texture_high(reference, noise(4, 2), 8000) == pytest.approx(1, abs=0.01)
    assert metrics.texture_high(reference, 0.01 * noise(4, 2), 8000) == pytest.approx(
        1, abs=0.01
    )  # level is not texture
    assert metrics.texture_high(reference, 0 * reference, 8000) == 0  # flat at the floor
    spectrum = degrade.stft(noise(4, 2).astype(np.float64))
    blurred = spectrum / np.abs(spectrum) * np.abs(spectrum).mean()  # one magnitude everywhere, as far as an STFT can
    assert metrics.texture_high(reference, degrade.istft(blurred, len(reference)), 8000) < 0.8
    assert math.isnan(metrics.texture_high(reference, reference, 20000))  # nothing between there and 19 kHz


def test_tone_suppression_closed_forms(harmonics):
    reference = harmonics()
    degradation = Degradation(noise_type="tone", noise_amplitude=0.2, tone_hz=3210.0, seed=4)
    tone = degradation.apply(np.zeros_like(reference), SAMPLE_RATE)
    measure = lambda wav: metrics.tone_suppression_db(reference, wav, 3210.0, 0.2)  # noqa: E731
    assert measure(reference + tone) == pytest.approx(0, abs=0.01)
    assert measure(reference + 0.01 * tone) == pytest.approx(40, abs=0.1)
    assert measure(reference - 0.1 * tone) == pytest.approx(20, abs=0.01)
    shifted = Degradation(noise_type="tone", noise_amplitude=0.002, tone_hz=3210.0, seed=9)
    assert measure(shifted.apply(reference, SAMPLE_RATE)) == pytest.approx(40, abs=0.1)  # any phase counts
    assert measure(reference + noise(2, 6, 0.01)) > 45  # noise has little at one frequency
    assert measure(reference) > 200


def test_log_mel_l1(harmonics):
    wav = harmonics()
    assert metrics.log_mel_l1(wav, wav) == 0
    assert metrics.log_mel_l1(wav, 0.5 * wav) == pytest.approx(math.log(2), abs=0.02)
    assert metrics.log_mel_l1(wav[:10], 0.5 * wav[:10]) > 0  # shorter than a window
    assert metrics.log_mel_l1(wav, 0.5 * wav, 44100) == pytest.approx(math.log(2), abs=0.1)


def test_bootstrap_interval_of_the_mean():
    values = np.random.default_rng(0).standard_normal(50)
    low, high = metrics.bootstrap_ci(values)
    half = 1.96 * values.std() / math.sqrt(50)  # the normal approximation
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert metrics.bootstrap_ci(values) == (low, high)
    assert metrics.bootstrap_ci([2.0]) == (2.0, 2.0)
    for wrong in ([], [1.0, math.nan], [[1.0]]):
        with pytest.raises(SrlibError):
            metrics.bootstrap_ci(wrong)


ALWAYS = {"lsd", "lsd_19k", "lsd_ssr_eval", "snr_db", "si_sdr_db", "log_mel_l1"}
BANDS = {"lsd_low", "lsd_high", "snr_low_db", "level_high_db", "texture_high"}


def test_evaluate_keys(harmonics):
    reference = harmonics(1.0)
    degradation = Degradation(4000, noise_type="tone", noise_amplitude=0.1, tone_hz=1000.0)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    assert set(metrics.evaluate(reference, degraded)) == ALWAYS
    assert set(metrics.evaluate(reference, degraded, cutoff_hz=4000)) == ALWAYS | BANDS
    recorded = ALWAYS | BANDS | {"snr_known_db", "tone_suppression_db"}
    assert set(metrics.evaluate(reference, degraded, degradation=degradation)) == recorded
    gains = {f"{name}_gain" for name in ALWAYS}
    assert set(metrics.evaluate(reference, degraded, degraded=degraded)) == ALWAYS | gains
    everything = metrics.evaluate(reference, degraded, degraded=degraded, degradation=degradation)
    gains |= {f"{name}_gain" for name in BANDS - {"level_high_db", "texture_high"}}
    assert set(everything) == recorded | gains | {"oracle_lsd_19k", "oracle_ratio"}
    assert all(everything[name] == 0 for name in gains)
    assert all(type(value) is float for value in everything.values())


def test_evaluate_values(harmonics):
    """0.9 times the reference is at an SNR of 20 dB, and at the same LSD in every band."""
    reference = harmonics(1.0)
    degradation = Degradation(4000, "butter", 4, noise_type="white", noise_amplitude=0.02)
    known = {"degraded": degradation.apply(reference, SAMPLE_RATE), "degradation": degradation}
    scores = metrics.evaluate(reference, 0.9 * reference, **known)
    for name in ("lsd", "lsd_19k", "lsd_ssr_eval", "lsd_low", "lsd_high"):
        assert scores[name] == pytest.approx(-2 * math.log10(0.9), abs=2e-3)
    assert scores["snr_db"] == pytest.approx(20, abs=1e-3) and scores["snr_low_db"] == pytest.approx(20, abs=1e-3)
    assert scores["level_high_db"] == pytest.approx(20 * math.log10(0.9), abs=1e-3)
    assert scores["texture_high"] == pytest.approx(1, abs=0.01)
    before = metrics.evaluate(reference, known["degraded"])
    assert scores["snr_db_gain"] == pytest.approx(20 - before["snr_db"], abs=1e-3)
    assert scores["lsd_19k_gain"] == pytest.approx(before["lsd_19k"] - scores["lsd_19k"])
    assert scores["oracle_ratio"] == pytest.approx(scores["lsd_19k"] / scores["oracle_lsd_19k"])
    kept = Spectra(np.atleast_2d(reference))
    for _ in range(2):  # what is computed once serves again
        assert metrics.evaluate(kept, 0.9 * reference, **known) == scores
    again = metrics.evaluate(reference, 0.9 * reference, oracle_lsd_19k=2.0, **known)
    assert again["oracle_ratio"] == scores["lsd_19k"] / 2


def test_a_filters_own_ripple_is_not_held_against_the_system(harmonics):
    reference = harmonics()
    degradation = Degradation(8000)  # 0.2 dB of ripple
    scores = metrics.evaluate(reference, degradation.apply(reference, SAMPLE_RATE), degradation=degradation)
    assert scores["snr_low_db"] < 40 and scores["snr_known_db"] == math.inf
    assert metrics.evaluate(reference, reference, degradation=degradation)["snr_low_db"] == math.inf


def test_evaluate_stereo_and_noise_without_a_filter(harmonics):
    reference = np.stack([harmonics(1.0), 0.5 * harmonics(1.0)])
    degradation = Degradation(noise_type="white", noise_amplitude=0.02)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    scores = metrics.evaluate(reference, degraded[:, :-50], degraded=degraded, degradation=degradation)
    assert 0 < scores["oracle_lsd_19k"] < scores["lsd_19k"]
    assert not set(scores) & BANDS
    with pytest.raises(SrlibError):
        metrics.evaluate(reference, degraded, cutoff_hz=24000)


def test_a_cutoff_beside_the_record_of_noise_alone(harmonics):
    """What was filtered by hand and then degraded on record: the oracle is told of the cutoff as the bands are."""
    reference = harmonics(1.0)
    noisy, both = (Degradation(cut, "boxcar", noise_type="white", noise_amplitude=0.01) for cut in (None, 4000))
    degraded = both.apply(reference, SAMPLE_RATE)
    known = {"degraded": degraded, "sample_rate": SAMPLE_RATE}
    scores = metrics.evaluate(reference, reference, degradation=noisy, cutoff_hz=4000, **known)
    recorded = metrics.evaluate(reference, reference, degradation=both, **known)
    assert scores["oracle_lsd_19k"] == recorded["oracle_lsd_19k"]
    assert "snr_known_db" not in scores  # nobody recorded the filter
    with pytest.raises(SrlibError, match="4000 Hz"):
        metrics.evaluate(reference, reference, degradation=both, cutoff_hz=8000)


def test_stereo_width_of_noise_has_a_closed_form():
    left, right = np.random.default_rng(0).standard_normal((2, 48_000))
    for share, correlation in ((0.0, 0.0), (0.6, 0.6), (-1.0, -1.0), (1.0, 1.0)):
        pair = np.stack([left, share * left + np.sqrt(1 - share**2) * right])
        found = metrics.stereo_high(pair, 8000.0)
        assert found["correlation"] == pytest.approx(correlation, abs=0.02)
        expected_db = 10 * np.log10((1 + correlation) / 2) if correlation > -1 else -np.inf
        assert found["mono_sum_db"] == pytest.approx(expected_db, abs=0.1)
        louder = metrics.stereo_high(pair * [[3], [0.1]], 8000.0)
        assert louder["correlation"] == pytest.approx(found["correlation"], abs=1e-6)
