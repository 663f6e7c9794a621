"""Stationary tones: found with their three numbers, subtracted without touching the music."""

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.data import tracks as data
from srlib.degrade import Degradation
from srlib.restore.tones import Tone, ToneFinder, fit_tone, without


def find_tones(wav: np.ndarray, sample_rate: int) -> list[Tone]:
    """Stationary sinusoids of `[samples]`, strongest first."""
    finder = ToneFinder(sample_rate)
    finder.add(wav)
    return [fit_tone(wav, frequency_hz, sample_rate) for frequency_hz in finder.result()]


def subtract_tones(wav: np.ndarray, sample_rate: int) -> tuple[np.ndarray, list[Tone]]:
    """`[samples]` float32 without its stationary sinusoids, and what was subtracted."""
    tones = find_tones(wav, sample_rate)
    return without(wav, tones, sample_rate), tones


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    track = next(track for track in data.load_dataset("demo", "valid"))
    return track.mixture(2.0, 5.12)


@pytest.mark.parametrize(
    ("frequency_hz", "amplitude"), [(440.0, 0.2), (3217.3, 0.2), (12_345.6, 0.2), (12_345.6, 0.01)]
)
def test_a_tone_in_music_is_measured_and_subtracted(music, frequency_hz, amplitude):
    tone = Tone(frequency_hz, amplitude, 1.1)
    clean, found = subtract_tones(music + tone.render(len(music), SAMPLE_RATE).astype(np.float32), SAMPLE_RATE)
    assert len(found) == 1
    assert found[0].frequency_hz == pytest.approx(frequency_hz, abs=0.02)
    left = clean - music
    time = np.arange(len(music)) / SAMPLE_RATE
    remaining = 2 * abs(np.dot(left, np.exp(-2j * np.pi * frequency_hz * time))) / len(left)
    assert 20 * np.log10(amplitude / remaining) > 30  # dB


def test_a_tone_alone_is_recovered_to_rounding():
    tone = Tone(1000.25, 0.1, 0.3)
    found = find_tones(tone.render(2 * SAMPLE_RATE, SAMPLE_RATE), SAMPLE_RATE)
    assert found[0].amplitude == pytest.approx(0.1, rel=1e-4)
    assert found[0].phase == pytest.approx(0.3, abs=1e-3)


def test_music_without_a_tone_is_returned_bit_for_bit(music):
    clean, found = subtract_tones(music, SAMPLE_RATE)
    assert not found
    assert np.array_equal(clean, music)


def test_white_noise_holds_no_tone():
    noise = Degradation(noise_type="white", noise_amplitude=0.1).apply(np.zeros(4 * SAMPLE_RATE), SAMPLE_RATE)
    assert not find_tones(noise, SAMPLE_RATE)


def test_a_held_chord_is_music():
    chord = sum(Tone(f, 0.1, 0).render(3 * SAMPLE_RATE, SAMPLE_RATE) for f in (220.0, 440.0, 660.0, 880.0))
    assert not find_tones(chord, SAMPLE_RATE)


def test_short_clips_are_left_alone():
    assert not find_tones(Tone(1000, 0.1, 0).render(SAMPLE_RATE // 2, SAMPLE_RATE), SAMPLE_RATE)


def test_digital_silence_neither_hides_a_tone_nor_gets_one(music):
    tone = Tone(3217.3, 0.1, 0.4)
    wav = music + tone.render(len(music), SAMPLE_RATE).astype(np.float32)
    silent = slice(100_000, 112_000)
    wav[silent] = 0
    clean, found = subtract_tones(wav, SAMPLE_RATE)
    assert len(found) == 1
    assert found[0].amplitude == pytest.approx(0.1, rel=0.03)
    assert not clean[silent].any()
