"""The benchmark: its rows, the memory it reads; and that bfloat16, tiles and batched guidance change nothing else."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from srlib.audio.stft import log_mel
from srlib.config import AUDIOSR, SAMPLE_RATE, TINY
from srlib.measure import performance
from srlib.measure.metrics import lsd
from srlib.models import diffusion, vae
from srlib.models.vocoder import build_vocoder, receptive_frames, vocode
from srlib.report import artifacts
from srlib.restore.pipeline import RestorationPipeline, build

HIFIGAN = replace(AUDIOSR, vocoder=AUDIOSR.vocoder | {"upsample_initial_channel": 64})


def unit_gain(module: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep the size of what passes, so that random models do something at every layer."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            fan_in = weight[0].numel()
            weight.copy_(torch.randn_like(weight) / fan_in**0.5 if weight.ndim > 1 else 0.02 * torch.randn_like(weight))
    return module.eval()


@pytest.fixture(scope="module")
def hifigan():
    return unit_gain(build_vocoder(HIFIGAN))


@pytest.fixture(scope="module")
def mel(music):
    return log_mel(torch.from_numpy(music[: 128 * 480]))


def test_every_stage_takes_time_within_the_total(tiny_pipeline):
    start = time.process_time()
    row = performance.time_by_stage(tiny_pipeline, 0.64, 2)
    assert min(row[f"{stage}_s"] for stage in performance.STAGES) > 0
    assert row["total_s"] < time.process_time() - start
    assert 0.1 < row["peak_gib"] < 16


def test_a_file_is_timed_with_every_channel(tiny_pipeline):
    start = time.perf_counter()
    row = performance.time_of_file(tiny_pipeline, 0.64, 3)
    assert (row["audio_s"], row["channels"]) == (0.64, 3)
    assert 0 < row["total_s"] < time.perf_counter() - start
    assert 0.1 < row["peak_gib"] < 16


def test_peak_memory_sees_what_was_held_and_let_go():
    script = "from srlib.measure.performance import peak_memory as peak; a = peak(); b = bytearray(2**28); del b"
    script += "; b = bytearray(b'1') * 2**28; del b; print(peak() - a)"
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert 0.9 * 2**28 < grown < 1.5 * 2**28


def test_a_case_runs_in_a_process_of_its_own():
    table = performance.benchmark([("compact", "bfloat16", 0.64, 1)])
    assert list(table)[:5] == ["size", "dtype", "audio_s", "steps", "device"]
    assert np.isfinite(table.drop(columns=["size", "dtype", "device"]).to_numpy(float)).all()
    assert {"processor", "cores", "torch"} <= set(performance.environment())


def test_the_committed_record_holds_both_sizes():
    table = artifacts.read_table("performance", "demo")
    assert {"compact", "audiosr"} == set(table["size"])
    assert (table[["total_s", "peak_gib"]] > 0).all(axis=None)


@torch.no_grad()
@pytest.mark.parametrize("tile_frames", [128, 100, 40])
def test_tiles_do_not_change_what_hifigan_says(hifigan, mel, tile_frames):
    whole = hifigan(mel[:, 0])[:, : 128 * 480]
    torch.testing.assert_close(vocode(hifigan, mel, tile_frames=tile_frames), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_receptive_field_of_hifigan(hifigan):
    reach = receptive_frames(AUDIOSR.vocoder)
    mel = torch.zeros(1, 1, 2 * reach + 21, 256)
    touched = mel.clone()
    touched[:, :, reach + 10] = 100.0
    with torch.random.fork_rng():
        differs = (vocode(hifigan, mel) != vocode(hifigan, touched)).reshape(-1, 480).any(1).nonzero()
    assert differs.min() >= 10 and differs.max() <= 2 * reach + 10
    assert differs.max() - differs.min() > reach  # and not for lack of any effect


@torch.no_grad()
def test_bfloat16_hifigan_is_close_and_keeps_its_ends_in_float32(hifigan, mel):
    whole = vocode(hifigan, mel)[0]
    rounded = unit_gain(build_vocoder(HIFIGAN)).bfloat16()
    wav = vocode(rounded, mel)
    assert wav.dtype == torch.float32 and rounded.conv_pre.weight.dtype == torch.bfloat16
    assert lsd(whole.numpy(), wav[0].numpy(), convention="plain") < 0.1
    assert len(wav.unique()) > 10_000  # bfloat16 has a few thousand values in this range


@torch.no_grad()
def test_bfloat16_parts_take_and_give_float32(mel):
    noise = torch.randn(1, 8, 16, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        pipe = build("tiny", seed=0)
        pipe.vae.fit(mel)
        pipe.prior.fit([mel])
        unit_gain(pipe.unet)
        pipe.to(dtype)
        posterior = pipe.prior(mel, torch.ones_like(mel))
        condition, latent = pipe.encode_condition(mel, posterior)
        sampled = diffusion.denoise(pipe.unet, pipe.scheduler, noise, condition, 3, guidance_scale=2.0)
        results.append([latent, sampled, vae.decode(pipe.vae, latent), posterior.mean])
    for exact, rounded in zip(*results, strict=True):
        assert exact.dtype == rounded.dtype == torch.float32
        assert (exact - rounded).abs().mean() < 0.05 * exact.std()


def test_bfloat16_restores_within_a_hundredth_of_the_score(compact_pipeline, music):
    rounded = RestorationPipeline.from_pretrained("compact", dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and compact_pipeline.dtype == torch.float32
    exact, other = (pipe(music, SAMPLE_RATE, cutoff_hz=4000.0).audio for pipe in (compact_pipeline, rounded))
    assert lsd(exact, other, convention="plain") < 0.1
    scores = [lsd(music, audio, convention="plain") for audio in (exact, other)]
    assert abs(scores[0] - scores[1]) < 0.01


@torch.no_grad()
def test_guidance_in_one_batch_equals_two_calls():
    unet, scheduler = unit_gain(diffusion.build_unet(TINY)), diffusion.build_scheduler(TINY)
    noise, condition = (torch.randn(1, channels, 16, 32) for channels in (8, 18))
    without = diffusion.unconditional(condition, 0.5)
    velocities = []
    for given in (without, condition):  # one step from pure noise returns minus the velocity
        velocities.append(-diffusion.denoise(unet, scheduler, noise, given, 1))
    guided = -diffusion.denoise(unet, scheduler, noise, condition, 1, guidance_scale=3.5, scaling_factor=0.5)
    expected = velocities[0] + 3.5 * (velocities[1] - velocities[0])
    torch.testing.assert_close(guided, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folder_runs_in_bfloat16_only_if_it_is_stored_so(tmp_path, dtype, monkeypatch):
    build("tiny").to(dtype).save_pretrained(tmp_path)
    for capabilities in ({"avx512_bf16": True}, {"avx512_bf16": False}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        fast = capabilities["avx512_bf16"] or torch.cuda.is_available()
        wanted = torch.bfloat16 if dtype == torch.bfloat16 and fast else torch.float32
        assert RestorationPipeline.from_pretrained(tmp_path).dtype == wanted
