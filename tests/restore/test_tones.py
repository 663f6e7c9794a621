"""Stationary tones and mains hum: found, measured and subtracted; notes that music holds are left to it."""

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE
from srlib.data import tracks as data
from srlib.degrade import Degradation
from srlib.measure.metrics import tone_suppression_db
from srlib.restore.tones import Comb, Tone, ToneFinder, fit, subtract_tones

SECONDS = 5.12
TIME = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE


def found_in(wav: np.ndarray) -> list:
    finder = ToneFinder(SAMPLE_RATE)
    for start in range(0, len(wav), 50_000):
        finder.add(wav[start : start + 50_000].astype(np.float32))
    return finder.result()


def subtracted(wav: np.ndarray) -> tuple[np.ndarray, list[Comb]]:
    return subtract_tones(wav, found := found_in(wav), SAMPLE_RATE), found


def note(hz: float, amplitude: float = 0.1, partials: int = 1) -> np.ndarray:
    return sum(amplitude * np.sin(2 * np.pi * k * hz * TIME + k) / k for k in range(1, partials + 1))


@pytest.fixture(scope="module")
def music() -> np.ndarray:
    track = next(track for track in data.load_dataset("demo", "valid"))
    return track.mixture(2.0, SECONDS)


# At 440 Hz, and where it is quiet, the music's own sound at that frequency is not told from the tone.
@pytest.mark.parametrize(
    ("cutoff_hz", "tone_hz", "amplitude", "least_db"),
    [
        (4000, 440.0, 0.2, 38),
        (4000, 3217.3, 0.2, 40),
        (16_000, 3217.3, 0.2, 40),
        (16_000, 12_345.6, 0.2, 40),
        (16_000, 12_345.6, 0.01, 34),
        (8000, 14_980.3, 0.001, 40),
    ],
)
def test_the_tones_of_the_source_report_go(music, cutoff_hz, tone_hz, amplitude, least_db):
    degradation = Degradation(cutoff_hz, noise_type="tone", tone_hz=tone_hz, noise_amplitude=amplitude)
    clean, found = subtracted(degradation.apply(music, SAMPLE_RATE))
    assert [(comb.fundamental_hz, comb.kind) for comb in found] == [(pytest.approx(tone_hz, abs=0.02), "tone")]
    known = Degradation(cutoff_hz).apply(music, SAMPLE_RATE)
    assert tone_suppression_db(known, clean, tone_hz, amplitude) > least_db


def test_a_tone_alone_is_recovered_to_rounding():
    wav = Tone(1000.25, 0.1, 0.3).render(2 * SAMPLE_RATE, SAMPLE_RATE)
    (tone,) = fit(wav, *found_in(wav), SAMPLE_RATE)
    assert tone.amplitude == pytest.approx(0.1, rel=1e-4)
    assert tone.phase == pytest.approx(0.3, abs=1e-3)


HELD = {
    "nothing": lambda: 0 * TIME,
    "a note and its partials": lambda: note(440, partials=7),
    "a note with one partial": lambda: note(440, partials=2),
    "a note with an attack": lambda: note(440) * (0.01 + (TIME > 0.4)),
    "a note that decays by 3 dB": lambda: note(440) * 10 ** (-3 / 20 * TIME / TIME[-1]),
    "a note out of tune with itself": lambda: note(440) + note(441.3),
    "a voice that slides": lambda: 0.1 * np.sin(2 * np.pi * (440 + 0.3 * TIME) * TIME),
    "the bass note G1": lambda: note(49.0, partials=8),
    "a chord": lambda: note(220) + note(277.2) + note(329.6),
    "white noise": lambda: 0.1 * np.random.default_rng(0).standard_normal(len(TIME)),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("kind", HELD)
def test_what_music_holds_stays_to_the_bit(music, kind, alone):
    wav = (HELD[kind]() + (0 if alone else music)).astype(np.float32)
    clean, found = subtracted(wav)
    assert not found and np.array_equal(clean, wav)


@pytest.mark.parametrize(("mains_hz", "drift_hz"), [(50.03, 0.0), (59.9, 0.0), (50.2, 0.0), (50.0, 0.004)])
def test_hum_is_found_as_a_comb_and_goes(music, mains_hz, drift_hz):
    rng, numbers = np.random.default_rng(0), (1, 2, 3, 4, 5, 7, 9, 12)
    lines = [Tone(k * mains_hz, 0.1 / k, rng.uniform(0, 6), k * drift_hz) for k in numbers]
    hum = sum(line.render(len(TIME), SAMPLE_RATE) for line in lines)
    clean, (comb,) = subtracted(0.1 * music + hum)
    assert (comb.kind, comb.fundamental_hz) == ("hum", pytest.approx(mains_hz, abs=0.1))
    left = clean - 0.1 * music
    assert 10 * np.log10(np.square(hum).sum() / np.square(left).sum()) > 20
    assert [comb.kind for comb in found_in(0.1 * music + hum + note(3000.5))] == ["hum", "tone"]


def test_short_clips_are_left_alone():
    assert not found_in(Tone(1000, 0.1, 0).render(SAMPLE_RATE // 2, SAMPLE_RATE))


def test_digital_silence_neither_hides_a_tone_nor_gets_one(music):
    wav = (music + Tone(3217.3, 0.1, 0.4).render(len(music), SAMPLE_RATE)).astype(np.float32)
    silent = slice(100_000, 112_000)
    wav[silent] = 0
    clean, found = subtracted(wav)
    assert [tone.amplitude for tone in fit(wav, *found, SAMPLE_RATE)] == [pytest.approx(0.1, rel=0.03)]
    assert not clean[silent].any()
