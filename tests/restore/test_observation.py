"""What a degraded log-mel says of the clean one: against filters, noises, gaps and tones that are known."""

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_edges_hz, log_mel
from srlib.degrade import Degradation
from srlib.models.prior import MISSING
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.observation import Observation, observe

SAMPLE_RATE = 48_000
WINDOW_POWER = float((torch.hann_window(2048) ** 2).sum())  # of a bin of white noise of variance one
CENTRES_HZ = torch.from_numpy(band_edges_hz()[1:-1]).float()
BAND = Band(8000, 8560)
WHOLE = CENTRES_HZ <= 8000  # bands that BAND leaves
AMPLITUDE = 0.01
FLOOR = np.full(1025, AMPLITUDE**2 * WINDOW_POWER)


def observed(log_mel: torch.Tensor, band=FULL_BAND, floor=None, gaps=(), tones_hz=()) -> Observation:
    """Of one log-mel `[frames, 256]`; the observation's tensors have the same shape."""
    found = observe(log_mel[None, None], [band], [floor], [gaps], [tones_hz])
    return Observation(found.log_mel[0, 0], found.variance[0, 0])


def mel_of(wav: np.ndarray) -> torch.Tensor:
    """`[frames, 256]`."""
    return log_mel(torch.from_numpy(wav.astype(np.float32)))[0, 0]


def white(samples: int, amplitude: float = AMPLITUDE, seed: int = 0) -> np.ndarray:
    return amplitude * np.random.default_rng(seed).standard_normal(samples)


@pytest.fixture(scope="module")
def noise_level() -> torch.Tensor:
    """Log of the mean mel magnitude of white noise of AMPLITUDE, `[256]`, measured on half a minute."""
    return mel_of(white(30 * SAMPLE_RATE, seed=1)).exp().mean(0).log()


def test_what_nothing_was_done_to_is_known_as_it_is(music):
    mel = mel_of(music)
    for floor in (None, np.zeros(1025)):
        found = observed(mel, floor=floor)
        assert torch.equal(found.log_mel, mel) and not found.variance.any()


def test_bands_above_the_edge_are_missing_and_the_others_are_known(music):
    found = observed(mel_of(music), BAND)
    assert (found.variance[:, ~WHOLE] == MISSING).all()
    assert not found.variance[:, WHOLE].any()
    assert WHOLE.sum() == 189 and CENTRES_HZ[~WHOLE].min() > 8000


def test_the_fall_of_the_low_pass_is_taken_back_in_the_known_band(music):
    flat = torch.zeros(3, 256)
    wide = Band(8000, 16_000)  # by 17 dB over 8 kHz, and 3 dB at its beginning
    fall_db = (3 + 17 * (CENTRES_HZ - 8000) / 8000).clamp(min=0)
    expected = (fall_db * np.log(10) / 20).expand(3, -1)
    torch.testing.assert_close(observed(flat, wide).log_mel[:, WHOLE], expected[:, WHOLE])
    soft = Degradation(8000, "butter", 2)
    band = Band(soft.passband_hz(SAMPLE_RATE), soft.stopband_hz(SAMPLE_RATE))
    clean, degraded = mel_of(music), mel_of(soft.apply(music, SAMPLE_RATE))
    near = (0.8 * band.passband_hz < CENTRES_HZ) & (band.passband_hz >= CENTRES_HZ)
    errors = [(value - clean)[:, near].abs().mean() for value in (degraded, observed(degraded, band).log_mel)]
    assert near.sum() > 5 and errors[1] < 0.6 * errors[0]


def test_music_is_known_far_above_the_noise_and_hardly_at_its_level(noise_level):
    found = observed(noise_level + torch.tensor([0.0, 4.0, 6.0])[:, None], floor=FLOOR)
    below, *heard = found.log_mel - noise_level
    assert below.max() < -1 and below.min() > -3 and 0.8 < found.variance[0].min() < found.variance[0].max() < 4
    for excess, value in zip((4.0, 6.0), heard, strict=True):
        torch.testing.assert_close(value, torch.full((256,), excess), atol=0.02, rtol=0)
    assert found.variance[1:].max() < 0.01


@pytest.mark.parametrize("amplitude", [0.002, 0.01])
def test_noise_on_real_music_leaves_no_bias_where_music_is_louder(music, noise_level, amplitude):
    clean, degraded = (mel_of(music + white(len(music), level, seed=2)) for level in (0.0, amplitude))
    found = observed(degraded, floor=FLOOR * (amplitude / AMPLITUDE) ** 2)
    excess = degraded - noise_level - np.log(amplitude / AMPLITUDE)
    error, before = found.log_mel - clean, degraded - clean
    for low, high, bias in ((2.0, 8.0, 0.005), (1.0, 2.0, 0.02)):
        cells = (excess > low) & (excess <= high)
        assert cells.sum() > 2000
        assert error[cells].mean().abs() < bias
        assert 0.3 < error[cells].square().mean() / found.variance[cells].mean() < 3
    hidden = excess < 0.5
    assert hidden.sum() > 2000
    assert error[hidden].square().mean() < 0.6 * before[hidden].square().mean()


def test_noise_that_ends_somewhere_touches_no_band_beyond(music):
    floor = FLOOR * (np.linspace(0, 24_000, 1025) < 4000)
    mel = mel_of(music)
    found = observed(mel, floor=floor)
    beyond = torch.from_numpy(band_edges_hz()[:-2] >= 4000)
    assert torch.equal(found.log_mel[:, beyond], mel[:, beyond]) and not found.variance[:, beyond].any()
    assert (found.variance[:, torch.from_numpy(band_edges_hz()[2:] < 3900)] > 0).any(0).all()


def test_gaps_are_doubted_where_the_band_is_known(music):
    mel = mel_of(music)
    found, whole = observed(mel, BAND, gaps=iter([(1.0, 1.25)])), observed(mel, BAND)
    reached = torch.zeros(len(mel), dtype=torch.bool)
    reached[98:127] = True  # frame t holds samples 480 t - 784 to 480 t + 1264
    assert (found.variance[reached][:, WHOLE] == 1).all()
    assert not found.variance[~reached][:, WHOLE].any()
    assert (found.variance[:, ~WHOLE] == MISSING).all()
    assert torch.equal(found.log_mel, whole.log_mel)


@pytest.mark.parametrize("tone_hz", [120.0, 1000.0, 3000.0, 12_345.0])
def test_bands_that_a_tone_sounds_in_are_missing_and_no_others(tone_hz):
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    mel = mel_of(0.2 * np.sin(2 * np.pi * tone_hz * time_s))
    missing = observed(mel, tones_hz=(tone_hz,)).variance[50] == MISSING
    level = mel[10:-10].exp().mean(0)
    assert level[~missing].sum() < 0.01 * level.sum()
    assert missing.any() and (CENTRES_HZ[missing] - tone_hz).abs().max() < 100 + 0.06 * tone_hz
