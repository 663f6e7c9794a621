"""The autoencoder: its linear path is exactly principal components, and the convolutions start at zero."""

import numpy as np
import pytest
import torch

from srlib.config import AUDIOSR, TINY
from srlib.vae import PatchAutoencoderKL, build_vae, decode, encode


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_vae(TINY).eval()


@pytest.fixture(scope="module")
def log_mels() -> torch.Tensor:
    """Correlated random log-mels `[2, 1, 64, 256]`: like music, neighbours in time and frequency are alike."""
    noise = torch.randn(2, 1, 64, 256, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return -5 + 3 * smooth + 0.3 * noise + torch.linspace(2, -2, 256)


def patches_of(log_mel: torch.Tensor) -> np.ndarray:
    """Every 8 x 8 patch as a row, cut by hand."""
    batch, _, frames, bands = log_mel.shape
    cut = log_mel.numpy().reshape(batch, frames // 8, 8, bands // 8, 8).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, 64).astype(np.float64)


@torch.no_grad()
def test_fitted_patches_reach_the_optimum_of_principal_components(vae, log_mels):
    vae.fit_patches(log_mels)
    error = patches_of(vae.patch_decoder(vae.patch_encoder(log_mels)) - log_mels)
    patches = patches_of(log_mels)
    centred = patches - patches.mean(0)
    singular_values = np.linalg.svd(centred, compute_uv=False)
    discarded = (singular_values[16:] ** 2).sum() / len(patches)
    # The decoder has one bias for all 64 places, so what the mean patch varies by inside comes on top.
    offset = ((patches.mean(0) - patches.mean()) ** 2).sum()
    assert (error**2).sum(1).mean() == pytest.approx(discarded + offset, rel=1e-3)
    assert offset < 0.1 * discarded
    assert discarded < 0.7 * (centred**2).sum(1).mean()  # the limit is worth reaching


@torch.no_grad()
def test_fitted_latents_are_white(vae, log_mels):
    vae.fit_patches(log_mels)
    latent = encode(vae, log_mels).transpose(0, 1).flatten(1)  # [16, cells]
    np.testing.assert_allclose(latent.mean(1), 0, atol=1e-3)
    np.testing.assert_allclose(torch.cov(latent), np.eye(16), atol=2e-3)


@torch.no_grad()
def test_convolutions_start_at_zero(vae, log_mels):
    vae.fit_patches(log_mels)
    latent = vae.patch_encoder(log_mels)
    posterior = vae.encode(log_mels).latent_dist
    assert torch.equal(posterior.mode(), latent)
    torch.testing.assert_close(posterior.logvar, torch.full_like(latent, -6.0))
    torch.testing.assert_close(vae.decode(latent).sample, vae.patch_decoder(latent), atol=1e-6, rtol=0)


def test_the_convolutions_learn(vae, log_mels):
    vae.fit_patches(log_mels)
    (decode(vae, encode(vae, log_mels)) - log_mels).square().mean().backward()
    for layer in (vae.quant_conv, vae.decoder.conv_out, vae.patch_encoder, vae.patch_decoder):
        assert layer.weight.grad.abs().max() > 0


@torch.no_grad()
def test_encode_and_decode_shapes_and_sampling(vae, log_mels):
    latent = encode(vae, log_mels)
    assert latent.shape == (2, 16, 8, 32)
    assert decode(vae, latent).shape == log_mels.shape
    assert torch.equal(latent, encode(vae, log_mels))
    sampled = [encode(vae, log_mels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(sampled[0], sampled[1])
    spread = (sampled[2] - latent).std()
    assert spread == pytest.approx(np.exp(-3), rel=0.05)  # log-variance -6


@torch.no_grad()
def test_scaling_factor_multiplies_the_latent_and_is_taken_out_again(log_mels):
    torch.manual_seed(0)
    plain = build_vae(TINY).eval()
    scaled = PatchAutoencoderKL(**(TINY.vae | {"scaling_factor": 0.3342})).eval()
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(encode(scaled, log_mels), 0.3342 * encode(plain, log_mels))
    both = [decode(vae, encode(vae, log_mels)) for vae in (plain, scaled)]
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_save_and_load_keep_every_bit(vae, log_mels, tmp_path):
    torch.nn.init.normal_(vae.decoder.conv_out.weight)
    vae.fit_patches(log_mels)
    vae.save_pretrained(tmp_path)
    loaded = PatchAutoencoderKL.from_pretrained(tmp_path).eval()
    assert torch.equal(decode(loaded, encode(loaded, log_mels)), decode(vae, encode(vae, log_mels)))


def test_audiosr_s_autoencoder_is_the_plain_class_in_its_size():
    with torch.device("meta"):
        vae = build_vae(AUDIOSR)
    assert type(vae).__name__ == "AutoencoderKL"
    assert sum(p.numel() for p in vae.parameters()) == 223_535_569
    assert vae.config.scaling_factor == 0.3342
