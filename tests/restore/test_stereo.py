"""Channels: which are restored, how they are mixed, and what each gets of the one generation."""

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.audio.stft import band_of_hz, log_mel
from srlib.config import LOG_MEL_FLOOR, SAMPLE_RATE
from srlib.restore.stereo import ChannelSurvey, Layout, level_differences, upmix


def survey(*channels: np.ndarray, block: int = 1000) -> Layout:
    wav = np.stack(channels).astype(np.float32)
    survey = ChannelSurvey(len(wav))
    for start in range(0, wav.shape[1], block):
        survey.add(wav[:, start : start + block])
    np.testing.assert_array_equal(survey.peaks, np.abs(wav).max(axis=1))
    return survey.layout()


def noise(seed: int, seconds: float = 1.0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))


def test_silent_and_repeated_channels_are_not_restored():
    a, b = noise(0), noise(1)
    layout = survey(a, 0 * a, b, a, 1e-30 * a)
    assert layout.unique == (0, 2)
    assert layout.copies == (0, None, 1, 0, None)
    expanded = layout.expand(np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(expanded, [[1, 2], [0, 0], [3, 4], [1, 2], [0, 0]])
    assert survey(0 * a, 0 * a).unique == ()
    late = a.copy()
    late[-1] += 0.1
    assert survey(a, late).unique == (0, 1)  # one sample is a difference


def test_the_downmix_of_what_channels_share():
    a = noise(0)
    np.testing.assert_array_equal(survey(a).weights, [1])
    np.testing.assert_allclose(survey(a, -a).weights, [0.5, -0.5], atol=1e-6)
    np.testing.assert_allclose(survey(a, 0.5 * a).weights, [2 / 3, 1 / 3], atol=0.02)
    np.testing.assert_allclose(survey(a + 0.1 * noise(1), a + 0.1 * noise(2)).weights, [0.5, 0.5], atol=0.02)
    # Unrelated and equally loud: no direction is the principal one, so it is the mean.
    np.testing.assert_allclose(survey(noise(1, 20), noise(2, 20)).weights, [0.5, 0.5], atol=0.1)
    bass = signal.sosfilt(signal.butter(4, 100, fs=SAMPLE_RATE, output="sos"), noise(3))
    loud_bass = survey(a, a + 0.01 * noise(1), 30 * bass)
    assert abs(loud_bass.weights[2]) < 0.05


def test_mixing_is_the_weighted_sum():
    layout = Layout((0, 1), (0, 1), np.array([0.75, -0.25], np.float32))
    wav = torch.tensor([[1.0, 2.0], [4.0, 0.0]])
    torch.testing.assert_close(layout.downmix(wav), torch.tensor([-0.25, 1.5]))
    single = torch.randn(1, 5)
    assert torch.equal(Layout((0,), (0,), np.ones(1, np.float32)).downmix(single), single[0])


def shares_of(generated, known, downmix, weights, cutoff_hz, gaps=()) -> torch.Tensor:
    """What is generated, `[samples]`, for each channel: `[channels, samples]`."""
    return upmix(generated, level_differences(known, downmix, cutoff_hz, list(gaps)), weights)


def test_each_channel_gets_its_level_and_sign():
    generated = torch.from_numpy(noise(0)).float()
    known = torch.randn(100, 256, generator=torch.Generator().manual_seed(0)) - 4
    channels = torch.stack([known + np.log(0.5), known + np.log(2.0), torch.full_like(known, np.log(LOG_MEL_FLOOR))])
    shares = shares_of(generated, channels, known, np.array([0.5, -0.4, 0.1]), 8000.0)
    torch.testing.assert_close(shares[0], 0.5 * generated, atol=2e-3, rtol=0)
    torch.testing.assert_close(shares[1], -2.0 * generated, atol=8e-3, rtol=0)
    # Nothing below the cutoff, so 100 dB less above.
    assert shares[2].abs().max() < 1.1e-5 * generated.abs().max()


def test_a_channel_without_content_below_the_cutoff_gets_nothing_above():
    bass = signal.sosfilt(signal.butter(8, 120, fs=SAMPLE_RATE, output="sos"), noise(1))
    wavs = [torch.from_numpy(wav).float() for wav in (noise(0), noise(0) + bass, 3 * bass)]
    mix, *known = (log_mel(wav)[0, 0] for wav in wavs)
    shares = shares_of(torch.from_numpy(noise(2)).float(), torch.stack(known), mix, np.array([0.9, 0.1]), 8000.0)
    above = signal.butter(8, 8000, "high", fs=SAMPLE_RATE, output="sos")
    levels = [10 * np.log10(np.mean(signal.sosfilt(above, share.numpy()) ** 2)) for share in shares]
    assert levels[0] - levels[1] > 60


@pytest.mark.parametrize("seconds", [0.25, 0.7])
def test_levels_are_bridged_across_a_gap(seconds):
    wavs = torch.from_numpy(np.stack([noise(0, 2.0), 0.5 * noise(0, 2.0)])).float()
    gap = (0.9, 0.9 + seconds)
    wavs[:, round(gap[0] * SAMPLE_RATE) : round(gap[1] * SAMPLE_RATE)] = 0
    mix, half = log_mel(wavs)[:, 0]
    generated = torch.from_numpy(noise(2, 2.0)).float()
    share = shares_of(generated, half[None], mix, np.ones(1), 24_000.0, [gap])[0]
    torch.testing.assert_close(share, 0.5 * generated, atol=5e-3, rtol=0)


def test_level_differences_are_held_above_the_cutoff_and_smooth():
    """Half as loud below 2 kHz, as loud up to 8 kHz: above that, what is just below it is held."""
    mix = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) / 2 - 4
    half = mix.clone()
    half[:, : band_of_hz(2000)] += np.log(0.5)
    half[:, band_of_hz(8000) :] = -11.0
    (found,) = level_differences(half[None], mix, 8000.0, [])
    assert found.shape == (300, 256)
    torch.testing.assert_close(
        found[:, : band_of_hz(1500)].mean(), torch.tensor(np.log(0.5)).float(), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        found[:, band_of_hz(3000) :], torch.zeros(300, 256 - band_of_hz(3000)), atol=0.02, rtol=0
    )
    assert found.diff(dim=0).abs().max() < 0.1
    louder = level_differences(mix[None] + 5, mix, 8000.0, [])
    torch.testing.assert_close(louder.exp(), torch.full((1, 300, 256), 10.0))  # no channel gets more
