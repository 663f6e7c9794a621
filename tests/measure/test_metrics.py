"""Metrics against closed forms and known limits of their definitions."""

import math

import librosa
import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import metrics


def noise(seconds=1.0, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def test_snr_and_si_sdr_closed_forms():
    wav, time = noise(), np.arange(SAMPLE_RATE) / SAMPLE_RATE
    for estimate, expected in ((0.9 * wav, 20), (0 * wav, 0), (wav, math.inf)):
        assert metrics.snr_db(wav, estimate) == pytest.approx(expected, abs=1e-3)
    assert metrics.snr_db(0 * wav, wav) == -math.inf and math.isnan(metrics.snr_db(0 * wav, 0 * wav))
    target, other = np.sin(2 * np.pi * 1000 * time), np.cos(2 * np.pi * 1000 * time)  # orthogonal
    for scale in (0.1, 1.0, -3.0):
        assert metrics.si_sdr_db(target, scale * (target + 0.1 * other)) == pytest.approx(20, abs=1e-6)
    assert metrics.si_sdr_db(target, other) < -100 and math.isnan(metrics.si_sdr_db(0 * target, target))


def test_bands_see_only_what_lies_in_them(music):
    wav = noise(2)
    low = Degradation(8000, "boxcar").apply(wav, SAMPLE_RATE)
    for gain in (0.5, 2.0):
        changed = low + gain * (wav - low)
        assert metrics.level_high_db(wav, changed, 8100) == pytest.approx(20 * math.log10(gain), abs=1e-3)
        assert metrics.snr_low_db(wav, changed, 7900) > 40 > 10 > metrics.snr_db(wav, changed)
    assert metrics.level_high_db(wav, 0 * wav, 8100) == -math.inf
    assert metrics.snr_low_db(music, 0.9 * music, 4000) == pytest.approx(20, abs=1e-3)


def test_texture_is_one_for_equal_statistics_at_any_level_and_falls_with_blur():
    reference, other = noise(4, 1), noise(4, 2)
    spectrum = librosa.stft(other)
    flat = spectrum / np.abs(spectrum) * np.abs(spectrum).mean()  # one magnitude everywhere, as far as an STFT can
    for estimate in (reference, other, 0.01 * other):
        assert metrics.texture_high(reference, estimate, 8000) == pytest.approx(1, abs=0.01)
    assert metrics.texture_high(reference, 0 * reference, 8000) == 0  # flat at the floor
    assert metrics.texture_high(reference, librosa.istft(flat, length=len(reference)), 8000) < 0.8
    assert math.isnan(metrics.texture_high(reference, reference, 20000))  # nothing between there and 19 kHz


@pytest.mark.parametrize(("left", "expected"), [(1.0, 0), (-0.1, 20)])
def test_tone_suppression_closed_forms(music, left, expected):
    degradation = Degradation(noise_type="tone", noise_amplitude=0.2, tone_hz=13210.0, seed=4)
    tone = degradation.apply(np.zeros_like(music), SAMPLE_RATE)
    other_phase = Degradation(noise_type="tone", noise_amplitude=0.2 * abs(left), tone_hz=13210.0, seed=9)
    for restored in (music + left * tone, other_phase.apply(music, SAMPLE_RATE)):
        assert metrics.tone_suppression_db(music, restored, 13210.0, 0.2) == pytest.approx(expected, abs=0.1)
    assert metrics.tone_suppression_db(music, music, 13210.0, 0.2) > 200


def test_log_mel_l1_of_half_the_level_is_log_two_at_any_rate():
    wav = noise()
    assert metrics.evaluate(wav, 0.5 * wav, 44_100)["log_mel_l1"] == pytest.approx(math.log(2), abs=0.02)
    assert metrics.log_mel_l1(wav[:10], 0.5 * wav[:10]) > 0  # shorter than a window


def test_bootstrap_interval_of_the_mean():
    values = np.random.default_rng(0).standard_normal(50)
    half = 1.96 * values.std() / math.sqrt(50)  # the normal approximation
    assert metrics.bootstrap_ci(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert metrics.bootstrap_ci([2.0]) == (2.0, 2.0)


ALWAYS = {"lsd", "lsd_19k", "lsd_ssr_eval", "snr_db", "si_sdr_db", "log_mel_l1"}
SIDES = {"level_high_db", "texture_high"}
BANDS = {"lsd_low", "lsd_high", "snr_low_db"}
RECORDED = {"snr_known_db", "tone_suppression_db"}
GAINS = {f"{name}_gain" for name in ALWAYS | BANDS} | {"oracle_lsd_19k", "oracle_ratio"}


@pytest.mark.parametrize(("given", "names"), [
    ((), ALWAYS), (("cutoff_hz",), ALWAYS | BANDS | SIDES),
    (("degraded",), ALWAYS | {f"{name}_gain" for name in ALWAYS}),
    (("degraded", "degradation"), ALWAYS | BANDS | SIDES | RECORDED | GAINS),
])  # fmt: skip
def test_evaluate_takes_what_it_can_and_half_the_level_scores_its_closed_forms(given, names, music):
    degradation = Degradation(4000, noise_type="tone", noise_amplitude=0.1, tone_hz=1000.0)
    known = {"cutoff_hz": 4000, "degraded": degradation.apply(music, SAMPLE_RATE), "degradation": degradation}
    found = metrics.evaluate(music, 0.5 * music, **{name: known[name] for name in given})
    assert set(found) == names and all(type(value) is float for value in found.values())
    expected = dict.fromkeys(("lsd", "lsd_19k", "lsd_low", "lsd_high"), 2 * math.log10(2))
    expected |= {"snr_db": 20 * math.log10(2), "snr_low_db": 20 * math.log10(2), "level_high_db": -20 * math.log10(2)}
    for name in expected.keys() & found.keys():
        assert found[name] == pytest.approx(expected[name], rel=0.02)
    if "degraded" in given:
        before = metrics.evaluate(music, known["degraded"])
        assert found["lsd_19k_gain"] == pytest.approx(before["lsd_19k"] - found["lsd_19k"])
        assert found["snr_db_gain"] == pytest.approx(found["snr_db"] - before["snr_db"])


def test_evaluate_with_records(music):
    ripple = Degradation(8000)  # of 0.2 dB, which is not held against the system
    scores = metrics.evaluate(music, ripple.apply(music, SAMPLE_RATE), degradation=ripple)
    assert scores["snr_low_db"] < 40 and scores["snr_known_db"] == math.inf
    noisy, both = (Degradation(cut, "boxcar", noise_type="white", noise_amplitude=0.01) for cut in (None, 4000))
    known = {"degraded": both.apply(music, SAMPLE_RATE)}
    by_hand = metrics.evaluate(music, music, degradation=noisy, cutoff_hz=4000, **known)
    recorded = metrics.evaluate(music, music, degradation=both, **known)
    assert by_hand["oracle_lsd_19k"] == recorded["oracle_lsd_19k"] > 0
    assert "snr_known_db" not in by_hand  # nobody recorded the filter
    for wrong in ({"degradation": both, "cutoff_hz": 8000}, {"cutoff_hz": 24000},
                  {"degradation": both, "sample_rate": 44_100, **known}):  # fmt: skip
        with pytest.raises(SrlibError, match=r"4000 Hz|24000 Hz|44100 Hz"):
            metrics.evaluate(music, music, **wrong)


def test_stereo_width_of_noise_has_a_closed_form():
    left, right = np.random.default_rng(0).standard_normal((2, 48_000))
    for correlation in (0.0, 0.6, -1.0):
        pair = np.stack([left, correlation * left + np.sqrt(1 - correlation**2) * right])
        found = metrics.stereo_high(pair, 8000.0)
        assert found["correlation"] == pytest.approx(correlation, abs=0.02)
        expected_db = 10 * np.log10((1 + correlation) / 2) if correlation > -1 else -np.inf
        assert found["mono_sum_db"] == pytest.approx(expected_db, abs=0.1)
        louder = metrics.stereo_high(pair * [[3], [0.1]], 8000.0)
        assert louder["correlation"] == pytest.approx(found["correlation"], abs=1e-6)
