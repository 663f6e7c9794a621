"""Training pairs against `Degradation.apply`, and what is told of them as recorded or with detectors' errors."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Corpus
from srlib.degrade import DegradationConfig, sample, zero_phase_response
from srlib.models.prior import MISSING
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import Band
from srlib.training.pairs import draw

FRAMES = 100  # of 480 samples: one second
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())
WEIGHTS = {"none": 1.0, "tone": 1.0, "white": 1.0}


@pytest.fixture(scope="module")
def corpus():
    """Noise in place of music: two tracks of three and two seconds."""
    audio = (3000 * np.random.default_rng(0).standard_normal(5 * SAMPLE_RATE)).astype(np.int16)
    starts, bandwidths_hz = np.array([0, 3, 5]) * SAMPLE_RATE, np.array([20_000.0, 16_000.0])
    return Corpus(audio, starts, bandwidths_hz, ["a", "b"], np.array([0.6, 0.4]))


def pairs(corpus, seed=0, batch_size=4, augment=False, frames=FRAMES, **config):
    seeds = [(seed, row) for row in range(batch_size)]
    return draw(corpus, DegradationConfig(**config), seeds, frames, augment=augment)


def rows_of(batch):
    told = (batch.bands, batch.noise_floors, batch.tones_hz)
    return zip(batch.reference, batch.degraded, batch.degradations, batch.bandwidth_hz.tolist(), *told, strict=True)


@pytest.mark.parametrize("config", [{}, {"gap_probability": 1.0}])
def test_without_augmentation_a_pair_is_the_track_and_what_its_record_makes_of_it(corpus, config):
    batch = pairs(corpus, batch_size=6, **config)
    assert batch.reference.shape == (6, FRAMES * 480) and batch.degraded.dtype == torch.float32
    whole = corpus.audio / np.float32(32768)
    for reference, degraded, degradation, bandwidth_hz, *_ in rows_of(batch):
        np.testing.assert_array_equal(degraded, degradation.apply(reference.numpy(), SAMPLE_RATE))
        offset = int(np.argmax(np.correlate(whole, reference[:4800], mode="valid")))
        np.testing.assert_allclose(whole[offset : offset + len(reference)], reference, atol=1e-5)
        assert all(0 <= start < end <= 1.0 for start, end in degradation.gaps) and bandwidth_hz in (16e3, 20e3)


@pytest.mark.parametrize("augment", [False, True])
def test_a_pair_is_a_function_of_its_seed(corpus, augment):
    first, again, other = (pairs(corpus, seed, augment=augment) for seed in (7, 7, 8))
    assert torch.equal(first.reference, again.reference) and torch.equal(first.degraded, again.degraded)
    assert first.degradations == again.degradations != other.degradations and first.bands == again.bands
    half = draw(corpus, DegradationConfig(), [(7, 2), (7, 3)], FRAMES, augment=augment)  # as another process would
    assert torch.equal(half.degraded, first.degraded[2:]) and half.bands == first.bands[2:]


def test_augmentation_never_clips_and_adds_full_bands_noise_before_the_filter_and_dither(corpus):
    found = [row for seed in range(12) for row in rows_of(pairs(corpus, seed, batch_size=8, augment=True, frames=50))]
    assert max(float(row[0].abs().max()) for row in found) < 10 ** (9 / 20)  # under one before it is coloured
    assert {row[3] for row in found} == {16e3, 20e3}  # the narrower of a mix
    changes = [row[2] for row in found]
    assert 1 <= sum(one.cutoff_hz is None for one in changes) <= 20
    assert {one.noise_type for one in changes if one.noise_first} == {"white"}
    levels = [float(np.std(row[1].numpy() - row[2].apply(row[0].numpy(), SAMPLE_RATE))) for row in found]
    dither = sorted(level for level in levels if level)
    assert len(dither) / len(levels) == pytest.approx(0.3, abs=0.12)
    assert 3e-6 < dither[0] < 1e-5 and 3e-5 < dither[-1] < 1.1e-4


@pytest.mark.parametrize("noise_first", [False, True])
def test_what_is_told_is_the_record_where_nothing_is_augmented(corpus, monkeypatch, noise_first):
    """Band edges, noise floor and tone as they are; a track that ends lower is the band."""
    monkeypatch.setattr("srlib.training.pairs.sample", lambda *args: replace(sample(*args), noise_first=noise_first))
    narrower = 0
    config = {"noise_weights": WEIGHTS, "cutoff_hz": (2000, 20_000)}
    for _, _, degradation, bandwidth_hz, band, floor, tones in rows_of(pairs(corpus, batch_size=24, **config)):
        edges = degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE)
        narrower += bandwidth_hz < edges[0]
        assert band == (Band.at(bandwidth_hz) if bandwidth_hz < edges[0] else Band(*edges))
        assert tones == ((degradation.tone_hz,) if degradation.noise_type == "tone" else ())
        assert (floor is not None) == (degradation.noise_type == "white")
        if floor is not None:
            response = zero_phase_response(degradation, np.linspace(0, 24_000, 1025), SAMPLE_RATE)
            filtered = response**2 if noise_first else 1.0
            np.testing.assert_allclose(floor, degradation.noise_amplitude**2 * WINDOW_POWER * filtered, rtol=1e-6)
    assert narrower > 0


def test_what_is_told_of_augmented_crops_errs_as_detectors_do(corpus):
    errors, levels, untold, toneless = [], [], [], []
    filters = {"cutoff_hz": (8000, 8000), "filter_types": ("boxcar",)}  # quick
    for seed in range(100):
        config = {"noise_weights": WEIGHTS, "gap_seconds": (0.05, 0.1)} | filters
        batch = pairs(corpus, seed, batch_size=8, augment=True, frames=FRAMES // 8, **config)
        for _, _, degradation, _, band, floor, tones in rows_of(batch):
            if degradation.cutoff_hz is not None:
                errors.append(np.log(band.passband_hz / degradation.passband_hz(SAMPLE_RATE)))
            if degradation.noise_type == "white":
                untold.append(floor is None)
            if floor is not None and not degradation.noise_first:
                levels.append(10 * np.log10(floor[0] / (degradation.noise_amplitude**2 * WINDOW_POWER)))
            if degradation.noise_type == "tone":
                toneless.append(tones == ())
    for values, spread in ((errors, 0.02), (levels, 0.5)):
        wrong = np.array([value for value in values if abs(value) > 1e-9])
        assert len(wrong) / len(values) == pytest.approx(0.23, abs=0.06)
        assert wrong.std() == pytest.approx(spread, rel=0.2) and abs(wrong.mean()) < spread / 3
    assert 0.02 < np.mean(untold) < 0.08 and np.mean(toneless) == pytest.approx(0.25, abs=0.06)


def test_a_batch_s_observation_is_made_of_what_is_told(corpus):
    batch = pairs(corpus, gap_probability=1.0, noise_weights={"tone": 1.0, "white": 1.0})
    gaps = [degradation.gaps for degradation in batch.degradations]
    found = batch.observation(batch.degraded_log_mel())
    bridged = [interpolate_gaps(*pair) for pair in zip(log_mel(batch.degraded).split(1), gaps, strict=True)]
    assert torch.equal(batch.degraded_log_mel(), torch.cat(bridged))
    assert found.log_mel.shape == found.variance.shape == (4, 1, FRAMES, 256)
    for variance, (_, _, degradation, _, band, _, tones) in zip(found.variance[:, 0], rows_of(batch), strict=True):
        ((start, end),) = degradation.gaps
        assert (variance[:, band_of_hz(1.05 * band.passband_hz) :] == MISSING).all()
        assert (variance[round(50 * (start + end))] >= 1).all()  # a frame takes 10 ms
        assert all((variance[:, band_of_hz(hz)] == MISSING).all() for hz in tones)
