"""The denoiser: the U-Net's interface, zero at its beginning, what a cell sees, weights shared by bands, its folder."""

import pytest
import torch

from srlib.config import COMPACT, TINY
from srlib.models import diffusion as ldm
from srlib.models.denoiser import LatentDenoiser

SIZES = {"in_channels": 6, "out_channels": 2, "bands": 4, "width": 32, "depth": 2}
TIMESTEP = torch.tensor([500])


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(**changes) -> LatentDenoiser:
    """One whose layers that start at zero are drawn at random."""
    torch.manual_seed(0)
    model = LatentDenoiser(**SIZES | changes).eval()
    for layer in (model.modulate, model.head, *(block.second for block in model.blocks)):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


@torch.no_grad()
def test_it_is_called_as_the_u_net_is_and_starts_at_zero():
    torch.manual_seed(0)
    unet = ldm.build_unet(TINY).eval()
    channels = TINY.unet["in_channels"]
    for timestep in (torch.tensor(5), torch.tensor([5, 999])):
        output = unet(latent(2, channels, 24, 32), timestep, encoder_hidden_states=None)
        assert output.sample.shape == (2, 8, 24, 32)
        assert not output.sample.any()


def test_the_compact_size_has_its_conditions_and_its_parameters():
    with torch.device("meta"):
        unet = ldm.build_unet(COMPACT)
    assert (unet.config.in_channels, unet.config.out_channels) == (3 * 32 + 2, 32)
    width, depth, bands = 64, 6, 32
    block = 2 * (9 * width * width + width)
    ends = 98 * width + width + width * 32 + 32 + width * bands
    time = 2 * (width * width + width) + 2 * depth * (width * width + width)
    assert sum(p.numel() for p in unet.parameters()) == depth * block + ends + time


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 8, 33])
def test_any_number_of_frames_and_samples_of_a_batch_by_themselves(frames):
    model, sample = model_of(), latent(3, 6, frames, 4)
    timesteps = torch.tensor([3, 500, 999])
    output = model(sample, timesteps).sample
    assert output.shape == (3, 2, frames, 4) and output.std() > 0.01
    for row in range(3):
        torch.testing.assert_close(model(sample[[row]], timesteps[row]).sample[0], output[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_timestep_and_every_condition_matter():
    model, sample = model_of(), latent(1, 6, 12, 4)
    before = model(sample, TIMESTEP).sample
    assert (model(sample, TIMESTEP + 200).sample - before).std() > 1e-3
    for channel in range(6):
        changed = sample.clone()
        changed[:, channel] += 1
        assert (model(changed, TIMESTEP).sample - before).std() > 1e-3, channel


@torch.no_grad()
def test_a_cell_sees_a_second_and_a_half_and_twelve_bands_either_way():
    """Two convolutions a block reach 1 + dilation frames and two bands: in six blocks 20 frames and 12 bands."""
    model, sample = model_of(bands=32, depth=6), latent(1, 6, 64, 32)
    changed = sample.clone()
    changed[:, :, 30, 16] += 3
    reached = (model(changed, TIMESTEP).sample - model(sample, TIMESTEP).sample).abs().amax((0, 1)) > 0
    assert reached.any(1).nonzero().flatten().tolist() == list(range(10, 51))
    assert reached.any(0).nonzero().flatten().tolist() == list(range(4, 29))


@torch.no_grad()
def test_bands_share_their_weights_and_differ_by_their_bias_alone():
    model, sample = model_of(bands=32, depth=2), latent(1, 6, 16, 32)
    moved = sample.roll(5, dims=3)
    inner = slice(10, 27)  # bands that neither border reaches, before or after they are moved
    difference = model(moved, TIMESTEP).sample - model(sample, TIMESTEP).sample.roll(5, dims=3)
    assert difference[..., inner].abs().max() > 1e-4
    model.band.zero_()
    torch.testing.assert_close(
        model(moved, TIMESTEP).sample[..., inner], model(sample, TIMESTEP).sample.roll(5, dims=3)[..., inner]
    )


@torch.no_grad()
def test_what_a_cell_becomes_does_not_depend_on_the_length_of_the_chunk():
    model, sample = model_of(), latent(1, 6, 64, 4)
    whole, part = model(sample, TIMESTEP).sample, model(sample[:, :, :32], TIMESTEP).sample
    torch.testing.assert_close(part[:, :, :20], whole[:, :, :20], atol=1e-5, rtol=0)


@torch.no_grad()
def test_dropout_acts_while_training_alone():
    dropping, plain = model_of(dropout=0.5), model_of()
    sample = latent(1, 6, 16, 4)
    assert torch.equal(dropping(sample, TIMESTEP).sample, plain(sample, TIMESTEP).sample)
    dropping.train()
    plain.train()
    torch.manual_seed(0)
    outputs = [dropping(sample, TIMESTEP).sample for _ in range(2)]
    assert not torch.equal(*outputs)
    assert torch.equal(plain(sample, TIMESTEP).sample, plain(sample, TIMESTEP).sample)


def test_every_layer_learns():
    model, sample = model_of(), latent(2, 6, 16, 4)
    model(sample, TIMESTEP).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_save_and_load_keep_every_weight(tmp_path):
    model, sample = model_of(dropout=0.1), latent(1, 6, 16, 4)
    model.save_pretrained(tmp_path)
    loaded = LatentDenoiser.from_pretrained(tmp_path)
    assert not loaded.training and loaded.config.dropout == 0.1
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    # Mapped from a file, weights lie elsewhere in a cache line, and sums are rounded otherwise.
    torch.testing.assert_close(loaded(sample, TIMESTEP).sample, model(sample, TIMESTEP).sample, atol=1e-6, rtol=0)


@torch.no_grad()
def test_half_precision_is_close():
    model, sample = model_of(), latent(1, 6, 16, 4)
    exact = model(sample, TIMESTEP).sample
    rounded = model.bfloat16()(sample.bfloat16(), TIMESTEP).sample
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).std() < 0.05 * exact.std()
