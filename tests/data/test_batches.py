"""Training batches against `Degradation.apply`, and their dependence on (seed, step) alone."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srlib.config import SAMPLE_RATE
from srlib.data.batches import Corpus, ahead, draw, pooled, track_shares
from srlib.degrade import DegradationConfig
from srlib.errors import SrlibError

FRAMES = 100  # of 480 samples: one second
CLEAN = {"none": 1.0}


def track(name, seconds, path, seed=0, **facts):
    """Noise in place of music; what a corpus reads of a `Track`. It counts how often it is decoded."""
    wav = (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)
    given = {"bandwidth_hz": None, "collection": "", "weight": 1.0, "split": "train"} | facts
    found = SimpleNamespace(name=name, seconds=seconds, path=path, wav=wav, decoded=0, **given)

    def mixture():
        found.decoded += 1
        return wav

    found.mixture = mixture
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Any file: its size and age tell one version of a track from the next."""
    path = tmp_path_factory.mktemp("file") / "a.wav"
    path.write_bytes(b"x")
    return path


def two(path):
    return [track("a", 3.0, path, 0, bandwidth_hz=20000.0), track("b", 2.0, path, 1, bandwidth_hz=16000.0)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, path):
    return Corpus.build(two(path), tmp_path_factory.mktemp("corpus"))


def pairs(corpus, seed=0, batch_size=4, augment=False, **config):
    seeds = [(seed, row) for row in range(batch_size)]
    return draw(corpus, DegradationConfig(**config), seeds, FRAMES, augment=augment)


def test_tracks_are_decoded_once_to_16_bits(tmp_path, path):
    first, again = two(path), two(path)
    corpus = Corpus.build(first, tmp_path)
    assert corpus.names == ["a", "b"] and list(corpus.starts) == [0, 3 * SAMPLE_RATE, 5 * SAMPLE_RATE]
    np.testing.assert_allclose(corpus.audio / 32768, np.concatenate([t.wav for t in first]), atol=1e-4)
    np.testing.assert_array_equal(Corpus.build(again, tmp_path).audio, corpus.audio)
    assert [t.decoded for t in first + again] == [1, 1, 0, 0]
    Corpus.build(again[:1], tmp_path)  # another set of tracks is another corpus
    assert again[0].decoded == 1


def test_all_tracks_that_cannot_be_decoded_are_named_and_nothing_is_left(tmp_path, path):
    def broken(name):
        raise SrlibError(f"{name} ends early.")

    tracks = [*two(path), *(track(name, 1.0, path) for name in "cd")]
    for one in tracks[2:]:
        one.mixture = lambda name=one.name: broken(name)
    with pytest.raises(SrlibError, match=r"c ends early; d ends early\.$"):
        Corpus.build(tracks, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_collection_counts_by_the_fourth_root_of_its_length_whatever_it_is_cut_into():
    ones = [1.0, 1.0, 1.0]
    assert track_shares([160.0, 10.0], ["a", "b"], ones[:2]) == pytest.approx([2 / 3, 1 / 3])  # 16 times: twice
    assert track_shares([80.0, 80.0, 10.0], ["a", "a", "b"], ones) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    unequal = track_shares([90.0, 40.0, 30.0], ["a", "a", "b"], ones)
    assert unequal[0] / unequal[1] == pytest.approx(1.5)  # inside a collection by the root
    assert unequal.sum() == pytest.approx(1.0)
    assert track_shares([10.0, 10.0], ["a", "b"], [3.0, 1.0]) == pytest.approx([3 / 4, 1 / 4])


def test_collections_reach_the_corpus_and_tracks_without_one_stand_alone(tmp_path, path):
    names = [("a", "x"), ("b", "x"), ("c", ""), ("d", "")]
    shares = Corpus.build([track(name, 1.0, path, collection=one) for name, one in names], tmp_path).shares
    assert shares[0] == shares[1] < shares[2] == shares[3]


def test_crops_come_from_one_track_in_proportion_to_its_share(corpus):
    rng = np.random.default_rng(0)
    bandwidths = [corpus.crop(rng, 4800)[1] for _ in range(400)]
    assert bandwidths.count(20000.0) / 400 == pytest.approx(corpus.shares[0], abs=0.06)
    whole = corpus.audio / np.float32(32768)
    crop, bandwidth = corpus.crop(rng, 4800)
    wav = whole[: 3 * SAMPLE_RATE] if bandwidth == 20000 else whole[3 * SAMPLE_RATE :]
    offset = int(np.argmax(np.correlate(wav, crop, mode="valid")))
    np.testing.assert_allclose(wav[offset : offset + 4800], crop, atol=1e-6)


def test_short_tracks_are_repeated_and_an_unknown_bandwidth_is_full(tmp_path, path):
    crop, bandwidth = Corpus.build([track("short", 0.1, path)], tmp_path).crop(np.random.default_rng(0), 12000)
    assert crop.shape == (12000,) and bandwidth == 24000.0
    np.testing.assert_array_equal(crop[:4800], crop[4800:9600])


def test_music_can_be_limited_to_some_hours(tmp_path, path):
    corpus = Corpus.build([track(name, 1.0, path, seed) for seed, name in enumerate("abcdefgh")], tmp_path)
    kept = {seconds: corpus.limited_to(seconds / 3600, seed=0).shares > 0 for seconds in (0.5, 1, 3, 8, 100)}
    assert [int(flags.sum()) for flags in kept.values()] == [1, 1, 3, 8, 8]
    assert (kept[1] <= kept[3]).all()  # more music holds the less
    assert corpus.limited_to(3 / 3600, seed=0).shares.sum() == pytest.approx(1)
    assert any((corpus.limited_to(3 / 3600, seed).shares > 0).tolist() != kept[3].tolist() for seed in range(1, 5))


# Pairs


@pytest.mark.parametrize("config", [{"noise_weights": CLEAN}, {"noise_first": True}, {"gap_probability": 1.0}])
def test_without_augmentation_a_pair_is_the_track_and_what_its_record_makes_of_it(corpus, config):
    batch = pairs(corpus, batch_size=6, **config)
    assert batch.reference.shape == batch.degraded.shape == (6, FRAMES * 480)
    assert batch.reference.dtype == batch.degraded.dtype == torch.float32
    whole = corpus.audio / np.float32(32768)
    for reference, degraded, degradation in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
        np.testing.assert_array_equal(degraded, degradation.apply(reference.numpy(), SAMPLE_RATE))
        offset = int(np.argmax(np.correlate(whole, reference[:4800], mode="valid")))
        np.testing.assert_allclose(whole[offset : offset + len(reference)], reference, atol=1e-5)
        assert all(0 <= start < end <= 1.0 for start, end in degradation.gaps)
    assert set(batch.bandwidth_hz.tolist()) <= {16000.0, 20000.0}


@pytest.mark.parametrize("augment", [False, True])
def test_a_pair_is_a_function_of_its_seed(corpus, augment):
    first, again, other = (pairs(corpus, seed, augment=augment) for seed in (7, 7, 8))
    assert torch.equal(first.reference, again.reference) and torch.equal(first.degraded, again.degraded)
    assert first.degradations == again.degradations != other.degradations
    half = draw(corpus, DegradationConfig(), [(7, 2), (7, 3)], FRAMES, augment=augment)  # as another process would
    assert torch.equal(half.degraded, first.degraded[2:]) and half.degradations == first.degradations[2:]


def test_augmentation_never_clips_and_keeps_the_bandwidth(corpus):
    batches = [pairs(corpus, seed, batch_size=8, augment=True) for seed in range(12)]
    # Level is held under one before the tilt, which may raise it by a few decibels.
    assert max(float(batch.reference.abs().max()) for batch in batches) < 10 ** (9 / 20)
    assert {hz for batch in batches for hz in batch.bandwidth_hz.tolist()} == {
        16000.0,
        20000.0,
    }  # the narrower of a mix
    found = [degradation for batch in batches for degradation in batch.degradations]
    assert 1 <= sum(one.cutoff_hz is None for one in found) <= 20
    assert {one.noise_type for one in found if one.noise_first} == {"white"}


def test_dither_comes_with_some_augmented_crops(corpus):
    levels = []
    for seed in range(12):
        batch = pairs(corpus, seed, batch_size=8, augment=True, noise_weights=CLEAN)
        for reference, degraded, one in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
            levels.append(float(np.std(degraded.numpy() - one.apply(reference.numpy(), SAMPLE_RATE))))
    heard = sorted(level for level in levels if level)
    assert len(heard) / len(levels) == pytest.approx(0.3, abs=0.12)
    assert 3e-6 < heard[0] < 1e-5 and 3e-5 < heard[-1] < 1.1e-4


# The pool of examples that are drawn again


FRESH, BATCH, REACH = 3, 8, 5


def made(step: int) -> dict[str, torch.Tensor]:
    """Examples that say of which step and which row they are; they survive half precision."""
    step_of = torch.full((FRESH, 1), float(step))
    return {"x": torch.cat([step_of, torch.arange(FRESH)[:, None].float()], dim=1), "y": torch.arange(FRESH) + step}


def pool(begin=0, seed=0, threads=0):
    return pooled(ahead(made, range(begin, 60), threads), begin, BATCH, REACH, seed)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_pool_that_starts_late_gives_the_batches_of_one_that_ran_from_the_start(threads):
    expected = list(pool())
    assert len(expected) == 60
    for start in (0, 1, 3, 12, 29):
        begin = max(0, start - REACH)
        resumed = list(pool(begin, threads=threads))[start - begin :]
        for found, batch in zip(resumed, expected[start:], strict=True):
            assert all(torch.equal(found[name], value) for name, value in batch.items())
    assert any(not torch.equal(other["x"], one["x"]) for other, one in zip(pool(seed=1), expected, strict=True))


def test_a_batch_is_the_fresh_examples_and_others_of_the_last_steps():
    ages = []
    for step, batch in enumerate(pool()):
        assert batch["x"].shape == (BATCH, 2) and batch["y"].shape == (BATCH,)
        assert torch.equal(batch["x"][:FRESH], made(step)["x"])
        again = batch["x"][FRESH:]
        assert torch.equal(batch["y"][FRESH:], (again[:, 0] + again[:, 1]).long())  # rows stay together
        assert again[:, 1].min() >= 0 and again[:, 1].max() < FRESH
        ages += (step - again[:, 0]).tolist() if step >= REACH else []
    assert set(ages) == set(range(1, REACH + 1))
    assert max(map(ages.count, set(ages))) < 2 * min(map(ages.count, set(ages)))


def test_examples_that_are_drawn_again_are_held_in_half_precision():
    fresh = ({"x": torch.full((FRESH, 1), step + 1 / 3)} for step in range(3))
    batch = list(pooled(fresh, 0, BATCH, REACH, 0))[-1]["x"]
    assert batch.dtype == torch.float32 and (batch[:FRESH] == 2 + 1 / 3).all()
    assert set(batch[FRESH:, 0].tolist()) <= {float(torch.tensor(step + 1 / 3).half()) for step in range(2)}


def test_a_batch_can_be_moved_and_keeps_its_record(corpus):
    batch = pairs(corpus)
    moved = replace(batch).to("meta")
    assert moved.reference.device.type == moved.bandwidth_hz.device.type == "meta"
    assert moved.degradations == batch.degradations
