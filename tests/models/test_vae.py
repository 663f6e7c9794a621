"""The linear autoencoder against scikit-learn's principal components and Tipping and Bishop's closed form."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from srlib.audio.stft import log_mel
from srlib.config import COMPACT, TINY
from srlib.data.tracks import load_dataset
from srlib.models.vae import PatchVAE, build_vae, decode, encode

CHANNELS = TINY.vae["latent_channels"]


@pytest.fixture(scope="module")
def log_mels() -> torch.Tensor:
    """Correlated random log-mels `[2, 1, 64, 256]`: like music, neighbours in time and frequency are alike."""
    noise = torch.randn(2, 1, 64, 256, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return -5 + 3 * smooth + 0.3 * noise + torch.linspace(2, -2, 256)


@pytest.fixture
def vae(log_mels):
    vae = build_vae(TINY).eval()
    vae.fit(log_mels)
    return vae


def patches_of(log_mel: torch.Tensor) -> np.ndarray:
    """Every 8 x 8 patch as a row, cut by hand."""
    batch, _, frames, bands = log_mel.shape
    cut = log_mel.numpy().reshape(batch, frames // 8, 8, bands // 8, 8).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, 64).astype(np.float64)


def latents_of(vae: PatchVAE, log_mel: torch.Tensor) -> np.ndarray:
    """`[patches, channels]`, in the order of `patches_of`."""
    return encode(vae, log_mel).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()


@pytest.fixture(scope="module")
def pca(log_mels) -> PCA:
    return PCA(CHANNELS, svd_solver="full").fit(patches_of(log_mels))


def test_components_are_the_principal_ones_up_to_their_sign(vae, pca):
    cosines = vae.components.double().numpy() @ pca.components_.T
    np.testing.assert_allclose(np.abs(cosines), np.eye(CHANNELS), atol=1e-3)
    np.testing.assert_allclose(vae.mean, pca.mean_, atol=1e-5)
    np.testing.assert_allclose(vae.spread.double() ** 2, pca.explained_variance_, rtol=1e-4)


def test_the_posterior_s_variance_is_that_of_probabilistic_principal_components(vae, pca):
    """The noise of Tipping and Bishop is the mean of the variances left out; over its own, it is a latent's."""
    expected = np.log(pca.noise_variance_ / pca.explained_variance_)
    np.testing.assert_allclose(vae.log_variance, expected, atol=1e-3)


def test_latents_are_scikit_learns_scores_in_units_of_their_spread(vae, pca, log_mels):
    scores = pca.transform(patches_of(log_mels)) / np.sqrt(pca.explained_variance_)
    signs = np.sign(np.diag(vae.components.double().numpy() @ pca.components_.T))
    np.testing.assert_allclose(latents_of(vae, log_mels) * signs, scores, atol=5e-3)


def test_reconstruction_errs_as_principal_components_do(vae, pca, log_mels):
    patches = patches_of(log_mels)
    error = patches_of(decode(vae, encode(vae, log_mels))) - patches
    expected = pca.inverse_transform(pca.transform(patches)) - patches
    np.testing.assert_allclose(error, expected, atol=2e-3)
    assert (error**2).mean() < 0.5 * patches.var(0).mean()  # the limit is worth reaching


def test_fitted_latents_are_white(vae, log_mels):
    latents = latents_of(vae, log_mels)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(latents.T), np.eye(CHANNELS), atol=2e-3)


def test_all_components_lose_nothing(log_mels):
    whole = PatchVAE(latent_channels=63)
    whole.fit(log_mels)
    smallest = PCA(64).fit(patches_of(log_mels)).explained_variance_[-1]
    error = patches_of(decode(whole, encode(whole, log_mels)) - log_mels)
    assert (error**2).sum(1).mean() == pytest.approx(smallest, rel=0.01)


def test_of_music_that_was_never_heard_little_is_lost(train_log_mels):
    vae = build_vae(COMPACT)
    vae.fit(train_log_mels[:, :, :1024])
    for track in load_dataset("demo", "test"):
        mel = log_mel(torch.from_numpy(np.resize(track.mixture(2.0, 5.12), 512 * 480)))
        assert (decode(vae, encode(vae, mel)) - mel).abs().mean() < 0.15  # nat; 1.3 dB
        assert 0.3 < encode(vae, mel).std() < 2


def test_a_patch_has_one_latent_whatever_surrounds_it(vae, log_mels):
    changed = log_mels.clone()
    changed[:, :, 16:24, 40:48] += 1
    difference = (encode(vae, changed) != encode(vae, log_mels)).any(1)
    assert difference[:, 2, 5].all() and difference.sum() == 2  # of each of two samples
    restored = decode(vae, encode(vae, changed)) - decode(vae, encode(vae, log_mels))
    outside = torch.ones(64, 256, dtype=torch.bool)
    outside[16:24, 40:48] = False
    assert not restored[:, 0, outside].any()


def test_encode_and_decode_shapes_and_sampling(vae, log_mels):
    latent = encode(vae, log_mels)
    assert latent.shape == (2, CHANNELS, 8, 32)
    assert decode(vae, latent).shape == log_mels.shape
    assert torch.equal(latent, encode(vae, log_mels))
    sampled = [encode(vae, log_mels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(sampled[0], sampled[1])
    spread = (sampled[2] - latent).std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.exp(vae.log_variance / 2), rtol=0.15, atol=0)


def test_untrained_it_is_a_projection(log_mels):
    vae = build_vae(TINY)
    once = decode(vae, encode(vae, log_mels))
    torch.testing.assert_close(decode(vae, encode(vae, once)), once)


def test_scaling_factor_multiplies_the_latent_and_is_taken_out_again(vae, log_mels):
    scaled = PatchVAE(**(TINY.vae | {"scaling_factor": 0.3342}))
    scaled.load_state_dict(vae.state_dict())
    torch.testing.assert_close(encode(scaled, log_mels), 0.3342 * encode(vae, log_mels))
    both = [decode(one, encode(one, log_mels)) for one in (vae, scaled)]
    torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0)


def test_nothing_of_it_is_trained(vae):
    assert not list(vae.parameters())
