"""Training batches against `Degradation.apply`, and their dependence on (seed, step) alone."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from srlib.config import SAMPLE_RATE
from srlib.corpus import Batch, Corpus, _add_noise_and_gaps, draw, track_shares
from srlib.degrade import Degradation, DegradationConfig, zero_phase_response
from srlib.errors import SrlibError
from srlib.gaps import interpolate_gaps
from srlib.mel import band_edges_hz, log_mel

FRAMES = 100  # of 480 samples: one second
CLEAN = {"none": 1.0}


@dataclass
class FakeTrack:
    """What the corpus reads of a track; counts how often it is decoded."""

    name: str
    wav: np.ndarray
    bandwidth_hz: float | None = None
    collection: str = ""
    weight: float = 1.0
    split: str = "train"
    path: Path = Path(__file__)  # any file: its size and age tell one version of a track from the next
    decoded: int = 0

    @property
    def seconds(self) -> float:
        return len(self.wav) / SAMPLE_RATE

    def mixture(self) -> np.ndarray:
        self.decoded += 1
        return self.wav


def noise(seconds, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def tracks():
    return [FakeTrack("a", noise(3.0, 0), 20000.0), FakeTrack("b", noise(2.0, 1), 16000.0)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return Corpus.build(tracks(), tmp_path_factory.mktemp("corpus"))


def draw_one(corpus, seed=0, batch_size=4, augment=False, **config) -> Batch:
    return draw(corpus, DegradationConfig(**config), np.random.default_rng(seed), batch_size, FRAMES, augment=augment)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_tracks_are_decoded_once_to_16_bits(tmp_path):
    first = tracks()
    corpus = Corpus.build(first, tmp_path)
    assert corpus.names == ["a", "b"]
    assert corpus.seconds == pytest.approx(5.0)
    assert list(corpus.starts) == [0, 3 * SAMPLE_RATE, 5 * SAMPLE_RATE]
    np.testing.assert_allclose(corpus.audio / 32768, np.concatenate([t.wav for t in first]), atol=1e-4)
    again = tracks()
    cached = Corpus.build(again, tmp_path)
    assert [t.decoded for t in first] == [1, 1]
    assert [t.decoded for t in again] == [0, 0]
    np.testing.assert_array_equal(cached.audio, corpus.audio)
    Corpus.build(again[:1], tmp_path)  # another set of tracks is another corpus
    assert again[0].decoded == 1


def test_a_decoding_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    broken = tracks()
    broken[1].mixture = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Corpus.build(broken, tmp_path)
    healthy = tracks()
    assert Corpus.build(healthy, tmp_path).seconds == pytest.approx(5.0)
    assert [t.decoded for t in healthy] == [1, 1]


def test_no_tracks_is_an_error(tmp_path):
    with pytest.raises(SrlibError, match="no tracks"):
        Corpus.build([], tmp_path)


def test_a_collection_counts_by_the_fourth_root_of_its_length_whatever_it_is_cut_into():
    whole = track_shares([160.0, 10.0], ["a", "b"])
    assert whole == pytest.approx([2 / 3, 1 / 3])  # 16 times the length, twice the share
    parts = track_shares([80.0, 80.0, 10.0], ["a", "a", "b"])
    assert parts == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    unequal = track_shares([90.0, 40.0, 30.0], ["a", "a", "b"])
    assert unequal[0] / unequal[1] == pytest.approx(1.5)  # inside a collection by the root
    assert unequal.sum() == pytest.approx(1.0)
    assert track_shares([10.0, 10.0], ["a", "b"], [3.0, 1.0]) == pytest.approx([3 / 4, 1 / 4])


def test_collections_reach_the_corpus_and_tracks_without_one_stand_alone(tmp_path):
    names = [("a", "x"), ("b", "x"), ("c", ""), ("d", "")]
    parts = [FakeTrack(name, noise(1.0), collection=collection) for name, collection in names]
    shares = Corpus.build(parts, tmp_path).shares
    assert shares[0] == shares[1] < shares[2] == shares[3]


def test_crops_come_from_one_track_in_proportion_to_its_share(corpus):
    rng = np.random.default_rng(0)
    bandwidths = [corpus.crop(rng, 4800)[1] for _ in range(400)]
    assert bandwidths.count(20000.0) / 400 == pytest.approx(corpus.shares[0], abs=0.06)
    whole = corpus.audio / np.float32(32768)
    crop, bandwidth = corpus.crop(rng, 4800)
    track = whole[: 3 * SAMPLE_RATE] if bandwidth == 20000 else whole[3 * SAMPLE_RATE :]
    offset = int(np.argmax(np.correlate(track, crop, mode="valid")))
    np.testing.assert_allclose(track[offset : offset + 4800], crop, atol=1e-6)


def test_short_tracks_are_repeated(tmp_path):
    corpus = Corpus.build([FakeTrack("short", noise(0.1))], tmp_path)
    crop, bandwidth = corpus.crop(np.random.default_rng(0), 12000)
    assert crop.shape == (12000,)
    assert bandwidth == 24000.0  # unknown: taken for the full band
    np.testing.assert_array_equal(crop[:4800], crop[4800:9600])


def test_a_batch_has_the_shapes_it_says(corpus):
    batch = draw_one(corpus, batch_size=3)
    for wav in (batch.reference, batch.filtered, batch.degraded):
        assert wav.shape == (3, FRAMES * 480)
        assert wav.dtype == torch.float32
    assert batch.response.shape == (3, 256)
    assert batch.bandwidth_hz.shape == (3,)
    assert set(batch.bandwidth_hz.tolist()) <= {16000.0, 20000.0}
    assert all(isinstance(d, Degradation) for d in batch.degradations)


@pytest.mark.parametrize(
    ("family", "tolerance"), [("cheby1", 2e-3), ("ellip", 2e-3), ("butter", 2e-3), ("boxcar", 0.08)]
)
def test_one_fft_filters_as_apply_does(corpus, family, tolerance):
    """Against scipy's recursive filters, run forwards and backwards; the boxcar is an STFT mask there."""
    batch = draw_one(corpus, batch_size=8, filter_types=(family,), noise_weights=CLEAN)
    inner = slice(8000, -8000)  # apply sees an edge where the batch has music
    for reference, degraded, degradation in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
        expected = degradation.apply(reference.numpy(), SAMPLE_RATE)
        assert relative_error(degraded.numpy()[inner], expected[inner]) < tolerance
        assert degradation.filter_type == family


def test_without_augmentation_the_reference_is_the_track(corpus):
    batch = draw_one(corpus, batch_size=1)
    whole = corpus.audio / np.float32(32768)
    wav = batch.reference[0].numpy()
    offset = int(np.argmax(np.correlate(whole, wav[:4800], mode="valid")))
    np.testing.assert_allclose(whole[offset : offset + len(wav)], wav, atol=1e-5)


def test_a_tone_is_the_one_that_apply_adds(corpus):
    batch = draw_one(corpus, noise_weights={"tone": 1.0})
    silence = np.zeros(FRAMES * 480, np.float32)
    for filtered, degraded, degradation in zip(batch.filtered, batch.degraded, batch.degradations, strict=True):
        alone = Degradation(
            noise_type="tone",
            noise_amplitude=degradation.noise_amplitude,
            tone_hz=degradation.tone_hz,
            seed=degradation.seed,
        )
        np.testing.assert_allclose(degraded - filtered, alone.apply(silence, SAMPLE_RATE), atol=1e-5)


def test_white_noise_is_the_one_that_apply_adds(corpus):
    batch = draw_one(corpus, noise_weights={"white": 1.0})
    silence = np.zeros(FRAMES * 480, np.float32)
    for filtered, degraded, degradation in zip(batch.filtered, batch.degraded, batch.degradations, strict=True):
        expected = replace(degradation, cutoff_hz=None).apply(silence, SAMPLE_RATE)
        alone = torch.zeros(FRAMES * 480)
        _add_noise_and_gaps(alone, degradation, len(alone))
        np.testing.assert_array_equal(alone, expected)
        np.testing.assert_allclose(degraded - filtered, expected, atol=1e-6)


def test_white_noise_has_the_level_and_colour_it_says(corpus):
    batch = draw_one(corpus, noise_weights={"white": 1.0})
    added = (batch.degraded - batch.filtered).numpy()
    for noise_added, degradation in zip(added, batch.degradations, strict=True):
        assert noise_added.std() == pytest.approx(degradation.noise_amplitude, rel=0.02)
        power = np.abs(np.fft.rfft(noise_added)) ** 2
        quarters = [part.mean() for part in np.array_split(power, 4)]
        assert max(quarters) / min(quarters) < 1.1
    correlation = np.corrcoef(added)
    assert np.abs(correlation - np.eye(len(added))).max() < 0.02


def test_gaps_are_silent_and_inside_the_crop(corpus):
    batch = draw_one(corpus, batch_size=8, gap_probability=1.0, noise_weights={"white": 1.0})
    for filtered, degraded, degradation in zip(batch.filtered, batch.degraded, batch.degradations, strict=True):
        ((start, end),) = degradation.gaps
        assert 0 <= start < end <= 1.0
        gap = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        assert not degraded[gap].any()
        assert filtered[gap].any()
        assert (degraded == 0).sum() <= gap.stop - gap.start + 2


def test_gaps_are_bridged_in_the_degraded_log_mel(corpus):
    batch = draw_one(corpus, batch_size=4, gap_probability=1.0, noise_weights={"white": 1.0})
    batch.degradations[0] = replace(batch.degradations[0], gaps=())
    raw, bridged = log_mel(batch.degraded), batch.degraded_log_mel()
    assert torch.equal(bridged[0], raw[0])
    for row, degradation in enumerate(batch.degradations[1:], 1):
        assert torch.equal(bridged[row], interpolate_gaps(raw[[row]], degradation.gaps)[0])
        assert bridged[row].amin() > raw[row].amin() + 1  # no frame is silent any more


def test_noise_before_the_filter_is_refused(corpus):
    with pytest.raises(SrlibError, match="noise_first"):
        draw_one(corpus, noise_first=True)


def test_response_is_the_filter_at_the_centres_of_the_bands(corpus):
    batch = draw_one(corpus, noise_weights=CLEAN)
    centres = band_edges_hz()[1:-1]
    for response, degradation in zip(batch.response, batch.degradations, strict=True):
        np.testing.assert_allclose(response, zero_phase_response(degradation, centres, SAMPLE_RATE), atol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_is_a_function_of_the_generator(corpus, augment):
    first, again, other = (draw_one(corpus, seed, augment=augment) for seed in ([3, 7], [3, 7], [3, 8]))
    assert torch.equal(first.reference, again.reference)
    assert torch.equal(first.degraded, again.degraded)
    assert first.degradations == again.degradations
    assert not torch.equal(first.reference, other.reference)
    assert first.degradations != other.degradations


def test_augmentation_never_clips_and_keeps_the_bandwidth(corpus):
    bandwidths, full_band = [], 0
    for seed in range(12):
        batch = draw_one(corpus, seed, batch_size=8, augment=True, noise_weights=CLEAN)
        # Level is held under one before the tilt, which may raise it by a few decibels.
        assert batch.reference.abs().max() < 10 ** (9 / 20)
        for row, degradation in enumerate(batch.degradations):
            if degradation.cutoff_hz is None:
                full_band += 1
                assert torch.equal(batch.degraded[row], batch.filtered[row])
                assert batch.response[row].min() == 1
                assert relative_error(batch.filtered[row].numpy(), batch.reference[row].numpy()) < 1e-5
        bandwidths += batch.bandwidth_hz.tolist()
    assert set(bandwidths) == {16000.0, 20000.0}  # the tracks' own; of a mixture the narrower
    assert 1 <= full_band <= 20
