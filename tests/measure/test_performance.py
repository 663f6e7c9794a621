"""The benchmark: its rows, the memory it reads; and that bfloat16, tiles and batched guidance change nothing else."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from srlib.audio.stft import log_mel
from srlib.config import AUDIOSR, SAMPLE_RATE, TINY
from srlib.errors import SrlibError
from srlib.machine import stage, stopwatch
from srlib.measure import performance
from srlib.measure.metrics import lsd
from srlib.models import diffusion as ldm
from srlib.models import vae
from srlib.models.vocoder import build_vocoder, receptive_frames, vocode
from srlib.report import artifacts, plots_costs
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


def test_measure_times_every_stage(tiny_pipeline):
    row = performance.measure(tiny_pipeline, 0.64, 2)
    stages = [row[f"{stage}_s"] for stage in performance.STAGES]
    assert min(stages) > 0
    assert sum(stages) == pytest.approx(row["total_s"])
    assert row["real_time_factor"] == pytest.approx(row["total_s"] / 0.64)
    assert 0.1 < row["peak_gib"] < 16


def test_measure_file_restores_every_channel(tiny_pipeline):
    row = performance.measure_file(tiny_pipeline, 0.64, 3)
    assert (row["audio_s"], row["channels"]) == (0.64, 3)
    assert row["real_time_factor"] == pytest.approx(row["total_s"] / 0.64)
    assert row["cpu_factor"] == pytest.approx(row["cpu_s"] / 0.64)
    assert 0.1 < row["peak_gib"] < 16


def test_peak_memory_sees_what_was_held_and_let_go():
    script = "from srlib.measure.performance import peak_memory as peak; a = peak(); b = bytearray(2**28); del b"
    script += "; b = bytearray(b'1') * 2**28; del b; print(peak() - a)"
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert 0.9 * 2**28 < grown < 1.5 * 2**28


def test_stopwatch_adds_up_and_only_runs_when_asked():
    @stage("sleep")
    def nothing(value):
        return value

    assert nothing(1) == 1
    with stopwatch() as seconds:
        assert [nothing(2), nothing(3)] == [2, 3]
        with pytest.raises(ZeroDivisionError), stopwatch():
            nothing(1 / 0)
    assert set(seconds) == {"sleep", "total"} and 0 < seconds["sleep"] < seconds["total"]


def test_a_case_runs_in_a_process_of_its_own():
    table = performance.benchmark([performance.Case("compact", "bfloat16", 0.64, 1)])
    assert list(table)[:5] == ["size", "dtype", "audio_s", "steps", "device"]
    assert np.isfinite(table.drop(columns=["size", "dtype", "device"]).to_numpy(float)).all()


def test_the_record_is_read_and_only_measured_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    measured = []
    monkeypatch.setattr(performance, "benchmark", lambda cases: measured.append(cases) or pd.DataFrame({"x": [2.0]}))
    here = pd.DataFrame({"x": [1.0]})
    assert performance.recorded("smoke", here)[0] is here
    artifacts.save_table(here, "performance", "demo", "10_performance", {"processor": "one"})
    for profile in ("demo", "paper"):
        table, machine = performance.recorded(profile, here)
        assert table["x"].tolist() == [1.0] and machine == {"processor": "one"}
    assert not measured
    table, machine = performance.recorded("demo", here, again=True)
    assert table["x"].tolist() == [2.0] and {"processor", "cores", "torch"} <= set(machine)
    assert measured == [performance.RECORD]


def test_an_exploration_reads_the_record_and_never_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(artifacts, "_explored", None)
    for name in ("benchmark", "file_benchmark"):
        monkeypatch.setattr(performance, name, lambda *_: pytest.fail("measured"))
    here = pd.DataFrame({"x": [1.0]})
    for name in ("performance", "restore_speed"):
        artifacts.save_table(here, name, "demo", "10_performance", {"processor": "one"})
    artifacts.explore(tmp_path / "build" / "demo" / "explore")
    for table, machine in (performance.recorded("demo", here), performance.recorded_files("demo", None)):
        assert table["x"].tolist() == [1.0] and machine == {"processor": "one"}
    (tmp_path / "report" / "tables" / "performance.csv").unlink()
    with pytest.raises(SrlibError, match=r"performance\.csv.*python -m srlib\.performance"):
        performance.recorded("demo", here)


def test_the_committed_record_holds_both_sizes_and_adds_up():
    table = artifacts.read_table("performance", "demo")
    assert {"compact", "audiosr"} == set(table["size"])
    stages = table[[f"{stage}_s" for stage in performance.STAGES]].sum(axis=1)
    np.testing.assert_allclose(stages, table["total_s"], rtol=1e-4)
    for ax, (_, rows) in zip(plots_costs.cost(table, "any").axes, table.groupby("size", sort=False), strict=True):
        for name, bars in zip(performance.STAGES, ax.containers, strict=True):
            np.testing.assert_allclose([bar.get_width() for bar in bars], rows[f"{name}_s"])
        np.testing.assert_allclose([bar.get_x() + bar.get_width() for bar in bars], rows["total_s"], rtol=1e-4)


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
        sampled = ldm.denoise(pipe.unet, pipe.scheduler, noise, condition, 3, guidance_scale=2.0)
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
    unet, scheduler = unit_gain(ldm.build_unet(TINY)), ldm.build_scheduler(TINY)
    noise, condition = (torch.randn(1, channels, 16, 32) for channels in (8, 18))
    without = ldm.unconditional(condition, 0.5)
    velocities = []
    for given in (without, condition):  # one step from pure noise returns minus the velocity
        velocities.append(-ldm.denoise(unet, scheduler, noise, given, 1))
    guided = -ldm.denoise(unet, scheduler, noise, condition, 1, guidance_scale=3.5, scaling_factor=0.5)
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


def test_quality_figure_has_a_line_a_solver():
    table = pd.DataFrame({"scheduler": ["ddim", "ddim", "dpm"], "steps": [1, 2, 1]})
    table = table.assign(lsd_19k=[1.2, 1.1, 1.3], texture_high=[0.9, 0.8, 0.7])
    for ax, column in zip(plots_costs.quality_by_steps(table).axes, ("lsd_19k", "texture_high"), strict=True):
        for line, (name, rows) in zip(ax.lines[:2], table.groupby("scheduler", sort=False), strict=True):
            assert line.get_label() == name
            np.testing.assert_array_equal(line.get_xydata(), rows[["steps", column]])
