"""The autoencoder of log-mels: diffusers' AutoencoderKL, and a compact one that starts from principal components."""

from __future__ import annotations

import functools

import torch
from diffusers import AutoencoderKL, ModelMixin  # noqa: F401  diffusers looks here for the base of what it loads
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn

from srlib.config import LATENT_FACTOR, ModelSize
from srlib.stopwatch import stage


class PatchAutoencoderKL(AutoencoderKL):
    """AutoencoderKL beside a linear path of 8 x 8 patches, which the convolutions correct.

    The linear path alone is a principal component analysis of log-mel patches (`fit_patches`): it is fitted in
    seconds, its latents have unit variance, and convolutions that start at zero can only improve on it.
    """

    @functools.wraps(AutoencoderKL.__init__)
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        channels = self.config.latent_channels
        self.patch_encoder = nn.Conv2d(1, channels, LATENT_FACTOR, LATENT_FACTOR)
        self.patch_decoder = nn.ConvTranspose2d(channels, 1, LATENT_FACTOR, LATENT_FACTOR)
        for layer in (self.quant_conv, self.decoder.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.quant_conv.bias[channels:], -6.0)  # log-variance: a posterior near its mode

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.patch_encoder(x)
        return super()._encode(x) + torch.cat([mean, torch.zeros_like(mean)], dim=1)

    def _decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        sample = super()._decode(z, return_dict=False)[0] + self.patch_decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    def fit_patches(self, log_mel: torch.Tensor) -> None:
        """Set the linear path to the whitened principal components of the patches of `[batch, 1, frames, 256]`."""
        side, channels = LATENT_FACTOR, self.config.latent_channels
        patches = nn.functional.unfold(log_mel, side, stride=side).transpose(1, 2).reshape(-1, side * side)
        centre = patches.mean(0)
        variances, components = torch.linalg.eigh(torch.cov((patches - centre).T.double()))
        components = components.flip(1)[:, :channels].T.float()  # [channels, 64], largest variance first
        spread = variances.flip(0)[:channels].sqrt().float()[:, None]
        self.patch_encoder.weight.copy_((components / spread).view(channels, 1, side, side))
        self.patch_encoder.bias.copy_(-(components / spread) @ centre)
        self.patch_decoder.weight.copy_((components * spread).view(channels, 1, side, side))
        # A transposed convolution has one bias: what the mean patch varies by inside is left to the convolutions.
        self.patch_decoder.bias.fill_(centre.mean())


def build_vae(size: ModelSize) -> AutoencoderKL:
    """The untrained autoencoder of a model size: plain for AudioSR, with the patch path for the others."""
    return (AutoencoderKL if not size.base else PatchAutoencoderKL)(**size.vae)


@stage("encode")
def encode(vae: AutoencoderKL, log_mel: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Scaled latent `[batch, 16, frames / 8, 32]` of a log-mel `[batch, 1, frames, 256]`.

    The posterior's mode, so that the same input has one latent; with a generator a sample of it, as AudioSR takes.
    Float32 whatever the weights are.
    """
    posterior = vae.encode(log_mel.to(vae.device, vae.dtype)).latent_dist
    latent = posterior.mode() if generator is None else posterior.sample(generator)
    return latent.float() * vae.config.scaling_factor


@stage("decode")
def decode(vae: AutoencoderKL, latent: torch.Tensor) -> torch.Tensor:
    """Log-mel `[batch, 1, frames, 256]`, float32, of a scaled latent `[batch, 16, frames / 8, 32]`."""
    return vae.decode((latent / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample.float()
