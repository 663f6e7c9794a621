"""The denoiser: the U-Net's interface, zero at its beginning, what a cell sees, weights shared by bands."""

import pytest
import torch

from srlib.config import TINY
from srlib.models import diffusion as ldm
from srlib.models.denoiser import LatentDenoiser

SIZES = {"in_channels": 6, "out_channels": 2, "bands": 4, "width": 32, "depth": 2}
TIMESTEP = torch.tensor([500])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(**changes) -> LatentDenoiser:
    """One whose layers that start at zero are drawn at random."""
    torch.manual_seed(0)
    model = LatentDenoiser(**SIZES | changes).eval()
    for layer in (model.modulate, model.head, *(block.second for block in model.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def test_it_is_called_as_the_u_net_is_and_starts_at_zero():
    unet = ldm.build_unet(TINY).eval()
    for timestep in (torch.tensor(5), torch.tensor([5, 999])):
        output = unet(latent(2, TINY.unet["in_channels"], 24, 32), timestep, encoder_hidden_states=None)
        assert output.sample.shape == (2, 8, 24, 32) and not output.sample.any()


def test_a_cell_sees_a_second_and_a_half_and_twelve_bands_either_way():
    """Two convolutions a block reach 1 + dilation frames and two bands: in six blocks 20 frames and 12 bands."""
    model, sample = model_of(bands=32, depth=6), latent(1, 6, 64, 32)
    changed = sample.clone()
    changed[:, :, 30, 16] += 3
    reached = (model(changed, TIMESTEP).sample - model(sample, TIMESTEP).sample).abs().amax((0, 1)) > 0
    assert reached.any(1).nonzero().flatten().tolist() == list(range(10, 51))
    assert reached.any(0).nonzero().flatten().tolist() == list(range(4, 29))


def test_bands_share_their_weights_and_differ_by_their_bias_alone():
    model, sample = model_of(bands=32, depth=2), latent(1, 6, 16, 32)
    inner = slice(10, 27)  # bands that neither border reaches, before or after they are moved

    def difference():
        return (model(sample.roll(5, 3), TIMESTEP).sample - model(sample, TIMESTEP).sample.roll(5, 3))[..., inner].abs()

    assert difference().max() > 1e-4
    model.band.zero_()
    assert difference().max() < 1e-5
