"""Training batches against `Degradation.apply`, and their dependence on (seed, step) alone."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from srlib.config import SAMPLE_RATE
from srlib.data.batches import Batch, Corpus, ExamplePool, Prefetcher, _add_noise_and_gaps, draw, track_shares
from srlib.degrade import Degradation, DegradationConfig
from srlib.errors import SrlibError

FRAMES = 100  # of 480 samples: one second
CLEAN = {"none": 1.0}
INNER = slice(8000, -8000)  # `Degradation.apply` sees an edge where a batch has music


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
    seeds = [(seed, row) for row in range(batch_size)]
    return draw(corpus, DegradationConfig(**config), seeds, FRAMES, augment=augment)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_tracks_are_decoded_once_to_16_bits(tmp_path):
    first = tracks()
    corpus = Corpus.build(first, tmp_path)
    assert corpus.names == ["a", "b"]
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
    assert Corpus.build(healthy, tmp_path).starts[-1] == 5 * SAMPLE_RATE
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
    for wav in (batch.reference, batch.degraded):
        assert wav.shape == (3, FRAMES * 480)
        assert wav.dtype == torch.float32
    assert batch.bandwidth_hz.shape == (3,)
    assert set(batch.bandwidth_hz.tolist()) <= {16000.0, 20000.0}
    assert all(isinstance(d, Degradation) for d in batch.degradations)


@pytest.mark.parametrize(
    ("family", "tolerance"), [("cheby1", 2e-3), ("ellip", 2e-3), ("butter", 2e-3), ("boxcar", 0.08)]
)
def test_one_fft_filters_as_apply_does(corpus, family, tolerance):
    """Against scipy's recursive filters, run forwards and backwards; the boxcar is an STFT mask there."""
    batch = draw_one(corpus, batch_size=8, filter_types=(family,), noise_weights=CLEAN)
    for reference, degraded, degradation in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
        expected = degradation.apply(reference.numpy(), SAMPLE_RATE)
        assert relative_error(degraded.numpy()[INNER], expected[INNER]) < tolerance
        assert degradation.filter_type == family


def test_without_augmentation_the_reference_is_the_track(corpus):
    batch = draw_one(corpus, batch_size=1)
    whole = corpus.audio / np.float32(32768)
    wav = batch.reference[0].numpy()
    offset = int(np.argmax(np.correlate(whole, wav[:4800], mode="valid")))
    np.testing.assert_allclose(whole[offset : offset + len(wav)], wav, atol=1e-5)


def added_to(batch: Batch) -> list[np.ndarray]:
    """What was added to each filtered reference, away from its ends."""
    found = []
    for reference, degraded, degradation in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
        clean = replace(degradation, noise_type="none", noise_amplitude=0.0, tone_hz=None, gaps=())
        found.append((degraded.numpy() - clean.apply(reference.numpy(), SAMPLE_RATE))[INNER])
    return found


@pytest.mark.parametrize("kind", ["tone", "white"])
def test_noise_is_the_one_that_apply_adds(corpus, kind):
    batch = draw_one(corpus, noise_weights={kind: 1.0}, filter_types=("cheby1",))
    silence = np.zeros(FRAMES * 480, np.float32)
    for added, degradation in zip(added_to(batch), batch.degradations, strict=True):
        expected = replace(degradation, cutoff_hz=None).apply(silence, SAMPLE_RATE)
        np.testing.assert_allclose(added, expected[INNER], atol=2e-3)
        level = np.abs(expected).max() if kind == "tone" else expected.std()
        assert level == pytest.approx(degradation.noise_amplitude, rel=1e-3 if kind == "tone" else 0.02)
        alone = torch.zeros(FRAMES * 480)
        _add_noise_and_gaps(alone, degradation, len(alone))
        np.testing.assert_allclose(alone, expected, atol=0 if kind == "white" else 1e-5)


def silent_corpus(folder) -> Corpus:
    return Corpus.build([FakeTrack("silence", np.zeros(2 * SAMPLE_RATE, np.float32))], folder)


def test_white_noise_has_the_level_and_colour_it_says(tmp_path):
    batch = draw_one(silent_corpus(tmp_path), noise_weights={"white": 1.0})
    added = batch.degraded.numpy()
    for noise_added, degradation in zip(added, batch.degradations, strict=True):
        assert noise_added.std() == pytest.approx(degradation.noise_amplitude, rel=0.02)
        power = np.abs(np.fft.rfft(noise_added)) ** 2
        quarters = [part.mean() for part in np.array_split(power, 4)]
        assert max(quarters) / min(quarters) < 1.1
    correlation = np.corrcoef(added)
    assert np.abs(correlation - np.eye(len(added))).max() < 0.02


def test_noise_before_the_filter_is_filtered_with_the_music(tmp_path):
    config = {"noise_first": True, "noise_weights": {"white": 1.0}, "filter_types": ("cheby1",)}
    batch = draw_one(silent_corpus(tmp_path), batch_size=6, **config)
    hz = np.fft.rfftfreq(FRAMES * 480, 1 / SAMPLE_RATE)
    assert not batch.reference.any()
    for wav, degradation in zip(batch.degraded, batch.degradations, strict=True):
        power = np.abs(np.fft.rfft(wav.numpy())) ** 2 / len(wav)
        passed, stopped = hz < 0.9 * degradation.cutoff_hz, hz > 1.3 * degradation.cutoff_hz
        assert power[passed].mean() == pytest.approx(degradation.noise_amplitude**2, rel=0.1)
        assert power[stopped].mean() < 1e-3 * power[passed].mean()


def test_gaps_are_silent_and_inside_the_crop(corpus):
    batch = draw_one(corpus, batch_size=8, gap_probability=1.0, noise_weights={"white": 1.0})
    for reference, degraded, degradation in zip(batch.reference, batch.degraded, batch.degradations, strict=True):
        ((start, end),) = degradation.gaps
        assert 0 <= start < end <= 1.0
        gap = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        assert not degraded[gap].any()
        assert reference[gap].any()
        assert (degraded == 0).sum() <= gap.stop - gap.start + 2


@pytest.mark.parametrize("augment", [False, True])
def test_a_pair_is_a_function_of_its_seed(corpus, augment):
    first, again, other = (draw_one(corpus, seed, augment=augment) for seed in (7, 7, 8))
    assert torch.equal(first.reference, again.reference)
    assert torch.equal(first.degraded, again.degraded)
    assert first.degradations == again.degradations
    assert not torch.equal(first.reference, other.reference)
    assert first.degradations != other.degradations
    half = draw(corpus, DegradationConfig(), [(7, 2), (7, 3)], FRAMES, augment=augment)  # as another process would
    torch.testing.assert_close(half.degraded, first.degraded[2:])
    assert half.degradations == first.degradations[2:]


def test_augmentation_never_clips_and_keeps_the_bandwidth(corpus):
    bandwidths, full_band = [], 0
    for seed in range(12):
        batch = draw_one(corpus, seed, batch_size=8, augment=True, noise_weights=CLEAN)
        # Level is held under one before the tilt, which may raise it by a few decibels.
        assert batch.reference.abs().max() < 10 ** (9 / 20)
        for row, degradation in enumerate(batch.degradations):
            if degradation.cutoff_hz is None:
                full_band += 1
                assert (batch.degraded[row] - batch.reference[row]).std() < 1.1e-4  # dither, if anything
        bandwidths += batch.bandwidth_hz.tolist()
    assert set(bandwidths) == {16000.0, 20000.0}  # the tracks' own; of a mixture the narrower
    assert 1 <= full_band <= 20


def test_dither_comes_with_some_augmented_crops(corpus):
    levels, window = [], np.hanning(FRAMES * 480)
    config = {"noise_weights": CLEAN, "filter_types": ("cheby1",), "filter_order": (8, 10), "cutoff_hz": (2000, 4000)}
    for seed in range(12):
        batch = draw_one(corpus, seed, batch_size=8, augment=True, **config)
        filtered = [degradation.cutoff_hz is not None for degradation in batch.degradations]
        high = np.fft.rfft(window * batch.degraded.numpy()[filtered])[:, 20_000:]  # 20 kHz: nothing passes
        levels += np.sqrt((np.abs(high) ** 2).mean(1) / np.square(window).sum()).tolist()
    heard = sorted(level for level in levels if level > 2e-6)
    assert len(heard) / len(levels) == pytest.approx(0.3, abs=0.12)
    assert heard[0] > 3e-6 and heard[0] < 1e-5 and 3e-5 < heard[-1] < 1.1e-4


def test_music_can_be_limited_to_some_hours(tmp_path):
    names = "abcdefgh"
    corpus = Corpus.build([FakeTrack(name, noise(1.0, seed)) for seed, name in enumerate(names)], tmp_path)
    kept = {seconds: corpus.limited_to(seconds / 3600, seed=0).shares > 0 for seconds in (0.5, 1, 3, 8, 100)}
    assert [int(flags.sum()) for flags in kept.values()] == [1, 1, 3, 8, 8]
    assert (kept[1] <= kept[3]).all()  # more music holds the less
    few = corpus.limited_to(3 / 3600, seed=0)
    assert few.shares.sum() == pytest.approx(1)
    allowed = few.audio.reshape(8, -1)[kept[3]] / np.float32(32768)
    rng = np.random.default_rng(0)
    for _ in range(20):
        crop, _ = few.crop(rng, 4800)
        assert any(np.abs(np.lib.stride_tricks.sliding_window_view(wav, 8) - crop[:8]).sum(1).min() < 1e-6
                   for wav in allowed)  # fmt: skip
    assert any((corpus.limited_to(3 / 3600, seed).shares > 0).tolist() != kept[3].tolist() for seed in range(1, 5))


def test_an_epoch_visits_once_each_track_that_is_drawn_from(tmp_path):
    corpus = Corpus.build([FakeTrack(name, noise(1.0)) for name in "abcdefgh"], tmp_path).limited_to(5 / 3600, seed=0)
    assert corpus.steps_an_epoch(2) == 3
    epochs = [[corpus.tracks_of_step(0, 3 * epoch + step, 2) for step in range(3)] for epoch in range(2)]
    assert [len(tracks) for tracks in epochs[0]] == [2, 2, 1]
    first, second = ([track for step in epoch for track in step] for epoch in epochs)
    assert sorted(first) == sorted(second) == np.flatnonzero(corpus.shares).tolist() and first != second


# The pool of examples that are drawn again


FRESH, BATCH, REACH = 3, 8, 5


def made(step: int) -> dict[str, torch.Tensor]:
    """Examples that say of which step and which row they are; they survive half precision."""
    step_of = torch.full((FRESH, 1), float(step))
    return {"x": torch.cat([step_of, torch.arange(FRESH)[:, None].float()], dim=1), "y": torch.arange(FRESH) + step}


def pool_of(draw=made, ahead=made, steps=REACH, batch_size=BATCH, seed=0) -> ExamplePool:
    return ExamplePool(draw, ahead, batch_size, steps, seed)


def test_a_pool_that_starts_late_gives_the_batches_of_one_that_ran_from_the_start():
    running = pool_of()
    expected = [running(step) for step in range(30)]
    for start in (0, 1, 3, 12, 29):
        resumed = pool_of()
        for step in range(start, 30):
            found = resumed(step)
            assert all(torch.equal(found[name], value) for name, value in expected[step].items()), (start, step)
    other = pool_of(seed=1)
    assert any(not torch.equal(other(step)["x"], expected[step]["x"]) for step in range(30))


def test_a_batch_is_the_fresh_examples_and_others_of_the_last_steps():
    pool, ages = pool_of(), []
    for step in range(60):
        batch = pool(step)
        assert batch["x"].shape == (BATCH, 2) and batch["y"].shape == (BATCH,)
        assert torch.equal(batch["x"][:FRESH], made(step)["x"])
        again = batch["x"][FRESH:]
        assert torch.equal(batch["y"][FRESH:], (again[:, 0] + again[:, 1]).long())  # rows stay together
        assert again[:, 1].min() >= 0 and again[:, 1].max() < FRESH
        ages += (step - again[:, 0]).tolist() if step >= REACH else []
    assert set(ages) == set(range(1, REACH + 1))
    assert max(map(ages.count, set(ages))) < 2 * min(map(ages.count, set(ages)))


def test_a_run_without_interruption_makes_nothing_twice_and_holds_no_more_than_it_may_draw():
    pool = pool_of(draw=lambda step: pytest.fail(f"step {step} was drawn again"))
    for step in range(40):
        pool(step)
        assert len(pool._held) <= REACH


def test_examples_that_are_drawn_again_are_held_in_half_precision():
    values = lambda step: {"x": torch.full((FRESH, 1), step + 1 / 3)}  # noqa: E731
    pool = pool_of(values, values)
    batch = [pool(step) for step in range(3)][-1]["x"]
    assert batch.dtype == torch.float32 and (batch[:FRESH] == 2 + 1 / 3).all()
    again = set(batch[FRESH:, 0].tolist())
    assert again <= {float(torch.tensor(step + 1 / 3).half()) for step in range(2)}


@pytest.mark.parametrize("change", [{"batch_size": FRESH}, {"batch_size": 1}, {"steps": 0}])
def test_a_batch_of_fresh_examples_alone_is_passed_on(change):
    pool = pool_of(**change)
    assert all(torch.equal(pool(step)["x"], made(step)["x"]) for step in range(4)) and not pool._held


def test_threads_that_draw_ahead_give_the_same_batches():
    ahead = Prefetcher(made, threads=2)
    try:
        threaded, plain = pool_of(ahead=ahead), pool_of()
        for step in range(7, 20):
            assert torch.equal(threaded(step)["x"], plain(step)["x"])
    finally:
        ahead.close()
