"""Parity with AudioSR: its own outputs for seeded weights and inputs, reproduced by the converted parts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from srlib.audio.stft import log_mel, stft_magnitude
from srlib.audiosr import checkpoint as convert
from srlib.audiosr import compatible as audiosr
from srlib.config import AUDIOSR, HOP_LENGTH
from srlib.errors import SrlibError
from srlib.models import diffusion as ldm
from srlib.models import vae
from srlib.models.vocoder import build_vocoder, vocode
from srlib.restore.pipeline import RestorationPipeline

DATA = Path(__file__).parent / "fixtures"
FIXTURE = DATA / "audiosr_tiny_seed0.safetensors"
TOLERANCE = 1e-4  # of the output's scale


@pytest.fixture(scope="module")
def truth() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


@pytest.fixture(scope="module")
def parts(audiosr_weights) -> dict:
    return convert.from_audiosr(audiosr_weights, size="tiny")


def assert_parity(ours, theirs) -> None:
    """The largest difference, as a share of the largest value of AudioSR's output."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@torch.no_grad()
def test_vae_encodes_as_audiosr(parts, truth):
    posterior = parts["vae"].encode(truth["in.mel"]).latent_dist
    assert_parity(posterior.parameters, truth["out.vae_moments"])
    assert_parity(posterior.mean, truth["out.vae_mean"])
    assert_parity(posterior.logvar, truth["out.vae_logvar"])
    assert_parity(vae.encode(parts["vae"], truth["in.mel"]), truth["out.vae_mean"])  # scale_factor is one here


@torch.no_grad()
def test_vae_decodes_as_audiosr(parts, truth):
    assert_parity(vae.decode(parts["vae"], truth["in.z"]), truth["out.vae_decode"])


@torch.no_grad()
def test_unet_as_audiosr(parts, truth):
    both = torch.cat([truth["in.x_t"], truth["in.cond"]], dim=1)
    assert_parity(parts["unet"](both, truth["in.t"], encoder_hidden_states=None).sample, truth["out.unet"])


@torch.no_grad()
def test_vocoder_as_audiosr_less_the_16_samples_it_adds(parts, truth):
    theirs = truth["out.vocoder"][:, 0]
    frames = truth["in.voc_mel"].shape[2]
    assert theirs.shape[1] == frames * HOP_LENGTH + 16
    assert_parity(parts["vocoder"](truth["in.voc_mel"].transpose(1, 2)), theirs)
    ours = vocode(parts["vocoder"], truth["in.voc_mel"].transpose(1, 2)[:, None])
    assert_parity(ours, theirs[:, : frames * HOP_LENGTH])


def test_noise_schedule_as_audiosr_but_for_the_last_beta(parts, truth):
    scheduler = parts["scheduler"]
    assert_parity(scheduler.betas[:999], truth["out.betas"][:999])
    assert_parity(scheduler.alphas_cumprod, truth["out.alphas_cumprod"])
    # diffusers caps a beta at 0.999, AudioSR's last is one; both leave no signal to speak of.
    assert float(scheduler.betas[999]) == pytest.approx(0.999) and float(truth["out.betas"][999]) == 1.0


def test_guided_ddim_steps_as_audiosr(parts, truth):
    steps = len(truth["out.ddim_timesteps"])
    scheduler = parts["scheduler"]
    latent = ldm.denoise(parts["unet"], scheduler, truth["in.x_T"], truth["in.cond"][:1], steps, guidance_scale=3.5)
    assert scheduler.timesteps.tolist() == truth["out.ddim_timesteps"].flip(0).tolist()
    assert_parity(scheduler.alphas_cumprod[truth["out.ddim_timesteps"]], truth["out.ddim_alphas"])
    before = [0, *truth["out.ddim_timesteps"].tolist()[:-1]]  # the last step goes to the first alpha, not to one
    assert_parity(scheduler.alphas_cumprod[before], truth["out.ddim_alphas_prev"])
    assert_parity(latent, truth["out.ddim_eta0"])


def test_stochastic_steps_add_the_noise_of_the_ddim_paper(parts, truth):
    """Eta 1 with a U-Net that predicts nothing, against the update written out (Song et al. 2021, equation 12)."""

    class Nothing(torch.nn.Module):
        def forward(self, both, timestep, encoder_hidden_states):
            return type("Output", (), {"sample": torch.zeros_like(both[:, :16])})

    scheduler, noise, condition = parts["scheduler"], truth["in.x_T"], truth["in.cond"][:1]
    generator = torch.Generator().manual_seed(3)
    ours = ldm.denoise(Nothing(), scheduler, noise, condition, 4, 3.5, eta=1.0, generator=generator)
    abar = truth["out.alphas_cumprod"].double()
    draws, latent = torch.Generator().manual_seed(3), noise.double()
    for now, before in ((751, 501), (501, 251), (251, 1), (1, 0)):
        sigma = ((1 - abar[before]) / (1 - abar[now]) * (1 - abar[now] / abar[before])).sqrt()
        clean, residue = abar[now].sqrt() * latent, (1 - abar[now]).sqrt() * latent  # of a velocity of zero
        latent = abar[before].sqrt() * clean + (1 - abar[before] - sigma**2).sqrt() * residue
        latent = latent + sigma * torch.randn(noise.shape, generator=draws)
    assert_parity(ours.double(), latent)


def test_front_end_as_audiosr(truth):
    frames = len(truth["out.log_mel"])
    assert_parity(log_mel(truth["in.wav"])[0, 0, :frames], truth["out.log_mel"])
    # Magnitudes here: logs near the floor show the rounding of a float32 FFT, 2e-3 in AudioSR's own values.
    assert_parity(log_mel(truth["out.lowpass.cheby1"])[0, 0, :frames].exp(), truth["out.log_mel_lowpass"].exp())
    assert_parity(stft_magnitude(truth["in.wav"][None])[0, :frames, :1024], truth["out.stft_mag"])


@pytest.mark.parametrize("filter_type", audiosr.FILTERS)
def test_lowpass_simulation_as_audiosr(truth, filter_type):
    ours = audiosr.simulate_lowpass(truth["in.wav"].numpy(), 4000, filter_type)
    assert_parity(ours, truth[f"out.lowpass.{filter_type}"])


def test_cutoff_detector_as_audiosr(truth):
    with safe_open(FIXTURE, "pt") as file:
        theirs = int(file.metadata()["cutoff_bin_input"])
    assert audiosr.cutoff_index(truth["out.stft_mag"]) == theirs
    assert audiosr.detect_cutoff_hz(truth["in.wav"]) == pytest.approx(theirs / 1024 * 24_000, abs=24)


def test_mel_replacement_as_audiosr(truth):
    ours = audiosr.replace_mel(truth["out.log_mel"][None, None], truth["out.log_mel_lowpass"][None, None])
    assert_parity(ours, truth["out.mel_replaced"])


def test_waveform_replacement_as_audiosr(truth):
    generated, degraded = truth["in.post_in"][0, 0].numpy(), truth["out.lowpass.cheby1"].numpy()
    assert_parity(audiosr.replace_waveform(generated, degraded), truth["out.postprocessed"][0, 0])


def test_compatibility_mode_as_audiosr_to_the_random_numbers(audiosr_weights, truth):
    parts = convert.from_audiosr(audiosr_weights | {"scale_factor": torch.tensor(0.4)}, size="tiny")
    wav = truth["in.wav"].numpy()
    ours = audiosr.restore_as_audiosr(RestorationPipeline(**parts), wav, 48_000, num_inference_steps=2, seed=42)
    assert ours.shape == wav.shape
    assert_parity(ours[::16], load_file(DATA / "audiosr_restored_tiny_seed0.safetensors")["out.restored"])


def test_compatibility_mode_refuses_what_audiosr_gives_up_on(parts, tiny_pipeline):
    rumble = np.sin(2 * np.pi * 100 / 48_000 * np.arange(48_000)).astype(np.float32)
    with pytest.raises(SrlibError, match="gives up"):
        audiosr.restore_as_audiosr(RestorationPipeline(**parts), rumble, 48_000)
    with pytest.raises(SrlibError, match="not of AudioSR's kind"):
        audiosr.restore_as_audiosr(tiny_pipeline, rumble, 48_000)


def test_full_size_has_the_parameters_of_audiosr():
    with torch.device("meta"):
        built = {"vae": vae.build_vae(AUDIOSR), "unet": ldm.build_unet(AUDIOSR), "vocoder": build_vocoder(AUDIOSR)}
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in built.items()}
    print(counts)
    assert counts == {"vae": 223_535_569, "unet": 258_195_088, "vocoder": 190_281_889}


def test_replacements_leave_silence_and_full_overlap_alone():
    silence = np.zeros(48_000, np.float32)
    assert not audiosr.replace_waveform(silence, silence).any()
    mel = torch.randn(2, 1, 64, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(audiosr.replace_mel(mel, mel), mel)


@pytest.mark.parametrize(("cutoff_hz", "filter_type"), [(4000, "boxcar"), (24_000, "butter"), (0, "butter")])
def test_unusable_filters_are_refused(cutoff_hz, filter_type):
    with pytest.raises(SrlibError, match=filter_type if filter_type == "boxcar" else "cannot be made"):
        audiosr.simulate_lowpass(np.zeros(4800, np.float32), cutoff_hz, filter_type)
