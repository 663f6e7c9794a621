"""What AudioSR does around its networks, against its own outputs, and what it gives up on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from srlib.audiosr import checkpoint, compatible
from srlib.errors import SrlibError
from srlib.restore.pipeline import RestorationPipeline

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("filter_type", compatible.FILTERS)
def test_lowpass_simulation_as_audiosr(truth, filter_type, assert_parity):
    ours = compatible.simulate_lowpass(truth["in.wav"].numpy(), 4000, filter_type)
    assert_parity(ours, truth[f"out.lowpass.{filter_type}"])


def test_cutoff_detector_as_audiosr(truth):
    with safe_open(FIXTURES / "audiosr_tiny_seed0.safetensors", "pt") as file:
        theirs = int(file.metadata()["cutoff_bin_input"])
    assert compatible.cutoff_index(truth["out.stft_mag"]) == theirs
    assert compatible.detect_cutoff_hz(truth["in.wav"]) == pytest.approx(theirs / 1024 * 24_000, abs=24)


def test_replacements_as_audiosr(truth, assert_parity):
    ours = compatible.replace_mel(truth["out.log_mel"][None, None], truth["out.log_mel_lowpass"][None, None])
    assert_parity(ours, truth["out.mel_replaced"])
    generated, degraded = truth["in.post_in"][0, 0].numpy(), truth["out.lowpass.cheby1"].numpy()
    assert_parity(compatible.replace_waveform(generated, degraded), truth["out.postprocessed"][0, 0])
    assert not compatible.replace_waveform(0 * generated, 0 * degraded).any()


def test_compatibility_mode_as_audiosr_to_the_random_numbers(audiosr_weights, truth, assert_parity):
    parts = checkpoint.from_audiosr(audiosr_weights | {"scale_factor": torch.tensor(0.4)}, size="tiny")
    wav = truth["in.wav"].numpy()
    ours = compatible.restore_as_audiosr(RestorationPipeline(**parts), wav, 48_000, num_inference_steps=2, seed=42)
    assert ours.shape == wav.shape
    assert_parity(ours[::16], load_file(FIXTURES / "audiosr_restored_tiny_seed0.safetensors")["out.restored"])


def test_compatibility_mode_refuses_what_audiosr_gives_up_on(parts, tiny_pipeline):
    rumble = np.sin(2 * np.pi * 100 / 48_000 * np.arange(48_000)).astype(np.float32)
    with pytest.raises(SrlibError, match="gives up"):
        compatible.restore_as_audiosr(RestorationPipeline(**parts), rumble, 48_000)
    with pytest.raises(SrlibError, match="not of AudioSR's kind"):
        compatible.restore_as_audiosr(tiny_pipeline, rumble, 48_000)
