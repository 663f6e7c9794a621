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


@pytest.fixture(scope="module")
def by_excess(noise_level):
    """{excess over the noise's level, nat: (value less the excess, variance), each `[256]`}."""
    excesses = torch.arange(-1.0, 7.0, 0.25)
    found = observed(noise_level + excesses[:, None], floor=FLOOR)
    values, variances = found.log_mel - noise_level, found.variance
    return {float(excess): (values[row], variances[row]) for row, excess in enumerate(excesses)}


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


def test_far_above_the_noise_the_value_is_what_was_heard(by_excess):
    for excess in (4.0, 5.0, 6.0):
        value, variance = by_excess[excess]
        torch.testing.assert_close(value, torch.full((256,), excess), atol=0.02, rtol=0)
        assert variance.max() < 0.01


def test_at_the_noises_level_the_music_lies_below_it_nobody_knows_how_far(by_excess):
    value, variance = by_excess[0.0]
    assert value.max() < -1 and value.min() > -3
    assert variance.min() > 0.8 and variance.max() < 4


def test_the_louder_the_louder_and_the_surer(by_excess):
    values, variances = (torch.stack(rows) for rows in zip(*by_excess.values(), strict=True))
    excesses = torch.tensor(list(by_excess))
    audible = excesses >= 0
    assert (values[audible].diff(dim=0) > -0.1).all()  # the table is simulated
    assert (values[audible][4:] > values[audible][:-4] + 0.25).all()  # over one nat
    assert (values - excesses[:, None] < 0.02).all()  # music and noise are no quieter than music
    certain = excesses >= 1.25
    assert (variances[certain].diff(dim=0) < 0.02).all()


def test_a_wide_band_is_surer_of_what_stands_out_of_the_noise(by_excess):
    """It averages many bins: the noise's part in it varies less."""
    narrow, wide = by_excess[1.0][1][100], by_excess[1.0][1][240]
    assert wide < 0.2 * narrow


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


def test_cells_that_are_all_noise_are_hardly_believed(music, noise_level):
    """The music is 40 dB below the noise: what is told is below it by more than a guess, and unsure."""
    quiet = 0.01 * AMPLITUDE / music.std() * music
    found = observed(mel_of(quiet + white(len(music), seed=2)), floor=FLOOR)
    assert found.log_mel.mean() < noise_level.mean() - 1
    assert found.variance.median() > 1


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


def test_a_gap_in_noise_adds_to_its_doubt(noise_level):
    mel = noise_level.expand(200, -1)
    found, whole = (observed(mel, floor=FLOOR, gaps=gaps) for gaps in ([(0.9, 1.1)], []))
    torch.testing.assert_close(found.variance[100], whole.variance[100] + 1)
    torch.testing.assert_close(found.log_mel, whole.log_mel, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tone_hz", [120.0, 1000.0, 3000.0, 12_345.0])
def test_bands_that_a_tone_sounds_in_are_missing_and_no_others(tone_hz):
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    mel = mel_of(0.2 * np.sin(2 * np.pi * tone_hz * time_s))
    missing = observed(mel, tones_hz=(tone_hz,)).variance[50] == MISSING
    level = mel[10:-10].exp().mean(0)
    assert level[~missing].sum() < 0.01 * level.sum()
    assert missing.any() and (CENTRES_HZ[missing] - tone_hz).abs().max() < 100 + 0.06 * tone_hz


def test_each_row_has_its_own_band_noise_gaps_and_tones(music):
    mels = torch.stack([mel_of(music), mel_of(0.3 * music), mel_of(music + white(len(music)))])
    told = ([BAND, FULL_BAND, Band(4000, 4400)], [None, None, FLOOR], [[(0.5, 0.6)], [], []], [(), (1000.0,), ()])
    whole = observe(mels[:, None], *told)
    assert whole.log_mel.shape == whole.variance.shape == mels[:, None].shape
    for row, (band, floor, gaps, tones) in enumerate(zip(*told, strict=True)):
        alone = observed(mels[row], band, floor, gaps, tones)
        assert torch.equal(whole.log_mel[row, 0], alone.log_mel)
        assert torch.equal(whole.variance[row, 0], alone.variance)
    without_tones = observe(mels[:1, None], *(values[:1] for values in told[:3]))
    assert torch.equal(without_tones.variance, whole.variance[:1])
