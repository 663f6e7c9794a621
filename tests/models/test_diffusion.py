"""Latent diffusion against closed forms: the velocity, guidance, and sampling with a model that is always right."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from srlib.config import AUDIOSR, AUDIOSR_NARROW, COMPACT, TINY, UNCONDITIONAL_LATENT
from srlib.models import diffusion, vae
from srlib.models.prior import Posterior
from srlib.restore.pipeline import build

FIXTURE = Path(__file__).parents[1] / "fixtures" / "audiosr_tiny_seed0.safetensors"
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


class PerfectUnet(torch.nn.Module):
    """Knows the clean latent, hence the velocity of any noisy one."""

    def __init__(self, clean, abar):
        super().__init__()
        self.clean, self.abar, self.calls = clean, abar, []

    def forward(self, stacked, timestep, encoder_hidden_states):
        self.calls.append((stacked, timestep))
        latent = stacked[:, :16]
        abar = self.abar[timestep].float().reshape(-1, 1, 1, 1)
        eps = (latent - abar.sqrt() * self.clean) / (1 - abar).sqrt()
        return SimpleNamespace(sample=abar.sqrt() * eps - (1 - abar).sqrt() * self.clean)


class ConstantUnet(torch.nn.Module):
    """Velocity is a multiple of the mean condition: guidance can be worked out by hand."""

    def forward(self, stacked, timestep, encoder_hidden_states):
        return SimpleNamespace(sample=stacked[:, 16:32] * 0.01)


def test_audiosr_s_noise_schedule():
    parity = load_file(FIXTURE)
    scheduler = diffusion.build_scheduler(AUDIOSR)
    # diffusers caps the last beta at 0.999, AudioSR's is 1
    np.testing.assert_allclose(scheduler.betas[:999], parity["out.betas"][:999], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(scheduler.alphas_cumprod[:999], parity["out.alphas_cumprod"][:999], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(scheduler.alphas_cumprod[:999], cosine_abar(False)[:999], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [TINY, COMPACT])
def test_the_last_timestep_is_pure_noise(size):
    scheduler = diffusion.build_scheduler(size)
    np.testing.assert_allclose(scheduler.alphas_cumprod, cosine_abar(True), atol=1e-6)
    assert scheduler.alphas_cumprod[-1] == 0
    clean, eps, last = noise(), noise(seed=1), torch.tensor([999, 999])
    assert torch.equal(scheduler.add_noise(clean, eps, last), eps)
    assert torch.equal(scheduler.get_velocity(clean, eps, last), -clean)


class ZeroUnet(torch.nn.Module):
    def forward(self, stacked, timestep, encoder_hidden_states):
        return SimpleNamespace(sample=torch.zeros_like(stacked[:, :16]))


def channel_weights(values: torch.Tensor) -> torch.Tensor:
    return values[None, :, None, None]


def test_loss_is_zero_for_the_right_velocity_and_known_for_a_wrong_one():
    scheduler, clean, weights = diffusion.build_scheduler(TINY), noise(), channel_weights(torch.ones(16))
    perfect = PerfectUnet(clean, scheduler.alphas_cumprod)
    torch.manual_seed(0)
    loss = diffusion.velocity_loss(perfect, scheduler, clean, noise(seed=2), weights, last_step_share=1.0)
    assert loss < 1e-6
    assert (perfect.calls[0][1] == 999).all()
    assert not perfect.calls[0][0][:, :16].any()  # without signal the noise is zero, as one sampling step has it
    assert torch.equal(perfect.calls[0][0][:, 16:], noise(seed=2))  # the condition is concatenated on channels
    torch.manual_seed(0)
    assert diffusion.velocity_loss(perfect, scheduler, clean, noise(seed=2), weights, last_step_share=0.0) < 1e-6
    assert perfect.calls[1][0][:, :16].any()

    # At the last timestep the velocity is minus the clean latent, and the weight of that end is one.
    loss = diffusion.velocity_loss(ZeroUnet(), scheduler, clean, noise(), weights, last_step_share=1.0)
    assert loss == pytest.approx(float((clean**2).mean()), rel=1e-5)
    only_first = torch.zeros(16)
    only_first[0] = 16.0
    loss = diffusion.velocity_loss(
        ZeroUnet(), scheduler, clean, noise(), channel_weights(only_first), last_step_share=1.0
    )
    assert loss == pytest.approx(float((clean[:, 0] ** 2).mean()), rel=1e-5)


def test_loss_is_a_weighted_mean_of_each_sample_by_itself():
    """Where weights are zero nothing counts, and a sample with few known bands counts as much as any other."""
    scheduler, clean = diffusion.build_scheduler(TINY), noise()
    weights = torch.zeros(2, 1, 1, 32)
    weights[0], weights[1, ..., :4] = 1.0, 3.0
    loss = diffusion.velocity_loss(ZeroUnet(), scheduler, clean, noise(), weights, last_step_share=1.0)
    expected = ((clean[0] ** 2).mean() + (clean[1, ..., :4] ** 2).mean()) / 2
    assert loss == pytest.approx(float(expected), rel=1e-5)


def test_an_error_that_lasts_for_the_whole_crop_has_a_weight_of_its_own():
    """At the last timestep an untrained network errs by the latent: its mean over frames, and the rest."""
    scheduler, clean, weights = diffusion.build_scheduler(TINY), noise() + 2, channel_weights(torch.ones(16))
    level = clean.mean(2, keepdim=True)
    parts = float((level**2).mean()), float(((clean - level) ** 2).mean())
    for level_weight in (0.0, 0.1, 1.0):
        options = {"last_step_share": 1.0, "level_weight": level_weight}
        loss = diffusion.velocity_loss(ZeroUnet(), scheduler, clean, noise(), weights, **options)
        assert loss == pytest.approx(level_weight * parts[0] + parts[1], rel=1e-4)


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_weighs_timesteps_by_their_clipped_signal_to_noise_ratio(gamma, monkeypatch):
    scheduler, clean, eps = diffusion.build_scheduler(TINY), noise(), noise(seed=1)
    timestep = torch.tensor([50, 800])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: timestep)
    monkeypatch.setattr(torch, "randn_like", lambda _: eps)
    weights = channel_weights(torch.ones(16))
    loss = diffusion.velocity_loss(ZeroUnet(), scheduler, clean, noise(), weights, 0.0, gamma)
    abar = cosine_abar(True)[timestep].float()[:, None, None, None]
    error = (abar.sqrt() * eps - (1 - abar).sqrt() * clean).square().mean((1, 2, 3))
    snr = (abar / (1 - abar)).flatten()
    factor = 1.0 if gamma is None else (snr.clamp(max=gamma) + 1) / (snr + 1)
    assert snr[0] > 5 > snr[1]
    assert loss == pytest.approx(float((error * factor).mean()), rel=1e-3)


def test_condition_is_dropped_for_each_sample_by_itself():
    condition = torch.ones(4000, 2, 1, 1)
    torch.manual_seed(0)
    dropped = diffusion.drop_condition(condition, 0.5, 0.1)
    is_none = dropped == UNCONDITIONAL_LATENT * 0.5
    assert torch.equal(is_none, dropped != 1)
    assert torch.equal(is_none[:, 0], is_none[:, 1])  # a whole sample or nothing of it
    share = is_none[:, 0].float().mean().item()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 4000)
    small = [int((diffusion.drop_condition(torch.ones(8, 1, 1, 1), 1.0, 0.5) != 1).sum()) for _ in range(50)]
    assert {0, 8} != set(small)  # never decided for the batch
    assert len(set(small)) > 3


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_condition_dropout_limits(probability):
    condition = noise((5, 32, 2, 4))
    dropped = diffusion.drop_condition(condition, 0.3342, probability)
    expected = torch.full_like(condition, -11.4981 * 0.3342) if probability else condition
    torch.testing.assert_close(dropped, expected)


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("name", ["ddim", "dpm", "unipc"])
def test_a_perfect_model_is_sampled_back_to_the_clean_latent(name, steps):
    base = diffusion.build_scheduler(TINY)
    scheduler = diffusion.use_scheduler(base, name)
    clean = noise(seed=3)
    unet = PerfectUnet(clean, base.alphas_cumprod)
    predicted = []
    restored = diffusion.denoise(unet, scheduler, noise(), noise(seed=1), steps, callback=predicted.append)
    torch.testing.assert_close(restored, clean, atol=2e-3, rtol=0)
    assert len(predicted) == len(unet.calls) == steps
    for estimate in predicted:
        torch.testing.assert_close(estimate, clean, atol=2e-3, rtol=0)
    assert int(unet.calls[0][1]) == 999  # starts from pure noise, where training put a share of its batches


@pytest.mark.parametrize("steps", [10, 50])
def test_audiosr_s_schedule_recovers_the_clean_latent_too(steps):
    scheduler = diffusion.build_scheduler(AUDIOSR)
    clean = noise(seed=3)
    unet = PerfectUnet(clean, scheduler.alphas_cumprod)
    restored = diffusion.denoise(unet, scheduler, noise(), noise(seed=1), steps)
    # its last step goes to abar[0], not to one: a trace of noise stays
    assert (restored - clean).std() < 0.02
    assert int(unet.calls[-1][1]) == 1


@pytest.mark.parametrize("steps", [1, 3, 7, 334, 1000])  # AudioSR itself starts at timestep 1 for one, fails for 1000
@pytest.mark.parametrize("name", [None, "dpm", "unipc"])
def test_audiosr_s_schedule_takes_any_number_of_steps(name, steps):
    scheduler = diffusion.use_scheduler(diffusion.build_scheduler(AUDIOSR), name)
    clean = noise(seed=3)
    unet = PerfectUnet(clean, scheduler.alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    restored = diffusion.denoise(unet, scheduler, noise(), noise(seed=1), steps, eta=1.0, generator=generator)
    assert len(unet.calls) == steps and int(unet.calls[0][1]) == 999
    assert (restored - clean).std() < 0.02


def test_eta_one_is_stochastic_and_seeded():
    scheduler = diffusion.build_scheduler(TINY)
    torch.manual_seed(0)
    unet = diffusion.build_unet(TINY).eval()
    torch.nn.init.normal_(unet.head.weight, std=0.1)
    shape, condition = (2, 8, 8, 32), noise((2, 18, 8, 32))

    def sample(eta, seed):
        generator = torch.Generator().manual_seed(seed)
        return diffusion.denoise(unet, scheduler, noise(shape), condition, 3, eta=eta, generator=generator)

    assert torch.isfinite(sample(1.0, 0)).all()
    assert torch.equal(sample(1.0, 0), sample(1.0, 0))
    assert not torch.equal(sample(1.0, 0), sample(1.0, 1))
    assert torch.equal(sample(0.0, 0), sample(0.0, 1))
    generator = torch.Generator().manual_seed(0)
    added = [torch.randn(shape, generator=generator) for _ in range(3)]
    given = diffusion.denoise(unet, scheduler, noise(shape), condition, 3, eta=1.0, step_noise=added)
    assert torch.equal(given, sample(1.0, 0))


def test_guidance_is_the_formula_and_one_is_none():
    scheduler, condition = diffusion.build_scheduler(TINY), noise(seed=1)

    def velocity(scale):
        """With one step from pure noise the result is minus the velocity."""
        return -diffusion.denoise(ConstantUnet(), scheduler, noise(), condition, 1, scale, scaling_factor=0.5)

    given, without = 0.01 * condition, torch.full(SHAPE, 0.01 * -11.4981 * 0.5)
    torch.testing.assert_close(velocity(1.0), given, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity(0.0), without, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity(3.5), without + 3.5 * (given - without), atol=1e-4, rtol=0)


def test_every_scheduler_keeps_the_schedule():
    scheduler = diffusion.build_scheduler(TINY)
    assert diffusion.use_scheduler(scheduler, None) is scheduler
    for name in diffusion.SCHEDULERS:
        other = diffusion.use_scheduler(scheduler, name)
        # DPM-Solver++ and UniPC divide by the signal's amplitude and keep a trace of it at the end
        torch.testing.assert_close(other.alphas_cumprod, scheduler.alphas_cumprod, atol=1e-6, rtol=0)
        assert other.config.prediction_type == "v_prediction"


@torch.no_grad()
def test_audiosr_s_untrained_u_net_predicts_zero_and_has_two_self_attentions_a_layer():
    torch.manual_seed(0)
    unet = diffusion.build_unet(AUDIOSR_NARROW)
    output = unet(noise((1, 32, 8, 32)), torch.tensor([5]), encoder_hidden_states=None).sample
    assert output.shape == (1, 16, 8, 32)
    assert output.abs().max() == 0
    block = unet.down_blocks[1]
    assert len(block.attentions) == 2 * len(block.resnets)
    assert block.attentions[0].transformer_blocks[0].attn2.to_k.in_features == 64  # attends to itself, not to text


def test_audiosr_s_u_net_has_its_size():
    with torch.device("meta"):
        unet = diffusion.build_unet(AUDIOSR)
    assert sum(p.numel() for p in unet.parameters()) == 258_195_088


def test_a_single_step_starts_from_the_mean_of_the_noise_and_is_not_random():
    """A schedule that ends in pure noise makes it the posterior mean; one that does not, starts from noise."""
    for size, random in ((TINY, False), (AUDIOSR, True)):
        scheduler = diffusion.use_scheduler(diffusion.build_scheduler(size), None)
        unet = PerfectUnet(noise(seed=3), scheduler.alphas_cumprod)
        for seed in (0, 1):
            diffusion.denoise(unet, scheduler, noise(seed=seed), noise(seed=2), 1)
        first, second = (stacked[:, :16] for stacked, _ in unet.calls)
        assert torch.equal(first, second) != random
        assert first.any() == random


def test_a_residual_is_in_units_of_its_spread():
    pipeline = build("tiny")
    pipeline.prior.residual_std.copy_(torch.linspace(0.5, 2, 8))
    mean, residual = noise((2, 8, 40, 32)), noise((2, 8, 40, 32), seed=1)
    spread = torch.linspace(0.5, 2, 8)[None, :, None, None]
    torch.testing.assert_close(pipeline.to_residual(mean + spread * residual, mean), residual, atol=1e-5, rtol=0)
    decoded = pipeline.decode_residual(residual, mean, None)
    torch.testing.assert_close(decoded, pipeline.vae.decode(mean + spread * residual).sample)
    pipeline.prior = None
    assert torch.equal(pipeline.to_residual(mean, torch.zeros(())), mean)


def test_what_the_autoencoder_loses_of_the_posterior_mean_is_not_lost():
    """Of 64 numbers a patch it keeps 8: a mean that came through it would have lost its detail."""
    pipeline = build("tiny")
    detailed = Posterior(*noise((3, 1, 1, 64, 256)).unbind())
    mean_latent = vae.encode(pipeline.vae, detailed.mean)
    nothing = torch.zeros_like(mean_latent)
    torch.testing.assert_close(
        pipeline.decode_residual(nothing, mean_latent, detailed), detailed.mean, atol=1e-5, rtol=0
    )
    assert (pipeline.decode_residual(nothing, mean_latent, None) - detailed.mean).std() > 0.1
