"""The diffusion transformer: the U-Net's interface, zero at its beginning, relative positions, dropout, its folder."""

import pytest
import torch

from srlib.config import COMPACT, TINY
from srlib.models import diffusion as ldm
from srlib.models import transformer
from srlib.models.transformer import LatentTransformer

SIZES = {"in_channels": 6, "out_channels": 2, "bands": 4, "width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2}
TIMESTEP = torch.tensor([500])


def latent(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model_of(**changes) -> LatentTransformer:
    """One whose layers that start at zero are drawn at random."""
    torch.manual_seed(0)
    model = LatentTransformer(**SIZES | changes).eval()
    for layer in (model.modulate, model.head):
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
    width, depth, ratio, tokens = 256, 6, 3, (98 * 32, 32 * 32)
    block = 6 * width + 4 * width * width + 4 * width + 2 * ratio * width * width + (ratio + 1) * width
    ends = tokens[0] * width + width + width * tokens[1] + tokens[1] + 2 * width
    time = 2 * (width * width + width) + 6 * width * width + 6 * width
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
def test_positions_are_relative(monkeypatch):
    """Counted from elsewhere, positions are the same; turned about or stretched, they are not."""
    model, sample = model_of(), latent(1, 6, 20, 4)
    rotary, before = transformer._rotary, model(sample, TIMESTEP).sample

    def moved(tokens: int, width: int, device: torch.device):
        return tuple(part[37:] for part in rotary(tokens + 37, width, device))

    monkeypatch.setattr(transformer, "_rotary", moved)
    torch.testing.assert_close(model(sample, TIMESTEP).sample, before, atol=1e-4, rtol=0)
    stretches = {
        "turned": lambda *given: tuple(part.flip(0) for part in rotary(*given)),
        "stretched": lambda tokens, *given: tuple(part[::2] for part in rotary(2 * tokens, *given)),
        "none": lambda *given: tuple(part[:1].expand_as(part) for part in rotary(*given)),
    }
    for name, positions in stretches.items():
        monkeypatch.setattr(transformer, "_rotary", positions)
        assert (model(sample, TIMESTEP).sample - before).abs().max() > 1e-3, name


@torch.no_grad()
def test_tokens_know_their_order_but_equal_ones_are_alike():
    model, sample = model_of(), latent(1, 6, 20, 4)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    output, shuffled = model(sample, TIMESTEP).sample, model(sample[:, :, order], TIMESTEP).sample
    assert (shuffled - output[:, :, order]).abs().max() > 1e-3
    same = model(sample[:, :, :1].expand(-1, -1, 20, -1), TIMESTEP).sample
    torch.testing.assert_close(same, same[:, :, :1].expand_as(same), atol=1e-5, rtol=0)
    assert same.abs().max() > 0.01


@torch.no_grad()
def test_every_frame_hears_every_other():
    model, sample = model_of(), latent(1, 6, 64, 4)
    before = model(sample, TIMESTEP).sample
    for frame in (0, 63):
        changed = sample.clone()
        changed[:, :, frame] += 3
        assert ((model(changed, TIMESTEP).sample - before).abs().amax((0, 1, 3)) > 0).all()


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
    loaded = LatentTransformer.from_pretrained(tmp_path)
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
