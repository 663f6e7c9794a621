"""Metrics against librosa, closed forms and known limits of their definitions."""

import math

import numpy as np
import pytest
from scipy import signal

from srlib import degrade
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import metrics

SAMPLE_RATE = 48000


def noise(seconds=1.0, seed=0, scale=0.1):
    return (scale * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def music(seconds=2.0):
    """Harmonics of a few notes over pink-like noise: content in every band, none of it flat."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * f * k * time) / k for f in (220, 277.2) for k in range(1, 9))
    return (0.05 * tones + signal.lfilter([1], [1, -0.9], 0.01 * noise(seconds, scale=1.0))).astype(np.float32)


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
@pytest.mark.parametrize("sample_rate", [48000, 44100, 16000])
def test_lsd_identities(convention, sample_rate):
    wav = noise()
    assert metrics.lsd(wav, wav, sample_rate, convention) == pytest.approx(0.0, abs=1e-9)
    assert metrics.lsd(wav, 0.5 * wav, sample_rate, convention) == pytest.approx(2 * math.log10(2), abs=1e-4)
    assert metrics.lsd(wav, -wav, sample_rate, convention) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("convention", ["plain", "ssr_eval"])
def test_two_independent_noises_differ_by_the_spread_of_log_rayleigh_power(convention):
    # difference of two log10 exponential variates: variance 2 * (pi^2 / 6) / ln(10)^2
    expected = math.sqrt(math.pi**2 / 3) / math.log(10)
    assert expected == pytest.approx(0.788, abs=1e-3)
    assert metrics.lsd(noise(4, 1), noise(4, 2), convention=convention) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("sample_rate", [48000, 44100, 24000])
def test_ssr_eval_is_the_tools_formula_on_librosas_stft(sample_rate):
    librosa = pytest.importorskip("librosa")
    reference = music()
    for estimate in (noise(2, 3), Degradation(4000).apply(reference, sample_rate), np.zeros_like(reference)):
        n_fft, hop_length = int(2048 / (44100 / sample_rate)), sample_rate // 100
        ref, est = (np.abs(librosa.stft(wav, n_fft=n_fft, hop_length=hop_length)) for wav in (reference, estimate))
        log_ratio = np.log10(ref**2 / ((est + 1e-12) ** 2) + 1e-12)
        expected = np.sqrt((log_ratio**2).mean(axis=0)).mean()
        assert metrics.lsd(reference, estimate, sample_rate) == pytest.approx(expected, rel=1e-4)
    assert int(2048 / (44100 / 48000)) == 2229


def test_plain_is_librosas_stft_with_reflect_padding():
    librosa = pytest.importorskip("librosa")
    reference, estimate = music(), Degradation(4000).apply(music(), SAMPLE_RATE)
    powers = [np.abs(librosa.stft(w.astype(float), n_fft=2048, hop_length=512, pad_mode="reflect")) ** 2
              for w in (reference, estimate)]  # fmt: skip
    log_ratio = np.subtract(*(np.log10(np.maximum(power, 1e-8)) for power in powers))
    bins_hz = librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=2048)
    for f_low, f_high in ((0, None), (0, 19000), (4500, 19000), (6000, 12000)):
        kept = (bins_hz >= f_low) & (bins_hz <= (f_high or SAMPLE_RATE))
        expected = np.sqrt((log_ratio[kept] ** 2).mean(axis=0)).mean()
        value = metrics.lsd(reference, estimate, convention="plain", f_low=f_low, f_high=f_high)
        assert value == pytest.approx(expected, rel=1e-6)


def test_digital_silence_dominates_ssr_eval_and_plain_stops_at_its_floor():
    reference, silence = noise(), np.zeros(SAMPLE_RATE, np.float32)
    level = math.log10(0.01 * 768)  # expected power of a bin: variance times the sum of the squared window
    assert metrics.lsd(reference, silence, convention="plain") == pytest.approx(level + 8, abs=0.4)
    assert metrics.lsd(reference, silence) == pytest.approx(level + 24, abs=0.5)
    assert metrics.lsd(silence, silence) == pytest.approx(12)  # the tool's formula: log10(0 + 1e-12)
    assert metrics.lsd(silence, silence, convention="plain") == 0


def test_channels_are_averaged():
    left, right = noise(seed=1), noise(seed=2)
    both = metrics.lsd(np.stack([left, right]), np.stack([0.5 * left, right]), convention="plain")
    assert both == pytest.approx(math.log10(2), abs=1e-3)


def test_lengths_may_differ_by_a_hundred_samples():
    wav = noise()
    assert metrics.lsd(wav, wav[:-100], convention="plain") == pytest.approx(0, abs=1e-9)
    for other in (wav[:-101], wav[:0], np.stack([wav, wav]), np.full_like(wav, np.nan)):
        with pytest.raises(SrlibError):
            metrics.lsd(wav, other)


def test_unknown_conventions_and_empty_bands_are_refused():
    with pytest.raises(SrlibError, match="ssr_eval"):
        metrics.lsd(noise(), noise(), convention="")
    with pytest.raises(SrlibError, match="widen"):
        metrics.lsd(noise(), noise(), f_low=23999, f_high=23999.5)


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


def test_snr_low_sees_only_what_lies_below():
    wav = music()
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


def test_texture_is_its_definition():
    reference, estimate = noise(1, 1), noise(1, 2) ** 3
    kept = slice(math.ceil(8000 * 2048 / 48000), math.floor(19000 * 2048 / 48000) + 1)
    spreads = []
    for wav in (estimate, reference):
        log_power = np.log10(np.maximum(metrics.plain_power(wav), 1e-8))[:, kept]
        padded = np.pad(log_power, ((4, 4), (7, 7)), mode="edge")
        mean = np.lib.stride_tricks.sliding_window_view(padded, (9, 15)).mean(axis=(2, 3))
        spreads.append((log_power - mean).std())
    assert metrics.texture_high(reference, estimate, 8000) == pytest.approx(spreads[0] / spreads[1], rel=1e-6)


def test_tone_suppression_closed_forms():
    reference = music()
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


def test_log_mel_l1():
    wav = music()
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


def test_evaluate_keys():
    reference = music(1.0)
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


def test_evaluate_values():
    reference = music(1.0)
    degradation = Degradation(4000, "butter", 4, noise_type="white", noise_amplitude=0.02)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    restored = 0.9 * reference
    scores = metrics.evaluate(reference, restored, degraded=degraded, degradation=degradation)
    passband_hz, stopband_hz = degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)
    # Sums over other slices of memory may differ in the last digit, on some processors.
    assert scores["lsd"] == pytest.approx(metrics.lsd(reference, restored, convention="plain"), rel=1e-12)
    headline = metrics.lsd(reference, restored, convention="plain", f_high=19000)
    assert scores["lsd_19k"] == pytest.approx(headline, rel=1e-12)
    assert scores["lsd_ssr_eval"] == metrics.lsd(reference, restored)
    assert scores["lsd_low"] == pytest.approx(metrics.lsd(reference, restored, convention="plain", f_high=passband_hz))
    assert scores["lsd_high"] == pytest.approx(metrics.lsd(reference, restored, convention="plain", f_low=stopband_hz))
    assert scores["snr_db"] == pytest.approx(20, abs=1e-3) and scores["snr_low_db"] == pytest.approx(20, abs=1e-3)
    assert scores["snr_db_gain"] == pytest.approx(20 - metrics.snr_db(reference, degraded), abs=1e-3)
    before = metrics.lsd(reference, degraded, convention="plain", f_high=19000)
    assert scores["lsd_19k_gain"] == pytest.approx(before - scores["lsd_19k"])
    assert scores["level_high_db"] == metrics.level_high_db(reference, restored, stopband_hz)
    assert scores["texture_high"] == metrics.texture_high(reference, restored, stopband_hz)
    assert scores["oracle_ratio"] == pytest.approx(scores["lsd_19k"] / scores["oracle_lsd_19k"])
    kept = metrics.Reference(np.atleast_2d(reference))
    for _ in range(2):  # what is computed once serves again
        assert metrics.evaluate(kept, restored, degraded=degraded, degradation=degradation) == scores
    again = metrics.evaluate(reference, restored, degraded=degraded, degradation=degradation, oracle_lsd_19k=2.0)
    assert again["oracle_ratio"] == scores["lsd_19k"] / 2


def test_a_filters_own_ripple_is_not_held_against_the_system():
    reference = music()
    degradation = Degradation(8000)  # 0.2 dB of ripple
    scores = metrics.evaluate(reference, degradation.apply(reference, SAMPLE_RATE), degradation=degradation)
    assert scores["snr_low_db"] < 40 and scores["snr_known_db"] == math.inf
    assert metrics.evaluate(reference, reference, degradation=degradation)["snr_low_db"] == math.inf


def test_evaluate_stereo_and_noise_without_a_filter():
    reference = np.stack([music(1.0), 0.5 * music(1.0)])
    degradation = Degradation(noise_type="white", noise_amplitude=0.02)
    degraded = degradation.apply(reference, SAMPLE_RATE)
    scores = metrics.evaluate(reference, degraded[:, :-50], degraded=degraded, degradation=degradation)
    assert 0 < scores["oracle_lsd_19k"] < scores["lsd_19k"]
    assert not set(scores) & BANDS
    with pytest.raises(SrlibError):
        metrics.evaluate(reference, degraded, cutoff_hz=24000)


def test_a_cutoff_beside_the_record_of_noise_alone():
    """What was filtered by hand and then degraded on record: the oracle is told of the cutoff as the bands are."""
    reference = music(1.0)
    noisy, both = (Degradation(cut, "boxcar", noise_type="white", noise_amplitude=0.01) for cut in (None, 4000))
    degraded = both.apply(reference, SAMPLE_RATE)
    known = {"degraded": degraded, "sample_rate": SAMPLE_RATE}
    scores = metrics.evaluate(reference, reference, degradation=noisy, cutoff_hz=4000, **known)
    recorded = metrics.evaluate(reference, reference, degradation=both, **known)
    assert scores["oracle_lsd_19k"] == recorded["oracle_lsd_19k"]
    assert "snr_known_db" not in scores  # nobody recorded the filter
    with pytest.raises(SrlibError, match="4000 Hz"):
        metrics.evaluate(reference, reference, degradation=both, cutoff_hz=8000)
