"""The degradation against scipy's own responses, noise statistics, and bit-exact replay."""

import json
from functools import partial

import librosa
import numpy as np
import pytest
from scipy import signal

from srlib import degrade
from srlib.degrade import FILTER_TYPES, Degradation, DegradationConfig, sample, zero_phase_response
from srlib.errors import SrlibError

SAMPLE_RATE = 48000


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def measured_gain(degradation, freqs_hz, sample_rate, samples=1 << 15):
    """Gain of `apply` itself at each frequency: a sinusoid in, projection on it out, far from the edges."""
    time, inner = np.arange(samples) / sample_rate, slice(samples // 4, 3 * samples // 4)
    waves, window = np.exp(2j * np.pi * np.outer(freqs_hz, time)), np.hanning(samples // 2)
    degraded = degradation.apply(waves.real.astype(np.float32), sample_rate)
    return 2 * np.abs((degraded * waves.conj())[:, inner] @ window) / window.sum()


@pytest.mark.parametrize(("filter_type", "ripple"), [("cheby1", (0.1,)), ("ellip", (0.1, 60)), ("butter", ())])
@pytest.mark.parametrize("order", [2, 3, 6, 10])
def test_the_response_of_every_family_and_order_is_scipy_s(filter_type, ripple, order):
    """Both passes, from the transfer function (not the sections) of scipy's design in zero-pole form."""
    degradation, freqs = Degradation(4000, filter_type, order), np.arange(0, SAMPLE_RATE / 2, 1.0)
    design = getattr(signal, filter_type)(order, *ripple, 4000, fs=SAMPLE_RATE, output="zpk")
    gain_db = 40 * np.log10(np.abs(signal.freqz_zpk(*design, worN=freqs, fs=SAMPLE_RATE)[1]) + 1e-10)
    assert degradation.passband_hz(SAMPLE_RATE) == pytest.approx(freqs[np.argmax(gain_db < -3)], abs=1.5)
    assert degradation.stopband_hz(SAMPLE_RATE) == pytest.approx(freqs[np.flatnonzero(gain_db >= -20)[-1]], abs=1.5)
    np.testing.assert_allclose(zero_phase_response(degradation, freqs, SAMPLE_RATE), 10 ** (gain_db / 20), atol=1e-6)


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
@pytest.mark.parametrize(
    ("order", "cutoff_hz", "sample_rate"),
    [(2, 2000, 48000), (5, 6000.5, 48000), (10, 16000, 48000), (10, 2000, 8000), (6, 2000, 192000)],
)
def test_audio_is_attenuated_as_the_response_says(filter_type, order, cutoff_hz, sample_rate):
    degradation = Degradation(cutoff_hz, filter_type, order)
    passband_hz, stopband_hz = degradation.passband_hz(sample_rate), degradation.stopband_hz(sample_rate)
    freqs = np.array([0.5 * cutoff_hz, passband_hz, stopband_hz, min(1.3 * stopband_hz, 0.498 * sample_rate)])
    gains = measured_gain(degradation, freqs, sample_rate)
    np.testing.assert_allclose(gains[1:3], [10 ** (-3 / 20), 0.1], rtol=0.1)
    assert gains[3] < 0.1
    np.testing.assert_allclose(gains, zero_phase_response(degradation, freqs, sample_rate), atol=0.015)


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
def test_filters_have_zero_phase_and_treat_channels_alike(filter_type):
    impulse = np.zeros(8193, np.float32)
    impulse[4096] = 1.0
    both = Degradation(6000, filter_type, 6).apply(np.stack([noise()[:8193], impulse]), SAMPLE_RATE)
    np.testing.assert_array_equal(both[1], Degradation(6000, filter_type, 6).apply(impulse, SAMPLE_RATE))
    assert np.argmax(both[1]) == 4096
    np.testing.assert_allclose(both[1], both[1][::-1], atol=2e-5)
    for samples in (1, 2, 7, 40, 600):
        short = Degradation(4000, filter_type, 10).apply(np.full(samples, 0.25, np.float32), SAMPLE_RATE)
        assert short.shape == (samples,) and np.isfinite(short).all()
        assert filter_type == "boxcar" or np.abs(short / 0.25 - 1).max() < 0.03  # 0.2 dB of ripple at most


def test_boxcar_is_librosas_stft_with_bins_above_the_cutoff_zeroed():
    wav = noise(6.0)  # more than one block
    spectrum = librosa.stft(wav, n_fft=2048, hop_length=512)
    spectrum[np.arange(1025) * SAMPLE_RATE / 2048 > 8000] = 0
    expected = librosa.istft(spectrum, n_fft=2048, hop_length=512, length=len(wav))
    inner = slice(2048, -2048)  # at the ends librosa leaves out the frames that begin before the file
    np.testing.assert_allclose(Degradation(8000, "boxcar").apply(wav, SAMPLE_RATE)[inner], expected[inner], atol=1e-6)
    for samples in (1, 511, 2048, 5000):  # all bins kept: nothing is lost on the way
        np.testing.assert_allclose(degrade._boxcar(wav[:samples], 1025), wav[:samples], atol=1e-6)


def test_white_noise_is_gaussian_flat_and_independent():
    silence = np.zeros((2, 10 * SAMPLE_RATE), np.float32)
    added = Degradation(noise_type="white", noise_amplitude=0.02, seed=3).apply(silence, SAMPLE_RATE)
    assert added.std(axis=1) == pytest.approx(0.02, rel=0.01) and abs(added.mean()) < 1e-4
    assert np.mean(np.abs(added) < 0.02) == pytest.approx(0.6827, abs=0.004)
    assert abs(np.corrcoef(added)[0, 1]) < 0.01
    level = signal.welch(added[0], SAMPLE_RATE, nperseg=1024)[1][1:-1]
    np.testing.assert_allclose(10 * np.log10(level / level.mean()), 0, atol=1.0)


def test_tone_has_its_frequency_amplitude_and_a_phase_from_the_seed():
    phases = []
    for seed in range(8):
        degradation = Degradation(noise_type="tone", noise_amplitude=0.1, tone_hz=5000, seed=seed)
        spectrum = np.fft.rfft(degradation.apply(np.zeros(SAMPLE_RATE), SAMPLE_RATE)) / (SAMPLE_RATE / 2)
        assert abs(spectrum[5000]) == pytest.approx(0.1, rel=1e-4)  # bins of 1 Hz
        assert np.delete(np.abs(spectrum), 5000).max() < 1e-6
        phases.append(np.angle(spectrum[5000]))
    assert np.std(phases) > 0.5


@pytest.mark.parametrize("noise_type", ["tone", "white"])
def test_noise_does_not_depend_on_the_length_of_the_file(noise_type):
    degradation = Degradation(noise_type=noise_type, noise_amplitude=0.1, tone_hz=700, seed=5)
    long, short = (degradation.apply(np.zeros((2, samples)), SAMPLE_RATE) for samples in (5000, 1000))
    np.testing.assert_array_equal(long[:, :1000], short)


def test_noise_comes_after_the_filter_unless_noise_first_and_gaps_come_last():
    wav, white = noise() + 0.5, {"noise_type": "white", "noise_amplitude": 0.02}
    both = [Degradation(4000, noise_first=first, **white).apply(0 * wav, SAMPLE_RATE) for first in (False, True)]
    levels = [np.abs(np.fft.rfft(one * np.hanning(SAMPLE_RATE)))[8000:].mean() for one in both]
    assert levels[0] > 1000 * levels[1]
    degraded = Degradation(4000, gaps=((0.25, 0.5), (0.9, 1.0)), **white).apply(wav, SAMPLE_RATE)
    without = Degradation(4000, **white).apply(wav, SAMPLE_RATE)
    without[12000:24000] = without[43200:48000] = 0
    np.testing.assert_array_equal(degraded, without)


@pytest.mark.parametrize("seed", range(2))
def test_a_record_replays_to_the_same_bits(seed):
    config = DegradationConfig(gap_probability=0.5, segment_seconds=1.0)
    degradation, wav = sample(np.random.default_rng(seed), config), np.stack([noise(seed=seed), noise(seed=seed + 100)])
    given, degraded = wav.copy(), degradation.apply(wav, SAMPLE_RATE)
    replayed = Degradation.from_json(degradation.to_json(SAMPLE_RATE))
    assert replayed == degradation == Degradation.from_json(degradation.record(SAMPLE_RATE))
    assert replayed.apply(wav, SAMPLE_RATE).tobytes() == degraded.tobytes()
    assert degraded.dtype == np.float32 and degraded.shape == wav.shape and np.array_equal(wav, given)


def test_record_holds_what_was_measured():
    record = json.loads(Degradation(np.float64(4000), "butter", np.int64(2)).to_json(SAMPLE_RATE))
    assert record["passband_hz"] < 4000 < record["stopband_hz"]
    assert record["sample_rate"] == SAMPLE_RATE and record["filter_order"] == 2 and record["gaps"] == []
    assert {Degradation().record(SAMPLE_RATE)[f"{name}_hz"] for name in ("cutoff", "passband", "stopband")} == {None}
    for nothing, done in ((Degradation(), True), (Degradation(noise_type="white"), True), (Degradation(4000), False)):
        assert nothing.does_nothing is done


def test_sample_draws_the_ranges_of_the_report():
    rng = np.random.default_rng(0)
    drawn = [sample(rng, DegradationConfig(gap_probability=0.5)) for _ in range(3000)]
    tones, white = ([d for d in drawn if d.noise_type == name] for name in ("tone", "white"))
    for values, low, high in (
        ([d.cutoff_hz for d in drawn], 2000, 16000),
        ([d.noise_amplitude for d in tones], 0.001, 0.2),
        ([d.tone_hz for d in tones], 100, 15000),
        ([d.noise_amplitude for d in white], 0.001, 0.02),
        ([np.ptp(d.gaps[0]) for d in drawn if d.gaps], 0.05, 0.5),
    ):
        share = (np.array(values) - low) / (high - low)
        assert share.min() == pytest.approx(0, abs=0.01) and share.max() == pytest.approx(1, abs=0.01)
        assert share.mean() == pytest.approx(0.5, abs=0.04)  # uniform
    for values, expected in (
        ([d.filter_type for d in drawn], FILTER_TYPES),
        ([d.filter_order for d in drawn], range(2, 11)),
        ([d.noise_type for d in drawn], degrade.NOISE_TYPES),
    ):
        names, counts = np.unique(values, return_counts=True)
        assert set(names.tolist()) == set(expected) and counts.min() > 0.8 * len(drawn) / len(expected)


def test_configs_share_their_draws_and_fit_under_nyquist():
    configs = (DegradationConfig(noise_weights={name: 1}) for name in ("none", "white"))
    first, second = (sample(np.random.default_rng(1), config) for config in configs)
    assert (first.noise_type, second.noise_type) == ("none", "white")
    assert (first.cutoff_hz, first.filter_type, first.seed) == (second.cutoff_hz, second.filter_type, second.seed)
    rng, config = np.random.default_rng(0), DegradationConfig(noise_weights={"tone": 1}).for_sample_rate(8000)
    for _ in range(50):
        sample(rng, config).check(8000)


REFUSED = [
    ({"filter_type": "bessel"}, "it should be 'cheby1', 'ellip', 'butter' or 'boxcar'"),
    ({"filter_order": 11}, "equal to 10"),
    ({"gaps": [(0.5, 0.25)]}, "0 <= first < second"),
    ({"noise_type": "tone", "noise_amplitude": 0.1}, "a tone needs tone_hz"),
    *(({"cutoff_hz": 1e-4, "filter_type": name}, "is below 0.048 Hz") for name in FILTER_TYPES),
    ({"cutoff_hz": 24000}, "24000 Hz"),
    ({"noise_type": "tone", "tone_hz": 24000, "noise_amplitude": 0.1}, "half the sample rate"),
    ({"gaps": ((0.5, 1.5),)}, "outside the file"),
    ({"gaps": ((0.1, 0.2), (0.5, 0.500001))}, "0.5:0.500001 s is shorter than a sample"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence(fields, words):
    with pytest.raises(SrlibError, match=words) as caught:
        Degradation(**fields).apply(noise(), SAMPLE_RATE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
def test_the_lowest_cutoff_can_be_done(filter_type):
    degradation = Degradation(0.048, filter_type, 10)
    assert degradation.record(SAMPLE_RATE)["passband_hz"] > 0.9 * 0.048
    assert np.abs(degradation.apply(np.full(48000, 0.25), SAMPLE_RATE)).max() < 0.26


RECORDS = "not json", "[1]", "[" * 100_000, '{"cutoff": 3}', '{"cutoff_hz": -1}', '{"cutoff_hz": NaN}', '{"gaps": null}'
CONFIGS = (
    {"noise_weights": {}},
    {"noise_weights": {"pink": 1}},
    {"cutoff_hz": (5000, 2000)},
)


def test_wrong_audio_records_and_configs_are_refused():
    wrong = [partial(Degradation(4000).apply, wav, SAMPLE_RATE) for wav in (np.zeros((1, 2, 3)), np.array([np.nan]))]
    wrong += [partial(Degradation.from_json, record) for record in RECORDS]
    wrong += [partial(DegradationConfig, **fields) for fields in CONFIGS]
    for call in wrong:
        with pytest.raises(SrlibError):
            call()
