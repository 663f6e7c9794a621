"""Parity with AudioSR: its own outputs for seeded weights and inputs, reproduced by the converted parts."""

import pytest
import torch

from srlib.audio.stft import log_mel, stft_magnitude
from srlib.config import HOP_LENGTH
from srlib.models import diffusion as ldm
from srlib.models import vae
from srlib.models.vocoder import vocode


@torch.no_grad()
def test_vae_encodes_as_audiosr(parts, truth, assert_parity):
    assert_parity(parts["vae"].encode(truth["in.mel"]).latent_dist.parameters, truth["out.vae_moments"])
    assert_parity(vae.encode(parts["vae"], truth["in.mel"]), truth["out.vae_mean"])  # scale_factor is one here


@torch.no_grad()
def test_vae_decodes_as_audiosr(parts, truth, assert_parity):
    assert_parity(vae.decode(parts["vae"], truth["in.z"]), truth["out.vae_decode"])


@torch.no_grad()
def test_unet_as_audiosr(parts, truth, assert_parity):
    both = torch.cat([truth["in.x_t"], truth["in.cond"]], dim=1)
    assert_parity(parts["unet"](both, truth["in.t"], encoder_hidden_states=None).sample, truth["out.unet"])


@torch.no_grad()
def test_vocoder_as_audiosr_less_the_16_samples_it_adds(parts, truth, assert_parity):
    theirs = truth["out.vocoder"][:, 0]
    frames = truth["in.voc_mel"].shape[2]
    assert theirs.shape[1] == frames * HOP_LENGTH + 16
    assert_parity(parts["vocoder"](truth["in.voc_mel"].transpose(1, 2)), theirs)
    ours = vocode(parts["vocoder"], truth["in.voc_mel"].transpose(1, 2)[:, None])
    assert_parity(ours, theirs[:, : frames * HOP_LENGTH])


def test_noise_schedule_as_audiosr_but_for_the_last_beta(parts, truth, assert_parity):
    scheduler = parts["scheduler"]
    assert_parity(scheduler.betas[:999], truth["out.betas"][:999])
    assert_parity(scheduler.alphas_cumprod, truth["out.alphas_cumprod"])
    # diffusers caps a beta at 0.999, AudioSR's last is one; both leave no signal to speak of.
    assert float(scheduler.betas[999]) == pytest.approx(0.999) and float(truth["out.betas"][999]) == 1.0


def test_guided_ddim_steps_as_audiosr(parts, truth, assert_parity):
    steps = len(truth["out.ddim_timesteps"])
    scheduler = parts["scheduler"]
    latent = ldm.denoise(parts["unet"], scheduler, truth["in.x_T"], truth["in.cond"][:1], steps, guidance_scale=3.5)
    assert scheduler.timesteps.tolist() == truth["out.ddim_timesteps"].flip(0).tolist()
    assert_parity(scheduler.alphas_cumprod[truth["out.ddim_timesteps"]], truth["out.ddim_alphas"])
    before = [0, *truth["out.ddim_timesteps"].tolist()[:-1]]  # the last step goes to the first alpha, not to one
    assert_parity(scheduler.alphas_cumprod[before], truth["out.ddim_alphas_prev"])
    assert_parity(latent, truth["out.ddim_eta0"])


def test_stochastic_steps_add_the_noise_of_the_ddim_paper(parts, truth, assert_parity):
    """Eta 1 with a U-Net that predicts nothing, against the update written out (Song et al. 2021, equation 12)."""

    class Nothing(torch.nn.Module):
        def forward(self, both, timestep, encoder_hidden_states):
            return type("Output", (), {"sample": torch.zeros_like(both[:, :16])})

    scheduler, noise, condition = parts["scheduler"], truth["in.x_T"], truth["in.cond"][:1]
    added = torch.randn(4, *noise.shape, generator=torch.Generator().manual_seed(3))
    ours = ldm.denoise(Nothing(), scheduler, noise, condition, 4, 3.5, eta=1.0, step_noise=added)
    abar, latent = truth["out.alphas_cumprod"].double(), noise.double()
    for (now, before), draw in zip(((751, 501), (501, 251), (251, 1), (1, 0)), added, strict=True):
        sigma = ((1 - abar[before]) / (1 - abar[now]) * (1 - abar[now] / abar[before])).sqrt()
        clean, residue = abar[now].sqrt() * latent, (1 - abar[now]).sqrt() * latent  # of a velocity of zero
        latent = abar[before].sqrt() * clean + (1 - abar[before] - sigma**2).sqrt() * residue
        latent = latent + sigma * draw
    assert_parity(ours.double(), latent)


def test_front_end_as_audiosr(truth, assert_parity):
    frames = len(truth["out.log_mel"])
    assert_parity(log_mel(truth["in.wav"])[0, 0, :frames], truth["out.log_mel"])
    # Magnitudes here: logs near the floor show the rounding of a float32 FFT, 2e-3 in AudioSR's own values.
    assert_parity(log_mel(truth["out.lowpass.cheby1"])[0, 0, :frames].exp(), truth["out.log_mel_lowpass"].exp())
    assert_parity(stft_magnitude(truth["in.wav"][None])[0, :frames, :1024], truth["out.stft_mag"])
