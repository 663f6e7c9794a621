"""White noise that ends with the band: found in real music, with its level, and told from what only resembles it."""

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.degrade import Degradation
from srlib.restore.hiss import HissFinder
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.noise import smoothed_power

SAMPLE_RATE = 48000
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())
BINS_HZ = np.linspace(0, 24_000, 1025)
PIECE = 10 * SAMPLE_RATE


def power_of(*pieces, band=FULL_BAND):
    finder = HissFinder()
    for piece in pieces:
        finder.add(smoothed_power(torch.from_numpy(np.ascontiguousarray(piece, np.float32))))
    return finder.result(band)


def white(amplitude, samples=PIECE, seed=0):
    return amplitude * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def off_db(power, amplitude):
    return 10 * np.log10(power.mean() / (amplitude**2 * WINDOW_POWER))


def filtered(wav, cutoff_hz, family="cheby1", order=8):
    low_pass = Degradation(cutoff_hz, family, order)
    band = Band(low_pass.passband_hz(SAMPLE_RATE), low_pass.stopband_hz(SAMPLE_RATE))
    return low_pass.apply(wav, SAMPLE_RATE), band


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_hiss_on_a_full_band_is_measured(music, amplitude):
    power = power_of(0.03 * music + white(amplitude, len(music)))
    assert off_db(power[100:800], amplitude) == pytest.approx(0, abs=1)


# A soft filter takes some of the noise before the band ends, and is known to 3.5 dB.
@pytest.mark.parametrize(
    "low_pass", [(16_000, "cheby1", 8), (8000, "ellip", 10), (8000, "butter", 2), (4000, "cheby1", 8)]
)
def test_hiss_that_was_filtered_with_the_music_is_measured_as_the_filter_left_it(music, low_pass):
    wav, band = filtered(np.resize(0.03 * music, PIECE) + white(0.02), *low_pass)
    power = power_of(wav, band=band)
    left, _ = filtered(white(0.02, seed=1), *low_pass)
    truth = smoothed_power(torch.from_numpy(left)).mean(0)
    known = slice(12, int(0.97 * band.passband_hz / BINS_HZ[1]))
    np.testing.assert_allclose(10 * np.log10(power[known] / truth[known]), 0, atol=2.5)
    assert off_db(power[12 : int(0.5 * low_pass[0] / BINS_HZ[1])], 0.02) == pytest.approx(0, abs=1.5)


def test_hiss_is_white_noise_as_far_as_it_reaches(music):
    low_pass = signal.butter(12, 20_800, output="sos", fs=SAMPLE_RATE)
    high_pass = signal.butter(12, 300, "highpass", output="sos", fs=SAMPLE_RATE)
    hiss = signal.sosfiltfilt(high_pass, signal.sosfiltfilt(low_pass, white(0.01, len(music))))
    power = power_of(0.003 * music + hiss)
    assert off_db(power[40:850], 0.01) == pytest.approx(0, abs=1)
    assert not power[BINS_HZ > 22_000].any()


@pytest.mark.parametrize(("above", "found"), [(0.0, True), (0.006, True), (0.02, False)])
def test_noise_that_is_as_loud_above_the_band_is_not_the_bands_own(music, above, found):
    wav, band = filtered(0.01 * music + white(0.02, len(music)), 8000)
    power = power_of(wav + white(above, len(music), seed=2), band=band)
    assert power.any() == found
    if found:
        assert not power[round(1.1 * band.stopband_hz / BINS_HZ[1]) :].any()
        assert off_db(power[100:300], 0.02) == pytest.approx(0, abs=1)


def swelling():
    return white(0.02) * (1 + np.sin(np.arange(PIECE) / 20_000))


def sloping():
    return signal.lfilter(*signal.butter(2, 12_000, fs=SAMPLE_RATE), white(0.02))


def rippled():
    """By 8 dB, every 160 Hz: as steady as noise, and as flat, but neighbouring bins differ."""
    noise = white(0.02)
    return noise + 0.45 * np.roll(noise, 300)


def periodic():
    """A period of a Hann window's length: every bin holds one sinusoid, as loud as the next, for ever."""
    spectrum = np.exp(2j * np.pi * np.random.default_rng(0).random(1025))
    return 0.3 * np.tile(np.fft.irfft(spectrum), PIECE // 2048 + 1)[:PIECE]


def choir():
    time_s = np.arange(PIECE) / SAMPLE_RATE
    return 0.001 * sum(np.sin(2 * np.pi * hz * n * time_s + n * n) for n in range(1, 400) for hz in (54.9, 55.1))


def buzz():
    return 0.1 * signal.square(2 * np.pi * 41 * np.arange(PIECE) / SAMPLE_RATE)


def trembling():
    return white(0.02) * (1 + 0.5 * np.sin(2 * np.pi * 4 * np.arange(PIECE) / SAMPLE_RATE))


@pytest.mark.parametrize("sound", [swelling, sloping, rippled, periodic, choir, buzz, trembling])
def test_what_swells_slopes_ripples_or_is_held_is_no_hiss(sound):
    assert not power_of(sound()).any()


def test_what_cannot_be_heard_is_no_hiss():
    assert power_of(white(1e-4)).any()
    assert not power_of(white(1e-5)).any()
    assert not power_of(np.zeros(PIECE)).any()
    assert not power_of().any()


def test_hiss_needs_two_seconds():
    assert power_of(white(0.02, round(2.2 * SAMPLE_RATE))).any()
    assert not power_of(white(0.02, round(1.8 * SAMPLE_RATE))).any()


def test_a_band_of_less_than_a_kilohertz_shows_nothing():
    wav, band = filtered(white(0.02), 900)
    assert not power_of(wav, band=band).any()


LOUD, QUIETER = 5 * sloping() + white(0.01, seed=9), swelling()


@pytest.mark.parametrize(
    ("noisy", "others", "found"),
    [(1, [LOUD] * 3, True), (1, [LOUD] * 4, False), (2, [QUIETER] * 2, False), (3, [QUIETER] * 2, True)],
)
def test_hiss_lasts(noisy, others, found):
    assert power_of(*(white(0.01, seed=k) for k in range(noisy)), *others).any() == found


@pytest.mark.parametrize("fade_s", [0.5, 8.0])
def test_hiss_that_fades_with_the_music_at_the_end_is_found(music, fade_s):
    noisy = np.resize(0.03 * music, 3 * PIECE) + white(0.005, 3 * PIECE)
    noisy[-round(fade_s * SAMPLE_RATE) :] *= np.linspace(1, 0, round(fade_s * SAMPLE_RATE))
    assert off_db(power_of(*np.split(noisy, 3))[100:800], 0.005) == pytest.approx(0, abs=1.5)
