"""The linear autoencoder against scikit-learn's principal components and Tipping and Bishop's closed form."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from srlib.audio.stft import log_mel
from srlib.config import COMPACT, TINY
from srlib.data.tracks import load_dataset
from srlib.models.vae import build_vae, decode, encode

CHANNELS = TINY.vae["latent_channels"]


@pytest.fixture(scope="module")
def log_mels() -> torch.Tensor:
    """Correlated random log-mels `[2, 1, 64, 256]`: like music, neighbours in time and frequency are alike."""
    noise = torch.randn(2, 1, 64, 256, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return -5 + 3 * smooth + 0.3 * noise + torch.linspace(2, -2, 256)


@pytest.fixture(scope="module")
def vae(log_mels):
    vae = build_vae(TINY).eval()
    vae.fit(log_mels)
    return vae


def patches_of(log_mel: torch.Tensor) -> np.ndarray:
    """Every 8 x 8 patch as a row, cut by hand."""
    batch, _, frames, bands = log_mel.shape
    cut = log_mel.numpy().reshape(batch, frames // 8, 8, bands // 8, 8).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, 64).astype(np.float64)


def test_it_is_probabilistic_principal_component_analysis(vae, log_mels):
    """Up to the components' signs; the noise is the mean of the variances left out (Tipping and Bishop 1999)."""
    patches = patches_of(log_mels)
    pca = PCA(CHANNELS, svd_solver="full").fit(patches)
    cosines = vae.components.double().numpy() @ pca.components_.T
    np.testing.assert_allclose(np.abs(cosines), np.eye(CHANNELS), atol=1e-3)
    np.testing.assert_allclose(vae.mean, pca.mean_, atol=1e-5)
    np.testing.assert_allclose(vae.log_variance, np.log(pca.noise_variance_ / pca.explained_variance_), atol=1e-3)
    latents = encode(vae, log_mels).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    scores = pca.transform(patches) / np.sqrt(pca.explained_variance_)
    np.testing.assert_allclose(latents * np.sign(np.diag(cosines)), scores, atol=5e-3)
    restored = pca.inverse_transform(pca.transform(patches))
    np.testing.assert_allclose(patches_of(decode(vae, encode(vae, log_mels))), restored, atol=2e-3)


def test_of_music_that_was_never_heard_little_is_lost(train_log_mels):
    vae = build_vae(COMPACT)
    vae.fit(train_log_mels[:, :, :1024])
    for track in load_dataset("demo", "test"):
        mel = log_mel(torch.from_numpy(np.resize(track.mixture(2.0, 5.12), 512 * 480)))
        assert (decode(vae, encode(vae, mel)) - mel).abs().mean() < 0.15  # nat; 1.3 dB


def test_a_patch_has_one_latent_and_samples_scatter_as_the_posterior_says(vae, log_mels):
    latent, changed = encode(vae, log_mels), log_mels.clone()
    changed[:, :, 16:24, 40:48] += 1
    difference = (encode(vae, changed) != latent).any(1)
    assert difference[:, 2, 5].all() and difference.sum() == 2  # in each of two samples
    sampled = [encode(vae, log_mels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(sampled[0], sampled[1])
    spread = (sampled[2] - latent).std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.exp(vae.log_variance / 2), rtol=0.15, atol=0)
