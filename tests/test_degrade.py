"""The degradation against scipy's own responses, noise statistics, and bit-exact replay."""

import json

import numpy as np
import pytest
from scipy import signal

from srlib import degrade
from srlib.degrade import FILTER_TYPES, Degradation, DegradationConfig, sample, zero_phase_response
from srlib.errors import SrlibError

SAMPLE_RATE = 48000
FAMILIES = ("cheby1", "ellip", "butter")


def noise(seconds=1.0, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def measured_gain(degradation, freqs_hz, sample_rate=SAMPLE_RATE, samples=1 << 15):
    """Gain of `apply` itself at each frequency: a sinusoid in, projection on it out, far from the edges."""
    time = np.arange(samples) / sample_rate
    inner = slice(samples // 4, 3 * samples // 4)
    window = np.hanning(samples // 2)
    gains = []
    for freq in freqs_hz:
        degraded = degradation.apply(np.cos(2 * np.pi * freq * time).astype(np.float32), sample_rate)
        probe = np.exp(-2j * np.pi * freq * time[inner]) * window
        gains.append(2 * abs((degraded[inner] * probe).sum()) / window.sum())
    return np.array(gains)


def scipy_response(filter_type, order, cutoff_hz, freqs_hz):
    """Both passes, from the transfer function (not the sections) of scipy's design in zero-pole form."""
    design = {
        "cheby1": lambda: signal.cheby1(order, 0.1, cutoff_hz, fs=SAMPLE_RATE, output="zpk"),
        "ellip": lambda: signal.ellip(order, 0.1, 60, cutoff_hz, fs=SAMPLE_RATE, output="zpk"),
        "butter": lambda: signal.butter(order, cutoff_hz, fs=SAMPLE_RATE, output="zpk"),
    }[filter_type]
    return np.abs(signal.freqz_zpk(*design(), worN=freqs_hz, fs=SAMPLE_RATE)[1]) ** 2


@pytest.mark.parametrize("filter_type", FAMILIES)
@pytest.mark.parametrize("order", range(2, 11))
def test_f_3db_and_f_20db_of_every_family_and_order_are_those_of_scipy(filter_type, order):
    degradation = Degradation(4000, filter_type, order)
    freqs = np.arange(0, SAMPLE_RATE / 2, 1.0)
    gain_db = 20 * np.log10(scipy_response(filter_type, order, 4000, freqs) + 1e-20)
    assert degradation.passband_hz(SAMPLE_RATE) == pytest.approx(freqs[np.argmax(gain_db < -3)], abs=1.5)
    assert degradation.stopband_hz(SAMPLE_RATE) == pytest.approx(freqs[np.flatnonzero(gain_db >= -20)[-1]], abs=1.5)
    np.testing.assert_allclose(zero_phase_response(degradation, freqs, SAMPLE_RATE), 10 ** (gain_db / 20), atol=1e-6)


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
@pytest.mark.parametrize(("order", "cutoff_hz"), [(2, 2000), (5, 6000.5), (8, 4000), (10, 16000)])
def test_audio_is_attenuated_as_the_response_says(filter_type, order, cutoff_hz):
    degradation = Degradation(cutoff_hz, filter_type, order)
    passband_hz, stopband_hz = degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)
    freqs = np.array([0.5 * cutoff_hz, passband_hz, stopband_hz, min(1.3 * stopband_hz, 23900.0)])
    gains = measured_gain(degradation, freqs)
    assert gains[1] == pytest.approx(10 ** (-3 / 20), rel=0.03)
    assert gains[2] == pytest.approx(0.1, rel=0.1)
    assert gains[3] < 0.1
    np.testing.assert_allclose(gains, zero_phase_response(degradation, freqs, SAMPLE_RATE), atol=0.01)


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
def test_zero_phase_and_reversible_in_time(filter_type):
    impulse = np.zeros(8193, np.float32)
    impulse[4096] = 1.0
    response = Degradation(6000, filter_type, 6).apply(impulse, SAMPLE_RATE)
    assert np.argmax(response) == 4096
    np.testing.assert_allclose(response, response[::-1], atol=2e-5)


def test_boxcar_is_librosas_stft_with_bins_above_the_cutoff_zeroed():
    librosa = pytest.importorskip("librosa")
    wav = noise(6.0)  # more than one block
    spectrum = librosa.stft(wav, n_fft=2048, hop_length=512)
    spectrum[np.arange(1025) * SAMPLE_RATE / 2048 > 8000] = 0
    expected = librosa.istft(spectrum, n_fft=2048, hop_length=512, length=len(wav))
    degraded = Degradation(8000, "boxcar").apply(wav, SAMPLE_RATE)
    np.testing.assert_allclose(degraded, expected, atol=1e-6)


def test_stft_round_trip_gives_every_sample_back():
    for samples in (1, 511, 2048, 5000):
        wav = noise(1)[:samples].astype(np.float64)
        np.testing.assert_allclose(degrade.istft(degrade.stft(wav), samples), wav, atol=1e-9)


def test_white_noise_statistics():
    silence = np.zeros((2, 10 * SAMPLE_RATE), np.float32)
    added = Degradation(noise_type="white", noise_amplitude=0.02, seed=3).apply(silence, SAMPLE_RATE)
    assert added.std(axis=1) == pytest.approx(0.02, rel=0.01)
    assert abs(added.mean()) < 1e-4
    assert np.mean(np.abs(added) < 0.02) == pytest.approx(0.6827, abs=0.004)  # Gaussian
    assert abs(np.corrcoef(added)[0, 1]) < 0.01
    level = signal.welch(added[0], SAMPLE_RATE, nperseg=1024)[1][1:-1]
    np.testing.assert_allclose(10 * np.log10(level / level.mean()), 0, atol=1.0)  # flat


def test_tone_has_its_frequency_amplitude_and_a_phase_from_the_seed():
    silence = np.zeros(SAMPLE_RATE, np.float32)
    phases = []
    for seed in range(8):
        degradation = Degradation(noise_type="tone", noise_amplitude=0.1, tone_hz=5000, seed=seed)
        spectrum = np.fft.rfft(degradation.apply(silence, SAMPLE_RATE)) / (SAMPLE_RATE / 2)
        assert np.argmax(np.abs(spectrum)) == 5000  # bins of 1 Hz
        assert abs(spectrum[5000]) == pytest.approx(0.1, rel=1e-4)
        assert np.delete(np.abs(spectrum), 5000).max() < 1e-6
        phases.append((np.angle(spectrum[5000]) + np.pi / 2) % (2 * np.pi))
        assert phases[-1] == pytest.approx(degradation.tone_phase, abs=1e-4)
    assert np.std(phases) > 0.5


@pytest.mark.parametrize("noise_type", ["tone", "white"])
def test_noise_does_not_depend_on_the_length_of_the_file(noise_type):
    degradation = Degradation(noise_type=noise_type, noise_amplitude=0.1, tone_hz=700, seed=5)
    long = degradation.apply(np.zeros((2, 5000), np.float32), SAMPLE_RATE)
    short = degradation.apply(np.zeros((2, 1000), np.float32), SAMPLE_RATE)
    np.testing.assert_array_equal(long[:, :1000], short)


def test_noise_comes_after_the_filter_unless_noise_first():
    silence = np.zeros(SAMPLE_RATE, np.float32)

    def level_above_cutoff(noise_first):
        degradation = Degradation(4000, noise_type="white", noise_amplitude=0.02, noise_first=noise_first)
        degraded = degradation.apply(silence, SAMPLE_RATE)
        return np.abs(np.fft.rfft(degraded * np.hanning(SAMPLE_RATE)))[8000:].mean()

    assert level_above_cutoff(False) > 1000 * level_above_cutoff(True)


def test_gaps_come_last_and_are_exactly_zero():
    wav = noise() + 0.5
    gaps = ((0.25, 0.5), (0.9, 1.0))
    degradation = Degradation(4000, noise_type="white", noise_amplitude=0.02, gaps=gaps)
    degraded = degradation.apply(np.stack([wav, wav]), SAMPLE_RATE)
    without = Degradation(4000, noise_type="white", noise_amplitude=0.02).apply(np.stack([wav, wav]), SAMPLE_RATE)
    inside = np.zeros(SAMPLE_RATE, bool)
    inside[12000:24000] = inside[43200:48000] = True
    assert not degraded[:, inside].any()
    np.testing.assert_array_equal(degraded[:, ~inside], without[:, ~inside])


@pytest.mark.parametrize("seed", range(8))
def test_a_record_replays_to_the_same_bits(seed):
    config = DegradationConfig(gap_probability=0.5, segment_seconds=1.0, noise_first=seed % 2 == 1)
    degradation = sample(np.random.default_rng(seed), config)
    wav = np.stack([noise(seed=seed), noise(seed=seed + 100)])
    before = wav.copy()
    degraded = degradation.apply(wav, SAMPLE_RATE)
    replayed = Degradation.from_json(degradation.to_json(SAMPLE_RATE))
    assert replayed == degradation
    assert replayed.apply(wav, SAMPLE_RATE).tobytes() == degraded.tobytes()
    assert Degradation.from_json(degradation.record(SAMPLE_RATE)) == degradation
    assert wav.tobytes() == before.tobytes() and degraded.dtype == np.float32 and degraded.shape == wav.shape


def test_channels_are_filtered_one_by_one():
    left, right = noise(seed=1), noise(seed=2)
    for filter_type in FILTER_TYPES:
        degradation = Degradation(4000, filter_type)
        both = degradation.apply(np.stack([left, right]), SAMPLE_RATE)
        np.testing.assert_array_equal(both[1], degradation.apply(right, SAMPLE_RATE))


@pytest.mark.parametrize("filter_type", FILTER_TYPES)
@pytest.mark.parametrize("samples", [1, 2, 7, 40, 600])
def test_short_files_keep_their_length_and_level(filter_type, samples):
    wav = np.full(samples, 0.25, np.float32)
    degraded = Degradation(4000, filter_type, 10).apply(wav, SAMPLE_RATE)
    assert degraded.shape == wav.shape and np.isfinite(degraded).all()
    if filter_type != "boxcar":  # 0.2 dB of ripple at most
        np.testing.assert_allclose(degraded, 0.25, rtol=0.03)


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100, 96000, 192000])
@pytest.mark.parametrize("filter_type", FILTER_TYPES)
def test_other_sample_rates(sample_rate, filter_type):
    degradation = Degradation(2000, filter_type, 10)
    passband_hz, stopband_hz = degradation.passband_hz(sample_rate), degradation.stopband_hz(sample_rate)
    assert 1700 < passband_hz < stopband_hz < 2500
    gains = measured_gain(degradation, [1000, passband_hz, stopband_hz], sample_rate)
    np.testing.assert_allclose(gains, [1, 10 ** (-3 / 20), 0.1], atol=0.03)


def test_record_holds_what_was_measured_and_survives_json():
    record = json.loads(Degradation(np.float64(4000), "butter", np.int64(2)).to_json(SAMPLE_RATE))
    assert record["passband_hz"] < 4000 < record["stopband_hz"]
    assert record["sample_rate"] == SAMPLE_RATE and record["filter_order"] == 2 and record["gaps"] == []
    empty = Degradation().record(SAMPLE_RATE)
    assert empty["cutoff_hz"] is None and empty["passband_hz"] is None and empty["stopband_hz"] is None


def test_does_nothing():
    assert Degradation().does_nothing
    assert Degradation(noise_type="white").does_nothing
    assert not Degradation(noise_type="white", noise_amplitude=0.1).does_nothing
    assert not Degradation(4000).does_nothing
    wav = noise()
    np.testing.assert_array_equal(Degradation().apply(wav, SAMPLE_RATE), wav)


def test_sample_draws_the_ranges_of_the_report():
    rng = np.random.default_rng(0)
    drawn = [sample(rng, DegradationConfig(gap_probability=0.5)) for _ in range(3000)]
    cutoffs = np.array([d.cutoff_hz for d in drawn])
    assert 2000 <= cutoffs.min() < 2050 and 15950 < cutoffs.max() <= 16000
    assert np.mean(cutoffs) == pytest.approx(9000, rel=0.03)
    for values, expected in (
        ([d.filter_type for d in drawn], FILTER_TYPES),
        ([d.filter_order for d in drawn], tuple(range(2, 11))),
        ([d.noise_type for d in drawn], degrade.NOISE_TYPES),
    ):
        names, counts = np.unique(values, return_counts=True)
        assert set(names.tolist()) == set(expected)
        assert counts.min() > 0.8 * len(drawn) / len(expected)
    tones = np.array([(d.noise_amplitude, d.tone_hz) for d in drawn if d.noise_type == "tone"])
    assert 0.001 <= tones[:, 0].min() < 0.002 and 0.198 < tones[:, 0].max() <= 0.2
    assert 100 <= tones[:, 1].min() < 150 and 14900 < tones[:, 1].max() <= 15000
    white = np.array([d.noise_amplitude for d in drawn if d.noise_type == "white"])
    assert 0.001 <= white.min() < 0.0012 and 0.0198 < white.max() <= 0.02
    gaps = np.array([d.gaps[0] for d in drawn if d.gaps])
    assert 0.45 < len(gaps) / len(drawn) < 0.55 and gaps.min() >= 0 and gaps.max() <= 10.24
    assert 0.05 <= np.ptp(gaps, axis=1).min() < 0.06 and 0.49 < np.ptp(gaps, axis=1).max() <= 0.5


def test_sample_is_reproducible_and_configs_share_their_draws():
    first = sample(np.random.default_rng(1), DegradationConfig(noise_weights={"none": 1}))
    second = sample(np.random.default_rng(1), DegradationConfig(noise_weights={"white": 1}))
    assert first.noise_type == "none" and second.noise_type == "white"
    assert (first.cutoff_hz, first.filter_type, first.seed) == (second.cutoff_hz, second.filter_type, second.seed)
    assert sample(np.random.default_rng(1)) == sample(np.random.default_rng(1))
    report_gap = DegradationConfig(gap_probability=1.0, gap_seconds=(0.25, 0.25), segment_seconds=0.25)
    assert sample(np.random.default_rng(0), report_gap).gaps == ((0.0, 0.25),)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050])
def test_config_for_low_sample_rates_fits_under_nyquist(sample_rate):
    rng = np.random.default_rng(0)
    config = DegradationConfig(noise_weights={"tone": 1}).for_sample_rate(sample_rate)
    for _ in range(50):
        sample(rng, config).check(sample_rate)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("cutoff_hz", 0, "greater than 0"),
        ("cutoff_hz", "4000", "number"),
        ("filter_type", "bessel", "'cheby1', 'ellip', 'butter' or 'boxcar'"),
        ("filter_order", 1, "equal to 2"),
        ("filter_order", 11, "equal to 10"),
        ("noise_type", "pink", "'none', 'tone' or 'white'"),
        ("noise_amplitude", -0.1, "equal to 0"),
        ("tone_hz", -5.0, "greater than 0"),
        ("gaps", [(0.5, 0.25)], "0 <= first < second"),
        ("gaps", "12", "tuple"),
        ("seed", -1, "equal to 0"),
        ("noise_first", "no", "boolean"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name_with_what_is_allowed(name, value, allowed):
    with pytest.raises(SrlibError, match=f"^{name} is .*: it should be .*{allowed}") as caught:
        Degradation(**{name: value})
    assert "\n" not in str(caught.value)


def test_a_tone_has_a_frequency():
    with pytest.raises(SrlibError, match="a tone needs tone_hz"):
        Degradation(noise_type="tone", noise_amplitude=0.1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cutoff_hz": 24000}, "24000 Hz"),
        ({"cutoff_hz": 30000, "filter_type": "boxcar"}, "half the sample rate"),
        ({"noise_type": "tone", "tone_hz": 24000, "noise_amplitude": 0.1}, "half the sample rate"),
        ({"gaps": ((0.5, 1.5),)}, "outside the file"),
        ({"gaps": ((0.1, 0.2), (0.5, 0.500001))}, "0.5:0.500001 s is shorter than a sample"),
    ],
)
def test_what_does_not_fit_the_file_is_refused(fields, words):
    with pytest.raises(SrlibError, match=words):
        Degradation(**fields).apply(noise(), SAMPLE_RATE)


@pytest.mark.parametrize(
    "wav", [np.zeros(0), np.zeros((2, 0)), np.zeros((1, 2, 3)), np.array([0.0, np.nan]), np.array([np.inf, 0.0])]
)
def test_wrong_audio_is_refused(wav):
    with pytest.raises(SrlibError):
        Degradation(4000).apply(wav, SAMPLE_RATE)


@pytest.mark.parametrize(
    "record",
    [
        *("", "not json", "[1]", "null", "[" * 100_000, '{"cutoff": 3}', '{"cutoff_hz": -1}'),
        *('{"cutoff_hz": NaN}', '{"cutoff_hz": ' + "1" * 5000 + "}", '{"cutoff_hz": 4000, "gaps": null}'),
    ],
    ids=lambda record: record[:50],
)
def test_wrong_records_are_refused(record):
    with pytest.raises(SrlibError):
        Degradation.from_json(record)


@pytest.mark.parametrize(
    "fields",
    [
        {"noise_weights": {}},
        {"noise_weights": {"pink": 1}},
        {"noise_weights": {"tone": -1, "white": 2}},
        {"cutoff_hz": (5000, 2000)},
        {"gap_probability": 2},
        {"gap_seconds": (0.05, 20.0)},
    ],
)
def test_wrong_configs_are_refused(fields):
    with pytest.raises(SrlibError):
        DegradationConfig(**fields)
