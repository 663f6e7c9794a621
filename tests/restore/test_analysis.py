"""What is found in recordings whose tones, gaps, levels, noise and bands are known."""

from dataclasses import replace

import numpy as np
import pytest

from srlib.audio.recording import Recording
from srlib.restore.analysis import Analysis, analyse
from srlib.restore.merge import FULL_BAND
from srlib.restore.options import Options

SAMPLE_RATE = 48_000


def analysed(*channels: np.ndarray, sample_rate: int = SAMPLE_RATE, **options) -> tuple[Recording, Analysis]:
    recording = Recording.from_array(np.stack(channels).astype(np.float32), sample_rate)
    return recording, analyse(recording, Options(**options), has_prior=True)


def swelling_noise(seconds: float = 3.0, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    samples = round(seconds * sample_rate)
    return 0.03 * np.random.default_rng(0).standard_normal(samples) * (1 + np.sin(np.arange(samples) / 2000))


def test_noise_that_cancels_in_the_downmix_is_known_to_be_in_the_channels():
    rng, time_s = np.random.default_rng(0), np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    drums = 0.3 * rng.standard_normal(len(time_s)) * np.exp(-40 * (time_s % 0.5))
    hiss = 0.01 * rng.standard_normal(len(time_s))
    (part,) = analysed(drums + hiss, drums - hiss, cutoff_hz=None)[1].parts
    downmix, *channels = part.floors
    assert not downmix.any()
    window_power = part.level**2 * np.square(np.hanning(2049)).sum()
    levels = [np.sqrt(channel[20:800].mean() / window_power) for channel in channels]
    assert levels == pytest.approx([0.01, 0.01], rel=0.05)
    (part,) = analysed(drums + hiss, drums - hiss, cutoff_hz=None, denoise="off")[1].parts
    assert part.floors.shape == (3, 1025) and not part.floors.any()


def test_tones_gaps_and_channels_are_found_and_the_tones_are_subtracted():
    music = swelling_noise()
    sounding = music + 0.1 * np.sin(2 * np.pi * 3000 * np.arange(len(music)) / SAMPLE_RATE)
    sounding[48_000:60_000] = 0
    rows = sounding, sounding, np.zeros_like(sounding), 0.5 * music
    recording, analysis = analysed(*rows, cutoff_hz=None, gaps="auto")
    (part,) = analysis.parts
    assert (part.layout.unique, part.layout.copies) == ((0, 3), (0, 0, None, 1))
    assert [[round(one.fundamental_hz) for one in channel] for channel in part.tones] == [[3000], []]
    assert analysis.gaps == ()  # one channel still sounds
    ((_, samples, ((_, wav),)),) = analysis.chunked(recording)
    assert wav.shape == (2, samples)
    np.testing.assert_allclose(wav[0, 100:40_000], music[100:40_000], atol=3e-3)
    assert analysed(*rows[:2], gaps="auto")[1].gaps == (pytest.approx((1.0, 1.25), abs=1e-4),)
    assert analysed(*rows[:2], gaps=[(0.1, 0.2)])[1].gaps == ((0.1, 0.2),)
    for options, kept_hz in (({"merge": "replace"}, [3000]), ({"keep_tones": True}, [])):
        (part,) = analysed(*rows, **options)[1].parts
        assert not any(part.tones) and [round(hz) for hz in part.kept_tones_hz] == kept_hz


@pytest.mark.parametrize(("peak", "level"), [(0.02, 5.0), (0.5, 1.0), (4.0, 0.25), (0.0, 1.0)])
def test_the_level_brings_the_peak_to_what_the_model_was_trained_on(peak, level):
    (part,) = analysed(np.linspace(-peak, peak / 2, 4800))[1].parts
    assert part.level == pytest.approx(level)


def test_the_band_ends_where_the_sample_rate_ends_it():
    noise = swelling_noise(2.0, 16_000)
    for options, low, high in (({}, 7200, 8000), ({"cutoff_hz": None}, 24_000, 24_000)):
        (part,) = analysed(noise, sample_rate=16_000, **options)[1].parts
        assert low <= part.band.passband_hz <= high  # a band that is given stays


def test_shares_of_parts_that_follow_each_other_add_up_to_one():
    (part,) = analysed(swelling_noise())[1].parts
    spans = ((0.0, 1.0), (2.0, float("inf"))), ((1.0, 2.0),)
    parts = [replace(part, band=FULL_BAND, spans=(one,)) for one in spans]
    shares = [one.share(0, 3 * SAMPLE_RATE)[0] for one in parts]
    np.testing.assert_allclose(sum(shares), 1, atol=1e-6)
    assert (shares[0][: SAMPLE_RATE - 4000] == 1).all() and not shares[1][: SAMPLE_RATE - 4000].any()
    assert shares[1][SAMPLE_RATE] == pytest.approx(0.5, abs=0.01)
