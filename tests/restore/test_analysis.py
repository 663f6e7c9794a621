"""What the first passes find in recordings whose tones, gaps, levels, noise and band are known."""

import numpy as np
import pytest

from srlib.audio.recording import Recording
from srlib.restore.analysis import measure, prepare, survey
from srlib.restore.merge import FULL_BAND

SAMPLE_RATE = 48_000


def test_noise_that_cancels_in_the_downmix_is_known_to_be_in_the_channels():
    rng, time_s = np.random.default_rng(0), np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    drums = 0.3 * rng.standard_normal(len(time_s)) * np.exp(-40 * (time_s % 0.5))
    hiss = 0.01 * rng.standard_normal(len(time_s))
    recording = Recording.from_array(np.stack([drums + hiss, drums - hiss]).astype(np.float32), SAMPLE_RATE)
    surveyed = survey(recording, (), find_tones=False)
    downmix, *channels = measure(recording, surveyed, FULL_BAND, find_noise=True).floors
    assert not downmix.any()
    window_power = np.square(np.hanning(2049)).sum()
    levels = [np.sqrt(channel[20:800].mean() / window_power) for channel in channels]
    assert levels == pytest.approx([0.01, 0.01], rel=0.05)
    unasked = measure(recording, surveyed, FULL_BAND, find_noise=False).floors
    assert unasked.shape == (3, 1025) and not unasked.any()


def tone(seconds=3.0, hz=3000.0, amplitude=0.1, sample_rate=SAMPLE_RATE) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)


def swelling_noise(seconds=3.0, sample_rate=SAMPLE_RATE) -> np.ndarray:
    samples = round(seconds * sample_rate)
    return 0.03 * np.random.default_rng(0).standard_normal(samples) * (1 + np.sin(np.arange(samples) / 2000))


def test_the_survey_finds_tones_gaps_and_channels_and_the_tones_are_subtracted():
    music = swelling_noise()
    sounding = music + tone()
    sounding[48_000:60_000] = 0
    rows = np.stack([sounding, sounding, np.zeros_like(sounding), 0.5 * music])
    recording = Recording.from_array(rows.astype(np.float32), SAMPLE_RATE)
    found = survey(recording, "auto", find_tones=True)
    assert (found.layout.unique, found.layout.copies) == ((0, 3), (0, 0, None, 1))
    assert [[round(one.fundamental_hz) for one in channel] for channel in found.tones] == [[3000], []]
    assert found.gaps == ()  # one channel still sounds
    (prepared,) = prepare(recording, found)
    assert [round(one.amplitude, 2) for one in prepared.tones] == [0.1]
    np.testing.assert_allclose(prepared.wav[0, 100:40_000], music[100:40_000], atol=3e-3)
    alone = Recording.from_array(rows[:2].astype(np.float32), SAMPLE_RATE)
    ((start, end),) = survey(alone, "auto", find_tones=False).gaps
    assert (start, end) == pytest.approx((1.0, 1.25), abs=1e-4)
    assert survey(alone, [(0.1, 0.2)], find_tones=False).gaps == ((0.1, 0.2),)


@pytest.mark.parametrize(("peak", "level"), [(0.02, 5.0), (0.5, 1.0), (4.0, 0.25), (0.0, 1.0)])
def test_the_level_brings_the_peak_to_what_the_model_was_trained_on(peak, level):
    wav = np.linspace(-peak, peak / 2, 4800, dtype=np.float32)
    assert survey(Recording.from_array(wav, SAMPLE_RATE), (), find_tones=False).level == pytest.approx(level)


def test_the_band_ends_where_the_sample_rate_ends_it():
    recording = Recording.from_array(swelling_noise(2.0, 16_000).astype(np.float32), 16_000)
    surveyed = survey(recording, (), find_tones=False)
    measured = measure(recording, surveyed, None, find_noise=False)
    assert 0.9 * 8000 < measured.band.passband_hz <= 8000 and measured.floors.shape == (1, 1025)
    assert measure(recording, surveyed, FULL_BAND, find_noise=False).band == FULL_BAND  # a band that is given stays
