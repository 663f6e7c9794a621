"""Latent diffusion against closed forms: the velocity, guidance, and sampling with a model that is always right."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srlib.config import AUDIOSR, AUDIOSR_NARROW, COMPACT, TINY, UNCONDITIONAL_LATENT
from srlib.models import diffusion

SHAPE = (2, 16, 8, 32)


def noise(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine_abar(zero_terminal_snr: bool) -> torch.Tensor:
    """Nichol and Dhariwal's cosine schedule, betas capped at 0.999, rescaled as Lin et al. (2024), by hand."""
    time = np.arange(1001) / 1000
    signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    amplitude = np.sqrt(np.cumprod(1 - np.minimum(1 - signal[1:] / signal[:-1], 0.999)))
    if zero_terminal_snr:
        amplitude = (amplitude - amplitude[-1]) * amplitude[0] / (amplitude[0] - amplitude[-1])
    return torch.from_numpy(amplitude**2)


class Unet(torch.nn.Module):
    """Answers with what `velocity` gives for the noisy latent, the condition and abar, and keeps what it was asked."""

    def __init__(self, velocity, abar=None):
        super().__init__()
        self.velocity, self.abar, self.calls = velocity, abar, []

    def forward(self, stacked, timestep, encoder_hidden_states):
        self.calls.append((stacked, timestep))
        abar = None if self.abar is None else self.abar[timestep].float().reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=self.velocity(stacked[:, :16], stacked[:, 16:], abar))


def perfect(clean, scheduler):
    """Knows the clean latent, hence the velocity of any noisy one."""

    def velocity(latent, _, abar):
        return abar.sqrt() * (latent - abar.sqrt() * clean) / (1 - abar).sqrt() - (1 - abar).sqrt() * clean

    return Unet(velocity, scheduler.alphas_cumprod)


def untrained():
    return Unet(lambda latent, *_: torch.zeros_like(latent))


@pytest.mark.parametrize(("size", "zero_snr"), [(AUDIOSR, False), (TINY, True), (COMPACT, True)])
def test_the_noise_schedule_is_the_cosine_one(size, zero_snr):
    scheduler = diffusion.build_scheduler(size)
    np.testing.assert_allclose(scheduler.alphas_cumprod, cosine_abar(zero_snr), atol=1e-6, rtol=1e-3)
    if zero_snr:  # the last timestep is pure noise
        clean, eps, last = noise(), noise(seed=1), torch.tensor([999, 999])
        assert torch.equal(scheduler.add_noise(clean, eps, last), eps)
        assert torch.equal(scheduler.get_velocity(clean, eps, last), -clean)


@pytest.mark.parametrize("last_step_share", [0.0, 1.0])
def test_loss_is_zero_for_the_right_velocity(last_step_share):
    scheduler, clean, condition = diffusion.build_scheduler(TINY), noise(), noise(seed=2)
    unet = perfect(clean, scheduler)
    assert diffusion.velocity_loss(unet, scheduler, clean, condition, torch.ones(1), last_step_share) < 1e-6
    stacked, timestep = unet.calls[0]
    assert torch.equal(stacked[:, 16:], condition)  # concatenated on channels
    assert bool(stacked[:, :16].any()) == (last_step_share == 0)  # without signal the noise is zero, as in sampling
    assert (timestep == 999).all() == (last_step_share == 1)


def test_loss_at_the_last_timestep_is_the_weighted_square_of_the_latent():
    """There the velocity is minus the clean latent. A sample counts as much as any other, however little is known."""
    scheduler, clean = diffusion.build_scheduler(TINY), noise() + 2
    weights = torch.zeros(2, 1, 1, 32)
    weights[0], weights[1, ..., :4] = 1.0, 3.0
    level = clean.mean(2, keepdim=True)
    for level_weight in (0.0, 0.1, 1.0):
        square = (clean - level) ** 2 + level_weight * level**2
        loss = diffusion.velocity_loss(untrained(), scheduler, clean, noise(), weights, 1.0, level_weight=level_weight)
        assert loss == pytest.approx(float(square[0].mean() + square[1, ..., :4].mean()) / 2, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_loss_weighs_timesteps_by_their_clipped_signal_to_noise_ratio(gamma, monkeypatch):
    scheduler, clean, eps = diffusion.build_scheduler(TINY), noise(), noise(seed=1)
    timestep = torch.tensor([50, 800])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: timestep)
    monkeypatch.setattr(torch, "randn_like", lambda _: eps)
    loss = diffusion.velocity_loss(untrained(), scheduler, clean, noise(), torch.ones(1), 0.0, gamma)
    abar = cosine_abar(True)[timestep].float()[:, None, None, None]
    error = (abar.sqrt() * eps - (1 - abar).sqrt() * clean).square().mean((1, 2, 3))
    snr = (abar / (1 - abar)).flatten()
    factor = 1.0 if not gamma else (snr.clamp(max=gamma) + 1) / (snr + 1)
    assert snr[0] > 5 > snr[1] and loss == pytest.approx(float((error * factor).mean()), rel=1e-3)


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_condition_is_dropped_for_each_sample_by_itself(probability):
    condition = torch.ones(4000, 2, 1, 1)
    torch.manual_seed(0)
    dropped = diffusion.drop_condition(condition, 0.5, probability)
    is_none = dropped == UNCONDITIONAL_LATENT * 0.5
    assert torch.equal(is_none, dropped != 1) and torch.equal(is_none[:, 0], is_none[:, 1])
    assert float(is_none[:, 0].float().mean()) == pytest.approx(probability, abs=0.02)  # four standard deviations


@pytest.mark.parametrize("steps", [1, 3, 334, 1000])  # AudioSR itself starts at timestep 1 for one, fails for 1000
@pytest.mark.parametrize("name", [None, "ddim", "dpm", "unipc"])
@pytest.mark.parametrize("size", [TINY, AUDIOSR])
def test_a_perfect_model_is_sampled_back_to_the_clean_latent(size, name, steps):
    scheduler = diffusion.use_scheduler(diffusion.build_scheduler(size), name)
    clean, predicted = noise(seed=3), []
    unet = perfect(clean, scheduler)
    restored = diffusion.denoise(unet, scheduler, noise(), noise(seed=1), steps, callback=predicted.append)
    assert (restored - clean).std() < 0.04  # a trace of noise is left where the steps do not divide the schedule
    assert len(predicted) == len(unet.calls) == steps and int(unet.calls[0][1]) == 999  # from pure noise on
    assert all((estimate - clean).std() < 2e-3 for estimate in predicted[1:])


def test_a_single_step_starts_from_the_mean_of_the_noise_and_is_not_random():
    """A schedule that ends in pure noise makes it the posterior mean; one that does not, starts from noise."""
    for size, random in ((TINY, False), (AUDIOSR, True)):
        scheduler = diffusion.use_scheduler(diffusion.build_scheduler(size), None)
        unet = untrained()
        for seed in (0, 1):
            diffusion.denoise(unet, scheduler, noise(seed=seed), noise(seed=2), 1)
        first, second = (stacked[:, :16] for stacked, _ in unet.calls)
        assert torch.equal(first, second) != random and bool(first.any()) == random


@torch.no_grad()
def test_audiosr_s_untrained_u_net_predicts_zero_and_attends_to_itself_twice():
    unet = diffusion.build_unet(AUDIOSR_NARROW)
    assert not unet(noise((1, 32, 8, 32)), torch.tensor([5]), encoder_hidden_states=None).sample.any()
    block = unet.down_blocks[1]
    assert len(block.attentions) == 2 * len(block.resnets)
