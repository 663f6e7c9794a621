"""What stored music says of a degraded clip: against numpy's regressions, known noise levels and real music."""

import math

import numpy as np
import pytest
import torch

from srlib.config import LOG_MEL_FLOOR, N_MELS
from srlib.data import load_dataset
from srlib.degrade import Degradation
from srlib.exemplars import Exemplars, Regression, WhiteNoise, excerpts, moving_mean
from srlib.mel import band_of_hz, denormalise, log_mel, normalise

SAMPLE_RATE = 48_000


def numpy_moving_mean(frames, reach=128):
    """Of `[frames, bands]`, over so many frames to either side."""
    return np.stack([frames[max(0, i - reach) : i + reach + 1].mean(0) for i in range(len(frames))])


@pytest.mark.parametrize("count", [1, 100, 257, 400])
@pytest.mark.parametrize("reach", [16, 128])
def test_moving_means_are_those_of_numpy(count, reach):
    frames = np.random.default_rng(0).standard_normal((2, count, 3))
    means = moving_mean(torch.from_numpy(frames).float(), reach)
    np.testing.assert_allclose(means, [numpy_moving_mean(clip, reach) for clip in frames], atol=1e-5)


def test_excerpts_are_spread_over_the_clip():
    clips = torch.arange(64.0)[None, :, None].expand(2, 64, N_MELS)
    assert excerpts(clips).shape == (2, 4, N_MELS)
    assert excerpts(clips)[0, :, 0].tolist() == [8.0, 24.0, 40.0, 56.0]


def test_a_store_takes_few_clips_again_and_again():
    store, frames = Exemplars(7), torch.randn(3, 4, N_MELS)
    store.fill(frames)
    assert torch.equal(store.log_mel, frames[[0, 1, 2, 0, 1, 2, 0]])


def music(clips: int, seed: int = 0) -> torch.Tensor:
    """`[clips, 4, 256]`: a few things that differ between clips, and a few that move within them."""
    rng = np.random.default_rng(seed)
    levels, motions = rng.standard_normal((2, 6, N_MELS)) / 3
    frames = rng.standard_normal((clips, 1, 6)) @ levels + rng.standard_normal((clips, 4, 6)) @ motions
    return torch.from_numpy(frames + 0.05 * rng.standard_normal((clips, 4, N_MELS))).float()


@pytest.mark.parametrize(("known", "bend"), [(60, np.asarray), (250, np.asarray), (60, np.arctan)])
def test_regression_is_numpys(known, bend):
    """Ridge regressions of motion and levels, and a Nyström kernel regression of what the latter leave."""
    clips = music(700)
    x, y = clips[..., :known], clips[..., known:]
    regression = Regression.fit(x, torch.as_tensor(bend(x.mean(1))), y, None, N_MELS - known)
    new = music(1, seed=1).repeat(1, 20, 1)[0]
    slow = torch.from_numpy(numpy_moving_mean(new.numpy())).float()
    estimate = regression((new - slow)[:, :known], torch.as_tensor(bend(slow[:, :known])))

    x, y, new, slow = (part.double().numpy() for part in (x, y, new[:, :known], slow[:, :known]))
    level_x, level_y = bend(x.mean(1)), y.mean(1)
    fast_x = (x - x.mean(1, keepdims=True)).reshape(-1, known)
    fast_y = (y - level_y[:, None]).reshape(-1, N_MELS - known)
    motion_xx, motion_xy = fast_x.T @ fast_x / 2100, fast_x.T @ fast_y / 2100
    centre_x, centre_y = level_x - level_x.mean(0), level_y - level_y.mean(0)
    share, ridge = 0.25 * N_MELS / max(N_MELS - known, 64), 0.015 * np.eye(known)
    motion = np.linalg.solve(motion_xx + ridge, motion_xy)
    lines = np.linalg.solve(
        centre_x.T @ centre_x / 700 + share * motion_xx + ridge, centre_x.T @ centre_y / 700 + share * motion_xy
    )
    spreads, directions = np.linalg.eigh(centre_x.T @ centre_x / 700)
    embed = directions[:, -5:] / np.sqrt(spreads[-5:] + 0.05) / math.sqrt(5)

    def kernel(a, b):
        return np.exp(-2 * ((a[:, None] - b[None]) ** 2).sum(-1))

    centres = (centre_x @ embed)[:512]
    near = kernel(centre_x @ embed, centres)
    normal = near.T @ near + 0.005 * 700 * near[:512] + 1e-3 * np.eye(512)
    heights = np.linalg.solve(normal, near.T @ (centre_y - centre_x @ lines))
    level = bend(slow) - level_x.mean(0)
    expected = level_y.mean(0) + level @ lines + kernel(level @ embed, centres) @ heights + (new - slow) @ motion
    np.testing.assert_allclose(estimate, expected, atol=2e-3)


def test_known_bands_are_kept_and_what_follows_them_is_found():
    clips, store = music(640), Exemplars(600)
    store.fill(clips[:600])
    known = torch.arange(N_MELS) % 3 > 0  # any bands
    for clip in clips[600:]:
        frames = clip.clone()
        frames[:, ~known] = -9.0
        inferred, heard, _ = store.infer(frames, known)
        assert torch.equal(inferred[:, known], clip[:, known])
        error = (inferred - clip)[:, ~known].square().mean()
        assert error < 0.05 * clip[:, ~known].var()
        assert not heard.any()


def test_the_store_can_be_filled_anew():
    store, known = Exemplars(64), torch.arange(N_MELS) < 200
    store.fill(music(64))
    frames = music(1, seed=5)[0]
    before = store.infer(frames, known)[0]
    store.fill(music(64, seed=7))
    assert not torch.allclose(store.infer(frames, known)[0], before, atol=0.1)
    other = Exemplars(64)
    assert not torch.allclose(other.infer(frames, known)[0], store.infer(frames, known)[0], atol=0.1)
    other.load_state_dict(store.state_dict())
    assert torch.equal(other.infer(frames, known)[0], store.infer(frames, known)[0])


@pytest.fixture(scope="module")
def store() -> Exemplars:
    """Of the demo set's training tracks at eight levels."""
    wavs = np.stack([np.resize(track.mixture(), (3, 256 * 480)) for track in load_dataset("demo", "train")])
    loudest = excerpts(log_mel(torch.from_numpy(wavs).flatten(0, 1).float())[:, 0])
    levels = [loudest - gain_db / 20 * math.log(10) for gain_db in range(0, 32, 4)]
    frames = normalise(torch.cat(levels).clamp(min=math.log(LOG_MEL_FLOOR)))  # as of quieter recordings
    store = Exemplars(len(frames))
    store.fill(frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))])
    return store.eval()


@pytest.fixture(scope="module")
def clean_clips() -> list[tuple[np.ndarray, torch.Tensor]]:
    """Of each test track 2.56 s `[samples]` and their normalised log-mel `[256, 256]`."""
    wavs = [np.resize(track.mixture(), 256 * 480) for track in load_dataset("demo", "test")]
    return [(wav, normalise(log_mel(torch.from_numpy(wav)))[0, 0]) for wav in wavs]


@pytest.fixture(scope="module")
def quiet_music(clean_clips) -> np.ndarray:
    return 0.1 * clean_clips[0][0]


@pytest.mark.parametrize("amplitude", [0.005, 0.02])
@pytest.mark.parametrize("cutoff_hz", [2000, 8000, 16_000])
@pytest.mark.parametrize("noise_first", [False, True])
def test_noise_level_of_white_noise_under_quiet_music(quiet_music, amplitude, cutoff_hz, noise_first):
    degraded = Degradation(
        cutoff_hz, noise_type="white", noise_amplitude=amplitude, noise_first=noise_first
    ).apply(quiet_music, SAMPLE_RATE)
    known = torch.arange(N_MELS) < band_of_hz(cutoff_hz)
    noise = WhiteNoise.find(normalise(log_mel(torch.from_numpy(degraded)))[0, 0], known)
    assert torch.equal(noise.bands, known) if noise_first else noise.bands.all()
    if noise_first:  # it shows only where the music is quiet, which adds to it
        assert 0.95 * amplitude < math.exp(noise.level) < 4 * amplitude
    else:
        assert math.exp(noise.level) == pytest.approx(amplitude, rel=0.03)


@pytest.mark.parametrize("ends_hz", [19_000, 20_000, 22_050])
def test_noise_that_ends_with_the_recording_is_found_in_a_full_band(quiet_music, ends_hz):
    hiss = Degradation(noise_type="white", noise_amplitude=0.02).apply(quiet_music, SAMPLE_RATE)
    degraded = Degradation(ends_hz, "ellip", 10).apply(hiss, SAMPLE_RATE)
    noise = WhiteNoise.find(normalise(log_mel(torch.from_numpy(degraded)))[0, 0], torch.ones(N_MELS).bool())
    assert 0.95 * 0.02 < math.exp(noise.level) < 1.2 * 0.02
    assert noise.bands[: band_of_hz(18_000)].all()


def test_levels_are_told_ten_db_below_the_noise():
    """Of stationary sounds whose groups of 32 bands are as loud as they please: no group tells of another."""
    rng, noise = np.random.default_rng(0), WhiteNoise(torch.tensor(math.log(0.02)), torch.ones(N_MELS).bool())

    def sounds(count, frames):
        wavs = torch.from_numpy(rng.standard_normal((count, frames * 480)).astype(np.float32))
        level_db = torch.from_numpy(rng.uniform(-10, 20, (count, 1, 8))).float()
        gain = math.log(0.02) + level_db * math.log(10) / 20
        return log_mel(wavs)[:, 0] + gain.repeat_interleave(32, 2), level_db

    store = Exemplars(512)
    store.fill(excerpts(normalise(sounds(512, 16)[0])))
    errors_db = []
    for music, level_db in zip(*sounds(12, 512), strict=True):
        hiss = log_mel(torch.from_numpy(0.02 * rng.standard_normal(512 * 480).astype(np.float32)))[0, 0]
        degraded = torch.logaddexp(2 * music, 2 * hiss) / 2
        inferred, *_ = store.infer(normalise(degraded), torch.ones(N_MELS).bool(), noise)
        error_db = 20 / math.log(10) * (denormalise(inferred) - music).mean(0).unflatten(0, (8, 32)).mean(1)
        errors_db.append(error_db[level_db[0] < -6])
    assert torch.cat(errors_db).square().mean().sqrt() < 1.5


# Filtered noise is taken for louder than it is under loud music (see above), which costs that a little.
@pytest.mark.parametrize(
    ("cutoff_hz", "noise_first", "left"),
    [(4000, False, 0.9), (4000, True, 1.2), (16_000, False, 0.5), (16_000, True, 0.6)],
)
def test_music_is_found_under_white_noise(store, clean_clips, cutoff_hz, noise_first, left):
    before, after, missing, spread = [], [], [], []
    bands = torch.arange(N_MELS) < band_of_hz(cutoff_hz)
    noise = {"noise_type": "white", "noise_amplitude": 0.02, "noise_first": noise_first}
    for clean, truth in clean_clips:
        degraded = Degradation(cutoff_hz, **noise).apply(clean, SAMPLE_RATE)
        frames = normalise(log_mel(torch.from_numpy(degraded)))[0, 0]
        inferred, heard, _ = store.infer(frames, bands, WhiteNoise.find(frames, bands))
        error = (inferred - truth).square()
        before.append((frames - truth).square()[:, bands].mean())
        after.append(error[:, bands].mean())
        missing.append(error[:, ~bands].mean())
        spread.append(truth[:, ~bands].var())
        assert heard[:, ~bands].mean() < 0.02 < heard[:, bands].mean()
    assert np.mean(after) < left * np.mean(before)
    assert np.mean(missing) < 0.6 * np.mean(spread)  # of what is left when no more than its mean is known
