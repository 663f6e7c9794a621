"""The power that a mean of logarithms lacks: against closed forms, the spectra of real music, and the shipped model."""

import math

import numpy as np
import pytest
import torch

from srlib.config import LOG_MEL_FLOOR, N_MELS
from srlib.data import load_dataset
from srlib.degrade import Degradation
from srlib.exemplars import Exemplars, WhiteNoise
from srlib.loudness import band_widths, deficit_db, lift, power_density
from srlib.mel import band_of_hz, denormalise, log_mel, normalise, stft_magnitude
from srlib.metrics import level_high_db

SAMPLE_RATE = 48_000
FIRST = band_of_hz(4000)
NAT = 20 / math.log(10)  # dB


@pytest.fixture(scope="module")
def mels() -> torch.Tensor:
    """Log-mels of the test tracks, `[tracks, 1, 512, 256]`."""
    wavs = [np.resize(track.mixture(), 512 * 480) for track in load_dataset("demo", "test")]
    return log_mel(torch.from_numpy(np.stack(wavs)))


def high_power(mel: torch.Tensor) -> torch.Tensor:
    """`[batch]`."""
    return (power_density(mel[:, 0, :, FIRST:], FIRST) @ band_widths()[FIRST:]).mean(1)


def test_power_is_that_of_the_spectrum(music):
    """Bands hold means of magnitudes, whose square is pi / 4 of the mean square of noise (one bin alone: all of it)."""
    hiss = 0.1 * np.random.default_rng(0).standard_normal(len(music)).astype(np.float32)
    for wav, lowest, highest in ((hiss, 0.98, 1.05), (music, 0.8, 1.1)):
        wav = torch.from_numpy(wav)[None]
        first_bin = round(4000 / SAMPLE_RATE * 2048)
        truth = (stft_magnitude(wav)[..., first_bin:] ** 2).sum(-1).mean()
        assert lowest < 4 / math.pi * high_power(log_mel(wav))[0] / truth < highest


def test_widths_add_up_to_the_spectrum():
    assert band_widths().sum() == pytest.approx(1024, rel=0.01)


@pytest.mark.parametrize("wanted_db", [0.5, 3.0, 6.0])
def test_what_is_lifted_has_the_power_that_was_wanted(mels, wanted_db):
    steady = mels.mean(2, keepdim=True).expand(-1, -1, 300, -1)  # the mean over time is that of every frame
    lifted = lift(steady, steady, torch.full((len(mels),), wanted_db), FIRST)
    gain_db = 10 * torch.log10(high_power(lifted) / high_power(steady))
    torch.testing.assert_close(gain_db, torch.full_like(gain_db, wanted_db), atol=1e-3, rtol=0)
    moving = lift(mels, mels, torch.full((len(mels),), wanted_db), FIRST)
    gain_db = 10 * torch.log10(high_power(moving) / high_power(mels))
    assert (gain_db - wanted_db).abs().max() < 0.5  # the means over 2.6 s weigh the ends of a clip less
    assert torch.equal(moving[..., :FIRST], mels[..., :FIRST]) and (moving >= mels).all()


def test_a_flat_spectrum_is_lifted_as_a_whole():
    area = torch.exp(-power_density(torch.zeros(N_MELS)).log() / 2)[None, None, None, FIRST:]
    flat = torch.full((1, 1, 64, N_MELS), -4.0)
    flat[..., FIRST:] += area.log()  # the same power in every bin
    lifted = lift(flat, flat, torch.tensor([4.0]), FIRST)
    torch.testing.assert_close(NAT * (lifted - flat)[..., FIRST:], torch.full((1, 1, 64, N_MELS - FIRST), 4.0))


def test_lifting_costs_far_less_distance_than_a_gain(mels):
    """The mean square of a gain of 3 dB on every cell is 9 dB^2; real music needs less than half of it."""
    change_db = NAT * (lift(mels, mels, torch.full((len(mels),), 3.0), FIRST) - mels)[..., FIRST:]
    widths = band_widths()[FIRST:]
    mean_square = (change_db**2 @ widths).mean() / widths.sum()
    assert mean_square < 9 / 2


def test_who_has_the_power_already_is_left_alone(mels):
    louder = mels.clone()
    louder[..., FIRST:] += 0.5  # 4.3 dB
    assert torch.equal(lift(louder, mels, torch.full((len(mels),), 4.0), FIRST), louder)
    assert torch.equal(lift(mels, mels, torch.zeros(len(mels)), FIRST), mels)
    assert torch.equal(lift(mels, mels, torch.full((len(mels),), 4.0), N_MELS), mels)  # nothing is missing


def test_silence_after_a_loud_moment_stays_silent():
    mel = torch.full((1, 1, 1024, N_MELS), math.log(LOG_MEL_FLOOR))
    mel[:, :, 100:103] = 2.0
    lifted = lift(mel, mel, torch.tensor([6.0]), FIRST)
    assert torch.isfinite(lifted).all()
    change_db = NAT * (lifted - mel)
    assert change_db[:, :, 400:].abs().max() < 6.1 and change_db.max() < 20  # a floor is not quite a flat spectrum


def test_deficit_of_a_lognormal_is_its_variance():
    """E[a^2] of a = exp(s n) is exp(2 s^2), the square of the mean of logarithms one: 8.69 s^2 dB more."""
    spread = 0.5
    truth = spread * torch.randn(300, 50, N_MELS - FIRST, generator=torch.Generator().manual_seed(0))
    assert deficit_db(torch.zeros_like(truth), truth, FIRST) == pytest.approx(NAT * spread**2, abs=0.1)
    assert deficit_db(truth, truth, FIRST) == 0


@pytest.mark.parametrize("amplitude", [None, 1e-4])
def test_a_store_knows_what_its_estimates_lack(amplitude):
    """Bands that nothing tells of are inferred as their mean: the deficit is that of a lognormal."""
    spread_nat, clips = 0.6, 600
    generator = torch.Generator().manual_seed(0)
    store = Exemplars(clips)
    store.fill(normalise(-3 + spread_nat * torch.randn(clips, 4, N_MELS, generator=generator)))
    known = torch.arange(N_MELS) < 30
    noise = None if amplitude is None else WhiteNoise(torch.tensor(math.log(amplitude)), known)
    frames = denormalise(store.log_mel[0])
    lacking = store.infer(normalise(frames), known, noise, with_deficit=True).deficit_db
    assert lacking == pytest.approx(NAT * spread_nat**2, rel=0.15)
    assert store.infer(normalise(frames), torch.ones(N_MELS).bool(), with_deficit=True).deficit_db == 0
    assert store.infer(normalise(frames), known, noise).deficit_db == 0  # nobody asked


def test_the_shipped_model_is_nearer_to_the_level_of_music():
    from srlib.pipeline import RestorationPipeline

    pipe = RestorationPipeline.from_pretrained("compact")
    degradation = Degradation(2000)
    edges = {"cutoff_hz": degradation.f_3db(SAMPLE_RATE), "f_20db": degradation.f_20db(SAMPLE_RATE)}
    levels = {True: [], False: []}
    for track in load_dataset("demo", "valid"):
        reference = track.mixture(start=2.0, seconds=2.56)
        degraded = degradation.apply(reference, SAMPLE_RATE)
        for lifted, found in levels.items():
            audio = pipe(degraded, SAMPLE_RATE, 0, lift=lifted, **edges).audio
            found.append(level_high_db(reference, audio, edges["f_20db"]))
    assert np.mean(levels[False]) < -3
    assert abs(np.mean(levels[True])) < 2
