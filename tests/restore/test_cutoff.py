"""The cutoff detector on filters, coders, rates and noises whose edges are known."""

import numpy as np
import pytest
import torch

from srlib.audiosr.compatible import detect_cutoff_hz
from srlib.data.tracks import load_dataset
from srlib.degrade import FILTER_TYPES, Degradation
from srlib.measure.conditions import Command
from srlib.restore.cutoff import BandDetector, detect_band
from srlib.restore.merge import FULL_BAND

SAMPLE_RATE = 48000


def band_of(wav):
    return detect_band(torch.from_numpy(np.asarray(wav, dtype=np.float32)))


def brownian(seconds=4, level=0.1):
    """Gaussian noise with a power spectrum of 1 / f**2."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(seconds * SAMPLE_RATE))
    spectrum[1:] /= np.arange(1, len(spectrum))
    wav = np.fft.irfft(spectrum)
    return level * wav / wav.std()


@pytest.fixture(scope="module")
def tracks():
    chosen = load_dataset("demo", "test")
    return [chosen[index].mixture(start=2.0, seconds=4.0) for index in (1, 3, 5)]


@pytest.mark.parametrize("order", [2, 6, 10])
@pytest.mark.parametrize("family", FILTER_TYPES)
def test_edge_of_filtered_music_lies_in_the_transition(music, family, order):
    for cutoff_hz in (4000, 8000) if order == 2 else (2000, 4000, 8000, 14000):
        filtered = Degradation(cutoff_hz, family, order)
        band = band_of(filtered.apply(music, SAMPLE_RATE))
        passband_hz, stopband_hz = filtered.passband_hz(SAMPLE_RATE), filtered.stopband_hz(SAMPLE_RATE)
        assert 0.9 * passband_hz <= band.passband_hz <= 1.1 * stopband_hz
        assert band.passband_hz < band.stopband_hz <= 1.5 * stopband_hz


@pytest.mark.parametrize("cutoff_hz", [2000, 4000, 8000, 16000])
def test_a_falling_spectrum_is_no_filter(cutoff_hz):
    wav = brownian()
    assert band_of(wav) == FULL_BAND
    cut = Degradation(cutoff_hz, "cheby1", 8).apply(wav, SAMPLE_RATE)
    assert band_of(cut).passband_hz == pytest.approx(cutoff_hz, rel=0.1)
    assert detect_cutoff_hz(torch.from_numpy(cut)) < 0.8 * cutoff_hz  # AudioSR's detector


@pytest.mark.parametrize("level", [1.0, 0.03])
def test_full_band_music_is_full_at_any_level(tracks, level):
    for wav in tracks:
        assert band_of(level * wav) == FULL_BAND


def test_white_noise_is_full_band():
    assert band_of(0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)) == FULL_BAND


@pytest.mark.parametrize("tone_hz", [3000, 9000, 14000])
def test_a_loud_tone_does_not_move_the_edge(music, tone_hz):
    for cutoff_hz in (4000, 8000):
        noisy = Degradation(cutoff_hz, "ellip", 6, "tone", 0.2, tone_hz).apply(music, SAMPLE_RATE)
        assert band_of(noisy).passband_hz == pytest.approx(cutoff_hz, rel=0.12)


def test_white_noise_over_the_edge(music):
    noisy = Degradation(4000, "cheby1", 8, "white", 0.02).apply(music, SAMPLE_RATE)
    assert band_of(noisy).passband_hz == pytest.approx(4000, rel=0.12)


STORED = (
    *("-ar 8000", "-ar 22050", "-ar 44100 -c:a libmp3lame -b:a 40k -f mp3", "-ar 44100 -c:a aac -b:a 32k -f mp4"),
    "-c:a libopus -b:a 32k -cutoff 12000 -f ogg",
)


@pytest.mark.parametrize("arguments", STORED)
def test_edge_of_stored_music_is_that_of_the_rate_or_coder(tracks, arguments):
    change = Command(f"ffmpeg -i {{in}} {arguments} {{out}}")
    found_hz = band_of(change.apply(tracks[0], SAMPLE_RATE)).passband_hz
    assert found_hz == pytest.approx(change.passband_hz(SAMPLE_RATE), rel=0.1)


@pytest.mark.parametrize("coder", ["libmp3lame -f mp3", "aac -f mp4"])
@pytest.mark.parametrize("name", ["caribbean", "ocean"])
def test_music_that_falls_towards_a_coders_wall_is_no_soft_filter(name, coder):
    (track,) = (one for one in load_dataset("demo", "valid") if name in one.name)
    change = Command(f"ffmpeg -i {{in}} -c:a {coder} -b:a 64k {{out}}")
    assert band_of(change.apply(track.mixture(), SAMPLE_RATE)).passband_hz > 13_000


def test_gaps_and_silence_say_nothing(music):
    whole = band_of(Degradation(5000).apply(music, SAMPLE_RATE))
    cut = band_of(Degradation(5000, gaps=((0.5, 0.75), (1.5, 1.75))).apply(music, SAMPLE_RATE))
    assert cut.passband_hz == pytest.approx(whole.passband_hz, rel=0.05)
    assert band_of(np.zeros(SAMPLE_RATE)) == FULL_BAND
    assert BandDetector().result() == FULL_BAND
