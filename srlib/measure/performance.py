"""What a restoration costs: seconds by stage and peak memory, for model sizes, precisions, steps and lengths."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from srlib.audio import files
from srlib.config import SAMPLE_RATE
from srlib.data.tracks import load_dataset
from srlib.machine import stopwatch
from srlib.restore.pipeline import RestorationPipeline, build

STAGES = ("encode", "diffusion", "decode", "vocoder", "merge", "other")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


def time_by_stage(pipe: RestorationPipeline, audio_s: float, steps: int) -> dict[str, float]:
    """Seconds (`srlib.machine`) of each of STAGES and in total, real-time factor and peak memory in GiB.

    The memory is that of the process while it restores, weights included; on a GPU what torch allocated there.
    """
    wav = _music(audio_s)
    pipe(wav[: SAMPLE_RATE // 2], SAMPLE_RATE, num_inference_steps=1, cutoff_hz=4000.0)  # libraries warm up
    _forget_peak(pipe)
    with stopwatch() as seconds:
        pipe(wav, SAMPLE_RATE, num_inference_steps=steps, cutoff_hz=4000.0)
    seconds["other"] = seconds["total"] - sum(seconds.get(stage, 0.0) for stage in STAGES)
    row = {f"{stage}_s": seconds.get(stage, 0.0) for stage in (*STAGES, "total")}
    return row | {"real_time_factor": seconds["total"] / audio_s, "peak_gib": _peak_gib(pipe)}


def time_of_file(pipe: RestorationPipeline, audio_s: float, channels: int) -> dict[str, float]:
    """Seconds and processor seconds of a file that is restored as the command line does: by chunks, cutoff detected."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.flac"
        files.write(source, np.stack([np.roll(_music(audio_s), 4800 * i) for i in range(channels)]), SAMPLE_RATE)
        _forget_peak(pipe)
        wall, cpu = time.perf_counter(), time.process_time()
        pipe.restore_file(source, Path(folder) / "output.wav")
        total_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    row = {"audio_s": audio_s, "channels": channels, "total_s": total_s, "cpu_s": cpu_s}
    return row | {"real_time_factor": total_s / audio_s, "cpu_factor": cpu_s / audio_s, "peak_gib": _peak_gib(pipe)}


def _music(seconds: float) -> np.ndarray:
    """A demo test track, repeated to a length: what is restored hardly changes the cost."""
    return np.resize(load_dataset("demo", "test")[0].mixture(start=2.0, seconds=10.24), round(seconds * SAMPLE_RATE))


def _forget_peak(pipe: RestorationPipeline) -> None:
    """Let the peak start again from what is held now, where the system can."""
    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_gib(pipe: RestorationPipeline) -> float:
    """Largest memory so far; NaN where neither torch nor Linux keeps it."""
    if pipe.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    lines = _STATUS.read_text().splitlines() if _STATUS.is_file() else ()
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), float("nan"))


def benchmark(cases: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a case, each in a process of its own, from the loading of the weights on.

    A case has `audio_s` (s) and either `channels`, for `time_of_file`, or `steps`, for `time_by_stage`; also `size` and
    `dtype` of the model, the shipped one if not given. The full size has random weights, which say all of speed.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as executor:
        return pd.DataFrame([{**case, **row} for case, row in zip(cases, executor.map(_run, cases), strict=True)])


def _run(case: Mapping[str, Any]) -> dict[str, Any]:
    size, dtype = case.get("size", "compact"), getattr(torch, case.get("dtype", "float32"))
    pipe = RestorationPipeline.from_pretrained(size, dtype=dtype) if size == "compact" else build(size).to(dtype)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    if "channels" in case:
        return time_of_file(pipe, case["audio_s"], case["channels"])
    torch.set_num_threads(1)  # processor seconds are then those of the clock
    return {"device": pipe.device.type} | time_by_stage(pipe, case["audio_s"], case["steps"])
