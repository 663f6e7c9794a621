"""What each stage learns or fits, on signals whose loss is known."""

import numpy as np
import pytest
import torch

from srlib.audio.stft import band_of_hz, log_mel
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.restore.merge import FULL_BAND, Band
from srlib.restore.pipeline import build
from srlib.training import objectives
from srlib.training.config import TrainConfig
from srlib.training.pairs import Batch


def objective_of(stage, pipeline):
    return objectives.OBJECTIVES[stage](pipeline, TrainConfig(fit_batches=1))


def batch_of(reference, degraded=None, bandwidth_hz=24000.0, band=FULL_BAND):
    rows = len(reference)
    degraded = reference.clone() if degraded is None else degraded
    bandwidth = torch.full((rows,), bandwidth_hz, dtype=torch.float64)
    return Batch(reference, degraded, bandwidth, [Degradation()] * rows, [band] * rows, [None] * rows, [()] * rows)


def white(rows=2, level=0.1, seed=0):
    return level * torch.randn(rows, 64 * 480, generator=torch.Generator().manual_seed(seed))


def test_the_linear_autoencoder_is_fitted_and_the_other_parts_are_left_alone():
    pipeline = build("tiny")
    objective = objective_of("vae", pipeline)
    batch = batch_of(white(8), white(8, level=0.02, seed=1))
    before = objective(objective.examples(batch))
    objective.prepare(iter([batch]))
    after = objective(objective.examples(batch))
    assert after < 0.5 * before
    heard = log_mel(torch.cat([batch.reference[4:], batch.degraded[:4]]))  # half of each
    latent = pipeline.vae.encode(heard).latent_dist.mode()
    torch.testing.assert_close(latent.std(dim=(0, 2, 3)), torch.ones(8), rtol=1e-2, atol=0)
    assert not any(part.training for part in (pipeline.unet, pipeline.prior, pipeline.vocoder))


def test_audiosr_s_autoencoder_learns_by_steps():
    pipeline = build("audiosr-narrow")
    objective = objective_of("vae", pipeline)
    objective.prepare(iter(()))  # nothing of it has a closed form
    torch.manual_seed(0)
    objective(objective.examples(batch_of(white(2)))).backward()
    assert all(parameter.grad is not None for parameter in pipeline.vae.parameters())
    assert all(parameter.grad is None for part in (pipeline.unet, pipeline.vocoder) for parameter in part.parameters())


def swelling(rows: int, seed: int = 0) -> torch.Tensor:
    """Noise whose level and colour move, so that there is something to fit."""
    time = torch.arange(64 * 480) / 480
    motion = 1 + 0.8 * torch.sin(time / 5 + torch.arange(rows)[:, None])
    return motion * white(rows, seed=seed)


@pytest.fixture
def fitted():
    """Of the ldm stage: objective, and the batch that its prior was fitted to."""
    pipeline = build("tiny")
    objective = objective_of("ldm", pipeline)
    batch = batch_of(swelling(8), swelling(8, seed=1), band=Band(8000, 8560))
    objective.prepare(iter([batch]))
    return objective, batch


def test_the_prior_is_fitted_once_and_residuals_have_unit_variance(fitted):
    objective, batch = fitted
    examples = objective.examples(batch)
    assert examples["residual"].shape == (8, 8, 8, 32) and examples["condition"].shape == (8, 18, 8, 32)
    np.testing.assert_allclose(examples["residual"].std(dim=(0, 2, 3)), 1, rtol=1e-3)
    prior = {name: value.clone() for name, value in objective.pipeline.prior.state_dict().items()}
    assert prior["fast_factors"].any() and prior["slow_factors"].any()
    objective.prepare(iter([batch_of(white(8))]))
    assert all(torch.equal(value, prior[name]) for name, value in objective.pipeline.prior.state_dict().items())


def test_conditions_are_two_latents_and_how_sure_observation_and_prior_are(fitted):
    objective, batch = fitted
    condition, pipeline = objective.examples(batch)["condition"], objective.pipeline
    degraded = log_mel(batch.degraded)
    observed = batch.observation(degraded)
    posterior = pipeline.prior(observed.log_mel, observed.variance)
    torch.testing.assert_close(condition[:, :8], pipeline.vae.encode(degraded).latent_dist.mode())
    torch.testing.assert_close(condition[:, 8:16], pipeline.vae.encode(posterior.mean).latent_dist.mode())
    first, last = band_of_hz(7500) // 8, band_of_hz(9000) // 8 + 1
    assert (condition[:, 16, :, :first] == 1).all() and (condition[:, 16, :, last:] < 1e-5).all()
    assert (condition[:, 17, :, :first] < 1e-3).all()
    spread = posterior.variance.sqrt().reshape(8, 8, 8, 32, 8).mean((2, 4))
    torch.testing.assert_close(condition[:, 17], spread)


def test_above_a_track_s_bandwidth_there_is_no_target(fitted):
    objective, batch = fitted
    batch.bandwidth_hz.fill_(16_000.0)
    examples = objective.examples(batch)
    above = band_of_hz(16_500) // 8 + 1
    assert examples["residual"][..., above:].abs().max() < 1e-4
    weights = examples["weights"].expand(8, 1, 1, 32)
    assert not weights[..., above:].any() and (weights[..., : band_of_hz(15_000) // 8] > 0).all()
    batch.bandwidth_hz.fill_(24_000.0)
    assert objective.examples(batch)["residual"][..., above:].abs().mean() > 0.1


def test_the_loss_counts_what_shows_in_the_log_mel(fitted):
    """An untrained network predicts zero; at the last step the velocity is the residual: its weighted power is left."""
    objective, batch = fitted
    objective.config = TrainConfig(last_step_share=1.0)
    examples = objective.examples(batch)
    gain = objective.pipeline.vae.spread * objective.pipeline.prior.residual_std
    weights = examples["weights"] * (gain**2 / (gain**2).mean())[:, None, None]
    weights = weights.expand(8, 8, 8, 32)
    expected = ((examples["residual"] ** 2 * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean()
    loss = objective(examples)
    assert loss.item() == pytest.approx(float(expected), rel=1e-4)
    loss.backward()
    assert objective.module.head.weight.grad.abs().max() > 0


def test_a_prior_needs_music_up_to_its_highest_bands():
    objective = objective_of("ldm", build("tiny"))
    narrow = batch_of(swelling(4), bandwidth_hz=16_000.0)
    with pytest.raises(SrlibError, match=r"No crop holds sound up to 18\.9 kHz"):
        objective.prepare(iter([narrow]))
    mixed = batch_of(swelling(4))
    mixed.bandwidth_hz[:2] = 16_000.0
    objective.prepare(iter([narrow, mixed]))
    expected = log_mel(mixed.reference[2:]).mean((0, 1, 2))
    torch.testing.assert_close(objective.pipeline.prior.mean, expected, atol=1e-4, rtol=0)


def test_the_vocoder_s_loss_falls_when_it_is_right():
    wav = white()
    vocoder = objective_of("vocoder", build("tiny"))
    torch.manual_seed(0)
    right_level = vocoder(vocoder.examples(batch_of(wav))).item()
    torch.nn.init.constant_(vocoder.module.head.bias[:1025], 1.0)  # a nat too loud
    torch.manual_seed(0)
    assert vocoder(vocoder.examples(batch_of(wav))).item() > right_level + 0.1


def test_the_vocoder_s_loss_sees_nothing_above_the_bandwidth():
    vocoder = objective_of("vocoder", build("tiny"))
    spectrum = torch.fft.rfft(white())
    spectrum[:, torch.linspace(0, 24_000, spectrum.shape[1]) > 14_000] *= 0.01
    bandwidth_hz = torch.tensor([12_000.0, 12_000.0])
    references = (white(), torch.fft.irfft(spectrum, 64 * 480))
    losses = [vocoder.distance(white(seed=3), reference, bandwidth_hz, 2048) for reference in references]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
