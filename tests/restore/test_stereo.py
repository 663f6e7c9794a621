"""Channels: which are restored, how they are mixed, and what each gets of the one generation."""

import itertools

import numpy as np
import pytest
import torch
from scipy import signal

from srlib.audio.stft import band_of_hz
from srlib.config import LOG_MEL_FLOOR, SAMPLE_RATE
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.measure.metrics import stereo_high
from srlib.restore.stereo import ChannelSurvey, Layout, level_differences, upmix


def survey(*channels: np.ndarray, block: int = 1000) -> Layout:
    wav = np.stack(channels).astype(np.float32)
    survey = ChannelSurvey(len(wav), SAMPLE_RATE)
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


BASS = 30 * signal.sosfilt(signal.butter(4, 100, fs=SAMPLE_RATE, output="sos"), noise(3))
SHARED, RATE_S = noise(0, 2.0), 1 / SAMPLE_RATE


@pytest.mark.parametrize(
    ("channels", "weights", "delays"),
    [
        ([noise(0)], [1], [0]),
        ([noise(0), -noise(0)], [0.5, -0.5], [0, 0]),
        ([noise(0), 0.5 * noise(0)], [2 / 3, 1 / 3], [0, 0]),
        ([noise(0) + noise(1), noise(0) - noise(1)], [0.5, 0.5], [0, 0]),  # nothing is shared: a plain sum
        ([noise(0) + 0.1 * noise(1), -noise(0), BASS], [0.5, -0.5, 0], [0, 0, 0]),
        ([SHARED[100:], SHARED[:-100]], [0.5, 0.5], [0, 100]),
        ([SHARED[:-240], -0.5 * SHARED[240:]], [2 / 3, -1 / 3], [240, 0]),
        ([2 * SHARED[50:-10], SHARED[:-60], -SHARED[60:]], [1 / 2, 1 / 4, -1 / 4], [10, 60, 0]),
    ],
)
def test_weights_signs_and_delays_of_what_channels_share(channels, weights, delays):
    layout = survey(*channels)
    np.testing.assert_allclose(layout.weights, weights, atol=0.02)
    np.testing.assert_allclose(layout.delays_s * SAMPLE_RATE, delays, atol=0.02)


def test_the_downmix_is_the_weighted_sum_without_delays():
    layout = Layout((0, 1), (0, 1), np.array([0.75, -0.25], np.float32), np.array([0.0, RATE_S]), np.ones(2))
    wav = torch.tensor([[1.0, 2.0, 3.0], [4.0, 0.0, 8.0]])
    torch.testing.assert_close(layout.with_downmix(wav), torch.cat([torch.tensor([[0.75, -0.5, 2.25]]), wav]))
    single = torch.randn(1, 5)
    assert torch.equal(survey(noise(0)).with_downmix(single), single)


def clips() -> list[np.ndarray]:
    music = [track.mixture(2.0, 3.1) for track in load_dataset("demo", "test")[:3]]
    return [0.1 * wav / wav.std() for wav in music]


def later(wav: np.ndarray, milliseconds: float) -> np.ndarray:
    first = 4800 - round(milliseconds * SAMPLE_RATE / 1000)
    return wav[first : first + 3 * SAMPLE_RATE]


BASS_3S = np.tile(BASS, 3)
STEREO = {
    "1 ms": lambda a, b, c: [later(a, 0), later(a, 1)],
    "5 ms": lambda a, b, c: [later(a, 0), later(a, 5)],
    "two tracks panned": lambda a, b, c: [later(a + 0.2 * b, 0), later(0.3 * a + b, 0)],
    "wide side": lambda a, b, c: [later(a / 2 + b, 0), later(a / 2 - b, 0)],
    "inverted": lambda a, b, c: [later(a, 0), -later(a, 0)],
    "inverted and delayed": lambda a, b, c: [later(a, 0), -later(a, 0.5)],
    "six": lambda a, b, c: [*(later(x, ms) for x, ms in ((a, 0), (a, 1), (b, 0), (c, 0), (c + b / 3, 0))), BASS_3S],
}
OTHER_EXCITATIONS = [*itertools.product(["1 ms", "wide side", "inverted"], ["noise", "vocoder"])]


@pytest.mark.parametrize(("kind", "excitation"), [*((kind, "copied") for kind in STEREO), *OTHER_EXCITATIONS])
def test_made_treble_is_as_wide_as_the_music(compact_pipeline, kind, excitation):
    stereo = np.stack(STEREO[kind](*clips())).astype(np.float32)
    low_pass = Degradation(4000)
    edges = {"cutoff_hz": low_pass.passband_hz(SAMPLE_RATE), "stopband_hz": low_pass.stopband_hz(SAMPLE_RATE)}
    degraded = np.stack([low_pass.apply(wav, SAMPLE_RATE) for wav in stereo])
    audio = compact_pipeline(degraded, SAMPLE_RATE, num_inference_steps=0, excitation=excitation, **edges).audio
    true, made = (stereo_high(wav, 1.1 * edges["stopband_hz"]) for wav in (stereo, audio))
    assert made["correlation"] == pytest.approx(true["correlation"], abs=0.4)
    if true["mono_sum_db"] > -20:
        assert made["mono_sum_db"] == pytest.approx(true["mono_sum_db"], abs=3)
    else:  # what cancels in the music cancels in what is made
        assert made["mono_sum_db"] < -20


def shares_of(generated, known, downmix, cutoff_hz, weights=(1.0,), delays_s=0.0) -> torch.Tensor:
    """What is generated, `[samples]`, for each channel: `[channels, samples]`."""
    places = tuple(range(len(weights)))
    layout = Layout(places, places, np.array(weights), np.zeros(len(weights)) + delays_s, np.ones(len(weights)))
    return upmix(generated, level_differences(known, downmix, cutoff_hz), layout)


def test_each_channel_gets_its_level_its_sign_and_its_delay():
    generated = torch.from_numpy(noise(0)).float()
    known = torch.randn(100, 256, generator=torch.Generator().manual_seed(0)) - 4
    channels = torch.stack([known + np.log(0.5), known + np.log(2.0), torch.full_like(known, np.log(LOG_MEL_FLOOR))])
    shares = shares_of(generated, channels, known, 8000.0, [0.5, -0.4, 0.1], [10 / SAMPLE_RATE, 0, 0])
    torch.testing.assert_close(shares[0][10:], 0.5 * generated[:-10], atol=5e-3, rtol=0)
    torch.testing.assert_close(shares[1], -2.0 * generated, atol=8e-3, rtol=0)
    # Nothing below the cutoff, so 100 dB less above.
    assert shares[2].abs().max() < 1.1e-5 * generated.abs().max()


def test_level_differences_are_held_above_the_cutoff_and_smooth():
    """Half as loud below 2 kHz, as loud up to 8 kHz: above that, what is just below it is held."""
    mix = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) / 2 - 4
    half = mix.clone()
    half[:, : band_of_hz(2000)] += np.log(0.5)
    half[:, band_of_hz(8000) :] = -11.0
    (found,) = level_differences(half[None], mix, 8000.0)
    assert found.shape == (300, 256)
    torch.testing.assert_close(
        found[:, : band_of_hz(1500)].mean(), torch.tensor(np.log(0.5)).float(), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        found[:, band_of_hz(3000) :], torch.zeros(300, 256 - band_of_hz(3000)), atol=0.02, rtol=0
    )
    assert found.diff(dim=0).abs().max() < 0.1
    louder = level_differences(mix[None] + 5, mix, 8000.0)
    torch.testing.assert_close(louder.exp(), torch.full((1, 300, 256), 10.0))  # no channel gets more
