"""Stationary noise on real music: its level is measured, it goes, and where there is none nothing changes."""

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.audio.stft import log_mel
from srlib.degrade import Degradation
from srlib.measure import baselines
from srlib.measure.metrics import lsd, snr_low_db
from srlib.restore.hiss import HissFinder
from srlib.restore.merge import FULL_BAND, Band, merge
from srlib.restore.noise import NoiseFloor, noise_gain, smoothed_power

SAMPLE_RATE = 48000
BAND = Band(8000, 8560)
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())
CLEAN = Degradation(8000, "ellip", 10)


def floor_of(*chunks, band=BAND):
    floor, finder = NoiseFloor(), HissFinder()
    for chunk in chunks:
        power = smoothed_power(torch.from_numpy(np.ascontiguousarray(chunk)))
        floor.add(power)
        finder.add(power)
    return floor.result(band, finder.result(band))


def noisy_music(music, amplitude, seed=1):
    noise = np.random.default_rng(seed).standard_normal(len(music)).astype(np.float32)
    return CLEAN.apply(music, SAMPLE_RATE) + np.float32(amplitude) * noise


def denoised(wav, clean, floor):
    """The known band of `wav`, with the exact log-mel of `clean` in the place of a model's."""
    wav, clean = torch.from_numpy(wav), torch.from_numpy(clean)
    return merge(clean, wav, BAND, "gain", noise_gain(wav, log_mel(clean)[0, 0], floor)).numpy()


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_white_noise_under_music_is_measured_to_one_decibel(music, amplitude):
    floor = floor_of(noisy_music(music, amplitude))[10:330]
    assert 10 * np.log10(floor.mean() / (amplitude**2 * WINDOW_POWER)) == pytest.approx(0, abs=1)


def test_where_there_is_no_noise_nothing_is_found(music):
    assert not floor_of(CLEAN.apply(music, SAMPLE_RATE)).any()
    assert not floor_of(music, band=FULL_BAND).any()
    wav = torch.from_numpy(music)
    assert noise_gain(wav, log_mel(wav)[0, 0], np.zeros(1025)) is None
    assert not NoiseFloor().result(BAND).any()  # nothing was heard
    assert not HissFinder().result(FULL_BAND).any()


def test_chunks_and_digital_silence_leave_the_level_as_it_is(music):
    wav = noisy_music(music, 0.01)
    whole, silence = floor_of(wav), np.zeros(3 * SAMPLE_RATE, np.float32)
    for chunks in ((wav[:60_000], wav[60_000:]), (wav, silence), (np.concatenate([silence, wav]),)):
        ratio_db = 10 * np.log10(floor_of(*chunks)[10:340] / whole[10:340])
        assert abs(np.median(ratio_db)) < 0.6


def hiss(amplitude, samples):
    return amplitude * np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def off_db(floor, amplitude):
    return 10 * np.log10(floor.mean() / (amplitude**2 * WINDOW_POWER))


def test_noise_that_was_filtered_too_is_found_where_it_is_steady(music):
    wav = CLEAN.apply(0.1 * music + hiss(0.02, len(music)), SAMPLE_RATE)
    assert off_db(floor_of(wav)[250:330], 0.02) == pytest.approx(0, abs=2)
    assert not floor_of(CLEAN.apply(0.1 * music, SAMPLE_RATE)).any()


def test_noise_that_slopes_inside_the_band_is_not_taken_for_white(music):
    falling = signal.lfilter(*signal.butter(2, 3000, fs=SAMPLE_RATE), hiss(0.05, len(music))).astype(np.float32)
    assert not floor_of(CLEAN.apply(0.03 * music + falling, SAMPLE_RATE)).any()


def test_noise_that_rolls_off_above_hearing_is_measured_where_it_is_white(music):
    rolled_off = signal.sosfiltfilt(signal.butter(4, 21_000, output="sos", fs=SAMPLE_RATE), hiss(0.01, len(music)))
    wav = (0.03 * music + rolled_off).astype(np.float32)
    assert off_db(floor_of(wav, band=FULL_BAND)[300:800], 0.01) == pytest.approx(0, abs=1)


def test_silence_after_a_loud_moment_has_a_level(music):
    wav = np.concatenate([music[:SAMPLE_RATE], 1e-6 * np.hanning(SAMPLE_RATE).astype(np.float32)])
    loud = hiss(0.9, len(wav)) * (np.arange(len(wav)) < SAMPLE_RATE // 2)
    floor = floor_of(wav + loud, band=FULL_BAND)
    assert np.isfinite(floor).all()


@pytest.mark.parametrize("amplitude", [0.001, 0.005, 0.02])
def test_white_noise_goes_and_no_level_of_it_makes_things_worse(music, amplitude):
    clean, wav = CLEAN.apply(0.1 * music, SAMPLE_RATE), noisy_music(0.1 * music, amplitude)
    restored = denoised(wav, clean, floor_of(wav))
    wiener = baselines.wiener(wav, SAMPLE_RATE)
    before, after, blind = (snr_low_db(clean, estimate, 7800) for estimate in (wav, restored, wiener))
    assert after > before
    assert after > blind
    distance = [lsd(clean, estimate, convention="plain", f_high=7800) for estimate in (wav, wiener, restored)]
    assert distance[2] < min(distance[:2])


@pytest.mark.parametrize("amplitude", [0.0005, 0.005])
def test_noise_is_not_raised_where_the_fall_of_the_low_pass_is_taken_back(music, amplitude):
    low_pass = Degradation(8000)
    band = Band(low_pass.passband_hz(SAMPLE_RATE), low_pass.stopband_hz(SAMPLE_RATE))
    noise = np.random.default_rng(1).standard_normal(len(music)).astype(np.float32)
    degraded = low_pass.apply(music, SAMPLE_RATE) + np.float32(amplitude) * noise
    wav, clean = torch.from_numpy(degraded), torch.from_numpy(music)
    spectrum = np.fft.rfft(music)  # as loud as the music, but with nothing else of it
    phases = np.exp(2j * np.pi * np.random.default_rng(2).random(len(spectrum)))
    generated = torch.from_numpy(np.fft.irfft(spectrum * phases, len(music)).astype(np.float32))
    gain = noise_gain(wav, log_mel(clean)[0, 0], floor_of(degraded, band=band), band)
    merged = merge(generated, wav, band, "gain", gain).numpy()
    hz = np.fft.rfftfreq(len(music), 1 / SAMPLE_RATE)
    fall = (hz > band.stopband_hz) & (hz < band.stopband_hz + band.stopband_hz - band.passband_hz)
    power = [np.square(np.abs(np.fft.rfft(wav)[fall])).sum() for wav in (merged, music)]
    assert 10 * np.log10(power[0] / power[1]) == pytest.approx(0, abs=0.8)


def test_the_gain_only_lowers_and_only_where_there_is_noise(music):
    wav, floor = torch.from_numpy(music), np.zeros(1025)
    floor[400:500] = 1.0
    gain = noise_gain(wav, log_mel(wav)[0, 0], floor)
    assert gain.shape == (len(music) // 480 + 1, 1025)
    assert 0 <= gain.min() < 0.5 and gain.max() == 1
    outside = np.r_[:400, 500:1025]
    assert (gain[:, outside] == 1).all()


@pytest.mark.parametrize("samples", [1, 480, 3000])
def test_any_length_will_do(samples):
    wav = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    floor = floor_of(wav)
    gain = noise_gain(torch.from_numpy(wav), torch.zeros(1, 256), floor)
    assert np.isfinite(floor).all()
    assert gain is None or torch.isfinite(gain).all()
