"""Constants that several modules share, with unit and source: front end, choices, model sizes, profiles."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from srlib.errors import SrlibError

# Front end of AudioSR (haoheliu/versatile_audio_super_resolution, audiosr/utils.py:107-147).
SAMPLE_RATE = 48_000  # Hz
N_FFT = 2048  # samples
HOP_LENGTH = 480  # samples, so 100 frames a second
FRAME_PAD = (N_FFT - HOP_LENGTH) // 2  # samples at either end: the number of frames is samples // HOP_LENGTH
N_MELS = 256  # bands
F_MIN = 20.0  # Hz
F_MAX = 24_000.0  # Hz
LOG_MEL_FLOOR = 1e-5  # magnitude; log-mels start at log(1e-5) = -11.51 nat

LATENT_FACTOR = 8  # a latent cell covers 8 mel frames x 8 mel bands
UNIT_FRAMES = 8 * LATENT_FACTOR  # mel frames; models take multiples: AudioSR's U-Net halves the latent three times
UNCONDITIONAL_LATENT = -11.4981  # AudioSR's constant "no condition" latent, before scaling (encoders/modules.py:147)

# Choices, stated once: settings are checked against them and the command line shows them.
FilterType = Literal["cheby1", "ellip", "butter", "boxcar"]
NoiseType = Literal["none", "tone", "white"]
Merge = Literal["gain", "replace", "none"]
Scheduler = Literal["dpm", "ddim", "unipc"]
DType = Literal["fp32", "bf16", "fp16"]  # of stored weights
Stage = Literal["vae", "vocoder", "ldm"]  # trained parts, in the order of their training
Excitation = Literal["copied", "noise", "vocoder"]
FILTER_TYPES: tuple[FilterType, ...] = get_args(FilterType)
NOISE_TYPES: tuple[NoiseType, ...] = get_args(NoiseType)
MERGES: tuple[Merge, ...] = get_args(Merge)


@dataclass(frozen=True)
class ModelSize:
    """Constructor arguments of the parts of one model; the code path is the same for every size.

    Without a `prior` the diffusion model predicts the latent itself, as AudioSR's.
    """

    name: str
    vae: dict[str, Any]
    unet: dict[str, Any]
    vocoder: dict[str, Any]
    scheduler: dict[str, Any]
    prior: dict[str, Any] = field(default_factory=dict)
    num_inference_steps: int = 1  # default of a call; one step gives the posterior mean, which LSD prefers
    guidance_scale: float = 1.0


_SCHEDULE = {  # AudioSR's
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


def _compact(name: str, latent_channels: int, rank: int, unet: dict[str, Any], **rest: Any) -> ModelSize:
    """The project's own chain; its network gets the noisy latent, two latents as condition, and two maps.

    Zero terminal SNR and trailing steps make a single step from pure noise the posterior mean (Lin et al. 2024).
    """
    channels = {"in_channels": 3 * latent_channels + 2, "out_channels": latent_channels}
    scheduler = _SCHEDULE | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "set_alpha_to_one": True}
    vae, prior = {"latent_channels": latent_channels}, {"rank": rank, "latent_channels": latent_channels}
    return ModelSize(name, vae, channels | unet, scheduler=scheduler, prior=prior, **rest)


COMPACT = _compact(
    "compact",
    latent_channels=32,
    rank=64,
    unet={"width": 64, "depth": 6, "dropout": 0.1},
    vocoder={"hidden_size": 256, "num_layers": 4, "kernel_size": 7, "expansion": 2},
)
# Small, with random weights, for tests and the smoke profile.
TINY = _compact(
    "tiny",
    latent_channels=8,
    rank=8,
    unet={"width": 16, "depth": 1},
    vocoder={"hidden_size": 32, "num_layers": 1, "kernel_size": 3, "expansion": 2},
    num_inference_steps=2,
)


def _audiosr(name: str, vae_width: int, unet_width: int, vocoder_width: int) -> ModelSize:
    """AudioSR's topology (audiosr/utils.py:403-524) at a width, in channels of the first layer of each part."""
    return ModelSize(
        name=name,
        vae={
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 16,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": tuple(vae_width * m for m in (1, 2, 4, 8)),
            "layers_per_block": 2,
            "scaling_factor": 0.3342,
        },
        unet={
            "in_channels": 32,
            "out_channels": 16,
            "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            "block_out_channels": tuple(unet_width * m for m in (1, 2, 3, 5)),
            "layers_per_block": 2,
            # [None, None] builds two self-attention transformers a layer, AudioSR's extra_sa_layer.
            "cross_attention_dim": ([None, None],) * 4,
            "attention_head_dim": (4, 8, 12, 20),  # the class reads this as the number of heads
            "transformer_layers_per_block": 1,
        },
        vocoder={
            "model_in_dim": N_MELS,
            "sampling_rate": SAMPLE_RATE,
            "upsample_initial_channel": vocoder_width,
            "upsample_rates": [6, 5, 4, 2, 2],
            "upsample_kernel_sizes": [12, 10, 8, 4, 4],
            "resblock_kernel_sizes": [3, 7, 11, 15],
            "resblock_dilation_sizes": [[1, 3, 5]] * 4,
            "leaky_relu_slope": 0.1,
            "normalize_before": False,
        },
        scheduler=_SCHEDULE | {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        num_inference_steps=50,
        guidance_scale=3.5,
    )


AUDIOSR = _audiosr("audiosr", 128, 128, 1536)  # numerically AudioSR `basic`: 672,012,546 parameters
AUDIOSR_NARROW = _audiosr("audiosr-narrow", 32, 32, 64)  # for tests: the width of tests/fixtures/audiosr_tiny_seed0

SIZES = {size.name: size for size in (TINY, COMPACT, AUDIOSR, AUDIOSR_NARROW)}


@dataclass(frozen=True)
class Profile:
    """How large a run of the notebooks is."""

    name: str
    dataset: str  # "demo" or "musdb"
    model: str  # "tiny" (random) or a pipeline folder or name
    seconds: float  # evaluation excerpt of each track, s
    max_tracks: dict[str, int | None]  # split -> number of tracks, None for all
    cutoffs_hz: tuple[int, ...]  # columns of the LSD table, Hz
    num_inference_steps: int | None  # None: the pipeline's default
    train_steps: int | None = None  # optimiser steps of notebook 05's own training; None: the notebook's parameter
    grid: int | None = None  # notebooks try only so many entries of a grid, the first ones; None: all


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("smoke", "demo", "tiny", 1.28, {"train": 2, "valid": 1, "test": 1}, (8000,), 2, train_steps=2, grid=2),
        Profile("demo", "demo", "compact", 5.12, {}, (2000, 4000, 8000, 12_000, 16_000), None),
        Profile("paper", "musdb", "compact", 10.24, {}, (2000, 4000, 8000, 12_000, 16_000), None),
    )
}


def profile(name: str | None = None) -> Profile:
    """Look a profile up; None reads `SRLIB_PROFILE`, else takes `demo`."""
    name = name or os.environ.get("SRLIB_PROFILE") or "demo"
    if name not in PROFILES:
        raise SrlibError(f"There is no profile {name!r}: choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]
