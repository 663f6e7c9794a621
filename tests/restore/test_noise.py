"""White noise on real music: measured and taken out, above the band and in it, and told from what resembles it."""

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.audio.stft import log_mel
from srlib.degrade import Degradation
from srlib.measure import baselines
from srlib.measure.lsd import lsd, plain
from srlib.measure.metrics import snr_low_db
from srlib.restore.merge import FULL_BAND, Band, merge
from srlib.restore.noise import NoiseFloor, noise_gain, smoothed_power

SAMPLE_RATE = 48000
BAND = Band(8000, 8560)
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())
BINS_HZ = np.linspace(0, 24_000, 1025)
CLEAN = Degradation(8000, "ellip", 10)
CHUNK = 10 * SAMPLE_RATE


def floor_of(*chunks, band=BAND):
    floor = NoiseFloor()
    for chunk in chunks:
        floor.add(torch.from_numpy(np.ascontiguousarray(chunk, np.float32)))
    return floor.result(band)


def in_band(*chunks, band=FULL_BAND):
    finder = NoiseFloor()
    for chunk in chunks:
        finder.add(torch.from_numpy(np.ascontiguousarray(chunk, np.float32)))
    return finder.in_band(band)


def white(amplitude, samples=CHUNK, seed=0):
    return amplitude * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def off_db(power, amplitude):
    return 10 * np.log10(power.mean() / (amplitude**2 * WINDOW_POWER))


def filtered(wav, cutoff_hz, family="cheby1", order=8):
    low_pass = Degradation(cutoff_hz, family, order)
    band = Band(low_pass.passband_hz(SAMPLE_RATE), low_pass.stopband_hz(SAMPLE_RATE))
    return low_pass.apply(wav, SAMPLE_RATE), band


def noisy_music(music, amplitude):
    return CLEAN.apply(music, SAMPLE_RATE) + white(amplitude, len(music), seed=1)


def denoised(wav, clean, floor):
    """The known band of `wav`, with the exact log-mel of `clean` in the place of a model's."""
    wav, clean = torch.from_numpy(wav), torch.from_numpy(clean)
    return merge(clean, wav, BAND, "gain", noise_gain(wav, log_mel(clean)[0, 0], floor)).numpy()


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_white_noise_above_the_band_is_measured_to_one_decibel(music, amplitude):
    assert off_db(floor_of(noisy_music(music, amplitude))[10:330], amplitude) == pytest.approx(0, abs=1)


def test_where_there_is_no_noise_nothing_is_found(music):
    assert not floor_of(CLEAN.apply(music, SAMPLE_RATE)).any()
    assert not floor_of(CLEAN.apply(0.1 * music, SAMPLE_RATE)).any()
    assert not floor_of(music, band=FULL_BAND).any()
    for samples in (100, 1000, 6000):  # a sound of a game
        assert not floor_of(CLEAN.apply(music, SAMPLE_RATE)[24_000 : 24_000 + samples]).any()
    wav = torch.from_numpy(music)
    assert noise_gain(wav, log_mel(wav)[0, 0], np.zeros(1025)) is None
    assert not NoiseFloor().result(BAND).any()


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_noise_on_a_full_band_is_measured(music, amplitude):
    power = in_band(0.03 * music + white(amplitude, len(music)))
    assert off_db(power[100:800], amplitude) == pytest.approx(0, abs=1)


# A soft filter takes some of the noise before the band ends, and is known to 3.5 dB.
@pytest.mark.parametrize(
    "low_pass", [(16_000, "cheby1", 8), (8000, "ellip", 10), (8000, "butter", 2), (4000, "cheby1", 8)]
)
def test_noise_that_was_filtered_with_the_music_is_measured_as_the_filter_left_it(music, low_pass):
    wav, band = filtered(np.resize(0.03 * music, CHUNK) + white(0.02), *low_pass)
    power = in_band(wav, band=band)
    left, _ = filtered(white(0.02, seed=1), *low_pass)
    truth = smoothed_power(torch.from_numpy(left)).mean(0)
    known = slice(12, int(0.97 * band.passband_hz / BINS_HZ[1]))
    np.testing.assert_allclose(10 * np.log10(power[known] / truth[known]), 0, atol=2.5)
    assert off_db(power[12 : int(0.5 * low_pass[0] / BINS_HZ[1])], 0.02) == pytest.approx(0, abs=1.5)


@pytest.mark.parametrize(("above", "found"), [(0.0, True), (0.006, True), (0.02, False)])
def test_noise_that_is_as_loud_above_the_band_is_not_the_bands_own(music, above, found):
    wav, band = filtered(0.01 * music + white(0.02, len(music)), 8000)
    power = in_band(wav + white(above, len(music), seed=2), band=band)
    assert power.any() == found
    if found:
        assert off_db(power[100:300], 0.02) == pytest.approx(0, abs=1)


def sloping():
    return signal.lfilter(*signal.butter(2, 12_000, fs=SAMPLE_RATE), white(0.02))


def swelling():
    return white(0.02) * (1 + np.sin(np.arange(CHUNK) / 20_000))


NO_NOISE = {
    "swelling": swelling,
    "sloping": sloping,
    "rippled by 8 dB every 160 Hz": lambda: white(0.02) + 0.45 * np.roll(white(0.02), 300),
    "inaudible": lambda: white(1e-5),
    "silence": lambda: np.zeros(CHUNK),
    "shorter than two seconds": lambda: white(0.02, round(1.8 * SAMPLE_RATE)),
}


@pytest.mark.parametrize("sound", NO_NOISE)
def test_what_swells_slopes_ripples_or_is_short_or_inaudible_is_no_in_band_noise(sound):
    assert not in_band(NO_NOISE[sound]()).any()


LOUD, QUIETER = 5 * sloping() + white(0.01, seed=9), swelling()


@pytest.mark.parametrize(
    ("noisy", "others", "found"),
    [(1, [LOUD] * 3, True), (1, [LOUD] * 4, False), (2, [QUIETER] * 2, False), (3, [QUIETER] * 2, True)],
)
def test_in_band_noise_lasts(noisy, others, found):
    assert in_band(*(white(0.01, seed=k) for k in range(noisy)), *others).any() == found


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_white_noise_goes_and_no_level_of_it_makes_things_worse(music, amplitude):
    clean, wav = CLEAN.apply(0.1 * music, SAMPLE_RATE), noisy_music(0.1 * music, amplitude)
    restored = denoised(wav, clean, floor_of(wav))
    wiener = baselines.wiener(wav)
    before, after, blind = (snr_low_db(clean, estimate, 7800) for estimate in (wav, restored, wiener))
    assert after > max(before, blind)
    distance = [lsd(clean, estimate, convention=plain(f_high=7800)) for estimate in (wav, wiener, restored)]
    assert distance[2] < min(distance[:2])
