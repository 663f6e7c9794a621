"""Latent diffusion: the network, the velocity objective, and sampling with any of three diffusers schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain, repeat

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, ModelMixin, SchedulerMixin, UniPCMultistepScheduler
from torch import nn

from srlib.config import UNCONDITIONAL_LATENT, ModelSize, Scheduler
from srlib.machine import stage
from srlib.models.denoiser import LatentDenoiser

SCHEDULERS: dict[Scheduler, type[SchedulerMixin]] = {
    "ddim": DDIMScheduler,
    "dpm": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}


def build_unet(size: ModelSize) -> ModelMixin:
    """The untrained network of a model size: the compact denoiser, or AudioSR's U-Net in AudioLDM2's class.

    That class alone has AudioSR's double self-attention.
    """
    if size.prior:
        return LatentDenoiser(**size.unet)
    from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel  # imports transformers: slow

    unet = AudioLDM2UNet2DConditionModel(**size.unet)
    for parameter in unet.conv_out.parameters():  # as AudioSR: training starts from the prediction zero
        nn.init.zeros_(parameter)
    return unet


def build_scheduler(size: ModelSize) -> DDIMScheduler:
    """The noise schedule of a model size, as the scheduler that trains it."""
    return DDIMScheduler(**size.scheduler)


def use_scheduler(scheduler: SchedulerMixin, name: Scheduler | None) -> SchedulerMixin:
    """A sampler by name (`ddim`, `dpm`, `unipc`) on the schedule of another; None keeps its kind.

    Steps are counted from the end that is all noise. AudioSR's spacing, `leading`, leaves the noisiest timesteps out: a
    share of 1/S for S steps, more where S does not divide their number, and it fails for as many steps as timesteps.
    """
    kind = type(scheduler) if name is None else SCHEDULERS[name]
    if kind is type(scheduler) and scheduler.config.timestep_spacing == "trailing":
        return scheduler
    return kind.from_config(scheduler.config, timestep_spacing="trailing")


def unconditional(condition: torch.Tensor, scaling_factor: float) -> torch.Tensor:
    """The latent that means "no condition": AudioSR's constant, scaled as the condition is."""
    return torch.full_like(condition, UNCONDITIONAL_LATENT * scaling_factor)


def drop_condition(condition: torch.Tensor, scaling_factor: float, probability: float) -> torch.Tensor:
    """Replace the condition of each sample of `[batch, ...]`, independently, by `unconditional`."""
    dropped = torch.rand(len(condition), device=condition.device) < probability
    return torch.where(dropped[:, None, None, None], unconditional(condition, scaling_factor), condition)


def velocity_loss(
    unet: nn.Module,
    scheduler: DDIMScheduler,
    latent: torch.Tensor,
    condition: torch.Tensor,
    weights: torch.Tensor,
    last_step_share: float = 0.5,
    min_snr_gamma: float = 5.0,
    level_weight: float = 1.0,
) -> torch.Tensor:
    """Mean squared error of the velocity v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans and Ho 2022).

    Args:
        latent: target of the generation, `[batch, channels, frames / 8, 32]`, unit variance.
        condition: concatenated on channels, `[batch, C, frames / 8, 32]`.
        weights: of each squared error, broadcast to the latent: its effect on the log-mel; zero where no target is.
        last_step_share: share of the batch trained at the last timestep with zeros in place of the noise: a zero
            terminal SNR makes the prediction the posterior mean there, which a single sampling step needs.
        min_snr_gamma: clip of the weighting (min(snr, gamma) + 1) / (snr + 1), after Hang et al. (2023); 0 weights
            velocities equally. Their own numerator, without the one, vanishes where a single step starts.
        level_weight: weight of the error's mean over frames, relative to that of its deviation from the mean.
    """
    batch, steps = len(latent), scheduler.config.num_train_timesteps
    noise = torch.randn_like(latent)
    timestep = torch.randint(steps, (batch,), device=latent.device)
    last = torch.rand(batch, device=latent.device) < last_step_share
    timestep, noise = torch.where(last, steps - 1, timestep), noise * ~last[:, None, None, None]
    noisy, velocity = (make(latent, noise, timestep) for make in (scheduler.add_noise, scheduler.get_velocity))
    predicted = unet(torch.cat([noisy, condition], dim=1), timestep, encoder_hidden_states=None).sample
    weights, error = weights.expand_as(latent), predicted.float() - velocity
    level = error.mean(dim=2, keepdim=True)
    square = (error - level) ** 2 + level_weight * level**2
    error = (square * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))
    if min_snr_gamma:
        abar = scheduler.alphas_cumprod.to(latent.device)[timestep]
        snr = abar / (1 - abar).clamp(min=1e-8)
        error = error * (snr.clamp(max=min_snr_gamma) + 1) / (snr + 1)
    return error.mean()


@stage("diffusion")
@torch.no_grad()
def denoise(
    unet: nn.Module,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    condition: torch.Tensor,
    num_inference_steps: int,
    guidance_scale: float = 1.0,
    scaling_factor: float = 1.0,
    eta: float = 0.0,
    step_noise: Iterable[torch.Tensor] = (),
    callback: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample a latent from `noise` `[batch, channels, frames / 8, 32]` given `condition` `[batch, C, frames / 8, 32]`.

    A single step on a schedule that ends in pure noise is the posterior mean; it starts from zeros, the mean of the
    noise. The U-Net runs in the precision of its weights, the scheduler in that of `noise`: rounding adds up.

    Args:
        guidance_scale: g in u + g (c - u), where u is the velocity of the unconditional latent.
        eta: 0 DDIM, 1 DDPM-like; of the DDIM scheduler alone, which needs `step_noise` for it.
        step_noise: noise that each step adds if `eta` is above 0; of the shape of `noise`.
        callback: called with the predicted clean latent after each step.
    """
    dtype = next((weight.dtype for weight in unet.parameters()), noise.dtype)
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    if num_inference_steps == 1 and scheduler.config.get("rescale_betas_zero_snr"):
        noise = torch.zeros_like(noise)  # the noise would only add error of the network
    latent, guided, extra = noise * scheduler.init_noise_sigma, guidance_scale != 1.0, {}
    if guided:
        condition = torch.cat([unconditional(condition, scaling_factor), condition])
    # At exactly one, rounding takes the step from pure noise to the root of a negative number.
    highest_eta = 1.0 if scheduler.alphas_cumprod[int(scheduler.timesteps[0])] > 1e-6 else 0.9999
    for timestep, added in zip(scheduler.timesteps, chain(step_noise, repeat(None)), strict=False):
        scaled = scheduler.scale_model_input(latent, timestep)
        stacked = torch.cat([torch.cat([scaled, scaled]) if guided else scaled, condition], dim=1).to(dtype)
        velocity = unet(stacked, timestep, encoder_hidden_states=None).sample.to(noise.dtype)
        if guided:
            without, conditioned = velocity.chunk(2)
            velocity = without + guidance_scale * (conditioned - without)
        if callback is not None:
            abar = scheduler.alphas_cumprod[int(timestep)].to(latent)
            callback(abar.sqrt() * latent - (1 - abar).sqrt() * velocity)
        if isinstance(scheduler, DDIMScheduler) and added is not None:
            extra = {"eta": min(eta, highest_eta), "variance_noise": added.to(latent)}
        latent = scheduler.step(velocity, timestep, latent, **extra).prev_sample
    return latent
