"""The autoencoder of log-mels: diffusers' AutoencoderKL for AudioSR's size, a linear one for the compact sizes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from srlib.config import LATENT_FACTOR, ModelSize
from srlib.machine import stage


class PatchVAE(ModelMixin, ConfigMixin):
    """A linear variational autoencoder of 8 x 8 patches, whose optimum is probabilistic principal component analysis.

    Lucas et al. (2019) show that a linear VAE trained to its optimum is that of Tipping and Bishop (1999), which has a
    closed form: `fit` sets it. Latents have about unit variance. It has the interface of diffusers' `AutoencoderKL`.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 32, patch: int = LATENT_FACTOR, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(patch * patch))  # nat, of a patch
        self.register_buffer("components", torch.eye(patch * patch)[:latent_channels])  # orthonormal rows
        self.register_buffer("spread", torch.ones(latent_channels))  # nat: change of a patch for one unit of a latent
        self.register_buffer("log_variance", torch.full((latent_channels,), -6.0))  # of the posterior

    def encode(self, log_mel: torch.Tensor) -> AutoencoderKLOutput:
        """Posterior of the latent `[batch, channels, frames / 8, 32]` of `[batch, 1, frames, 256]`."""
        patches = F.pixel_unshuffle(log_mel, self.config.patch).permute(0, 2, 3, 1)  # (B, T/8, 32, 64)
        latent = (((patches - self.mean) @ self.components.T) / self.spread).permute(0, 3, 1, 2)
        log_variance = self.log_variance[None, :, None, None].expand_as(latent)
        return AutoencoderKLOutput(DiagonalGaussianDistribution(torch.cat([latent, log_variance], dim=1)))

    def decode(self, latent: torch.Tensor) -> DecoderOutput:
        """Log-mel `[batch, 1, frames, 256]` of a latent."""
        patches = (latent.permute(0, 2, 3, 1) * self.spread) @ self.components + self.mean
        return DecoderOutput(sample=F.pixel_shuffle(patches.permute(0, 3, 1, 2), self.config.patch))

    @torch.no_grad()
    def fit(self, log_mel: torch.Tensor) -> None:
        """The maximum-likelihood patch model of log-mels `[batch, 1, frames, 256]`."""
        patches = F.pixel_unshuffle(log_mel, self.config.patch).permute(0, 2, 3, 1).flatten(0, 2).double()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        variances = values[-self.config.latent_channels :].flip(0)
        noise = values[: -self.config.latent_channels].mean().clamp(min=1e-6)  # of the components left out
        self.mean.copy_(patches.mean(0))
        self.components.copy_(vectors[:, -self.config.latent_channels :].flip(1).T)
        self.spread.copy_(variances.sqrt())
        self.log_variance.copy_(torch.log(noise / variances))


def build_vae(size: ModelSize) -> ModelMixin:
    """The untrained autoencoder of a model size."""
    return (PatchVAE if size.prior else AutoencoderKL)(**size.vae)


@stage("encode")
def encode(vae: ModelMixin, log_mel: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Scaled latent `[batch, channels, frames / 8, 32]`, float32, of a log-mel `[batch, 1, frames, 256]`.

    The posterior's mode, so that the same input has one latent; with a generator a sample of it, as AudioSR takes.
    """
    posterior = vae.encode(log_mel.to(vae.device, vae.dtype)).latent_dist
    latent = posterior.mode() if generator is None else posterior.sample(generator)
    return latent.float() * vae.config.scaling_factor


@stage("decode")
def decode(vae: ModelMixin, latent: torch.Tensor) -> torch.Tensor:
    """Log-mel `[batch, 1, frames, 256]`, float32, of a scaled latent `[batch, channels, frames / 8, 32]`."""
    return vae.decode((latent / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
