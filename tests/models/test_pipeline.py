"""The chain of models as a pipeline: built from a size, and what its residual is."""

import numpy as np
import pytest
import torch

from srlib.errors import SrlibError
from srlib.models import vae
from srlib.models.pipeline import pad_to_units
from srlib.models.prior import Posterior
from srlib.restore.pipeline import build


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_build_is_seeded_and_refuses_an_unknown_size():
    first, again, other = (build("tiny", seed=seed) for seed in (0, 0, 1))
    for part, same, different in zip(first.modules(), again.modules(), other.modules(), strict=True):
        state, same_state = part.state_dict(), same.state_dict()
        assert all(torch.equal(value, same_state[key]) for key, value in state.items())
        changed = any(not torch.equal(value, different.state_dict()[key]) for key, value in state.items())
        assert changed == bool(list(part.parameters()))  # what is fitted in closed form starts without chance
    assert not any(part.training for part in first.modules())
    with pytest.raises(SrlibError, match="huge"):
        build("huge")


def test_a_residual_is_in_units_of_its_spread():
    pipeline, spread = build("tiny"), torch.linspace(0.5, 2, 8)
    pipeline.prior.residual_std.copy_(spread)
    mean, residual = noise((2, 8, 40, 32)), noise((2, 8, 40, 32), seed=1)
    latent = mean + spread[None, :, None, None] * residual
    torch.testing.assert_close(pipeline.to_residual(latent, mean), residual, atol=1e-5, rtol=0)
    decoded = pipeline.decode_residual(residual, mean, None)
    torch.testing.assert_close(decoded, pipeline.vae.decode(latent).sample)
    pipeline.prior = None
    assert torch.equal(pipeline.to_residual(mean, torch.zeros(())), mean)


def test_what_the_autoencoder_loses_of_the_posterior_mean_is_not_lost():
    """It keeps 8 of 64 numbers a patch: a mean that came through it would have lost its detail."""
    pipeline, detailed = build("tiny"), Posterior(*noise((3, 1, 1, 64, 256)).unbind())
    mean_latent = vae.encode(pipeline.vae, detailed.mean)
    nothing = torch.zeros_like(mean_latent)
    kept = pipeline.decode_residual(nothing, mean_latent, detailed)
    torch.testing.assert_close(kept, detailed.mean, atol=1e-5, rtol=0)
    assert (pipeline.decode_residual(nothing, mean_latent, None) - detailed.mean).std() > 0.1


@pytest.mark.parametrize("samples", [1, 2, 40_000])
def test_padding_reflects_to_whole_units(samples):
    wav = np.arange(samples, dtype=np.float32)[None]
    padded = pad_to_units(wav)
    assert padded.shape[1] % (64 * 480) == 0 and np.array_equal(padded[:, :samples], wav)
    assert padded[0, samples] == (wav[0, -2] if samples > 1 else 0)
