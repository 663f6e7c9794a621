"""Decoded music and the crops of it, and a pool whose batches depend on (seed, step) alone."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.audio import files
from srlib.config import SAMPLE_RATE
from srlib.data import batches
from srlib.data.batches import Corpus, ahead, pooled, track_shares
from srlib.data.tracks import load_dataset
from srlib.errors import SrlibError


def music(folder, seconds):
    """The tracks of a folder with noise in place of music, `{name: seconds}`; the bandwidth of `a` alone is known."""
    for seed, (name, length) in enumerate(seconds.items()):
        wav = 0.1 * np.random.default_rng(seed).standard_normal(round(length * SAMPLE_RATE))
        files.write(folder / f"{name}.wav", wav.astype(np.float32), SAMPLE_RATE, "PCM_24")
    (folder / "manifest.csv").write_text("file,split,bandwidth_hz\na.wav,train,20000\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files without a split
        return load_dataset(str(folder))


@pytest.fixture(scope="module")
def tracks(tmp_path_factory):
    return music(tmp_path_factory.mktemp("music"), {"a": 3.0, "b": 2.0})


@pytest.fixture(scope="module")
def corpus(tracks, tmp_path_factory):
    return Corpus.build(tracks, tmp_path_factory.mktemp("corpus"))


def test_tracks_are_decoded_to_16_bits_once_for_each_set_of_them(corpus, tracks, tmp_path):
    assert corpus.names == ["a.wav", "b.wav"] and list(corpus.starts) == [0, 3 * SAMPLE_RATE, 5 * SAMPLE_RATE]
    np.testing.assert_allclose(corpus.audio / 32768, np.concatenate([one.mixture() for one in tracks]), atol=1e-4)
    for given, found in ((tracks, 1), (tracks, 1), (tracks[:1], 2)):
        Corpus.build(given, tmp_path)
        assert len(list(tmp_path.iterdir())) == found


def test_all_tracks_that_cannot_be_decoded_are_named_and_nothing_is_left(tmp_path):
    tracks = music(tmp_path, {"a": 0.1, "c": 0.1, "d": 0.1})
    for name in "cd":
        (tmp_path / f"{name}.wav").write_bytes(b"RIFF")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(SrlibError, match=r"c\.wav.*; .*d\.wav"):
        Corpus.build(tracks, tmp_path / "corpus")
    assert not list((tmp_path / "corpus").iterdir())


def test_a_collection_counts_by_the_fourth_root_of_its_length_whatever_it_is_cut_into():
    ones = [1.0, 1.0, 1.0]
    assert track_shares([160.0, 10.0], ["a", "b"], ones[:2]) == pytest.approx([2 / 3, 1 / 3])  # 16 times: twice
    assert track_shares([80.0, 80.0, 10.0], ["a", "a", "b"], ones) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    unequal = track_shares([90.0, 40.0, 30.0], ["a", "a", "b"], ones)
    assert unequal[0] / unequal[1] == pytest.approx(1.5)  # inside a collection by the root
    assert unequal.sum() == pytest.approx(1.0)
    assert track_shares([10.0, 10.0], ["a", "b"], [3.0, 1.0]) == pytest.approx([3 / 4, 1 / 4])


def test_crops_come_from_one_track_in_proportion_to_its_share(corpus):
    rng = np.random.default_rng(0)
    bandwidths = [corpus.crop(rng, 4800)[1] for _ in range(400)]
    assert bandwidths.count(20000.0) / 400 == pytest.approx(corpus.shares[0], abs=0.06)
    whole = corpus.audio / np.float32(32768)
    crop, bandwidth = corpus.crop(rng, 4800)
    wav = whole[: 3 * SAMPLE_RATE] if bandwidth == 20000 else whole[3 * SAMPLE_RATE :]
    offset = int(np.argmax(np.correlate(wav, crop, mode="valid")))
    np.testing.assert_allclose(wav[offset : offset + 4800], crop, atol=1e-6)


def test_short_tracks_are_repeated_and_an_unknown_bandwidth_is_full(tmp_path):
    short = music(tmp_path, {"a": 0.1, "short": 0.1})[1:]
    crop, bandwidth = Corpus.build(short, tmp_path).crop(np.random.default_rng(0), 12000)
    assert crop.shape == (12000,) and bandwidth == 24000.0
    np.testing.assert_array_equal(crop[:4800], crop[4800:9600])


def test_mixed_crops_are_the_crop_at_another_level_and_colour_or_several(corpus):
    """A single track comes back within its level of -12 to 3 dB and the equaliser's few decibels."""
    whole = replace(corpus, shares=np.array([1.0, 0.0]))
    ratios = []
    for seed in range(40):
        plain, mixed = (draw(np.random.default_rng(seed), 4800)[0] for draw in (whole.crop, whole.mixed))
        if abs(np.corrcoef(plain, mixed)[0, 1]) > 0.95:  # not mixed
            ratios.append(20 * np.log10(mixed.std() / plain.std()))
    assert 15 <= len(ratios) < 40 and -18 < min(ratios) < -8 < 0 < max(ratios) < 9


# The pool of examples that are drawn again


FRESH, BATCH, REACH = 3, 8, 5


def made(step: int) -> dict[str, torch.Tensor]:
    """Examples that say of which step and which row they are; they survive half precision."""
    step_of = torch.full((FRESH, 1), float(step))
    return {"x": torch.cat([step_of, torch.arange(FRESH)[:, None].float()], dim=1), "y": torch.arange(FRESH) + step}


@pytest.fixture(autouse=True)
def _short_memory(monkeypatch):
    monkeypatch.setattr(batches, "POOL_STEPS", REACH)


def pool(begin=0, seed=0, threads=0):
    return pooled(ahead(made, range(begin, 60), threads), begin, BATCH, seed)


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
