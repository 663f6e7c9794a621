"""Cost of a restoration: seconds by stage and peak memory, for model sizes, precisions, steps and lengths."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
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


def time_of_file(
    pipe: RestorationPipeline, audio_s: float, steps: int | None = None, channels: int = 1
) -> dict[str, float]:
    """Cost of restoring a file as the command line does: by chunks, the cutoff detected.

    The columns are seconds of each of STAGES and their sum `cpu_s` (as `srlib.machine` counts them), clock seconds
    `total_s`, both divided by the length, and the peak memory in GiB: of the process with its weights, or on a GPU that
    which torch allocated.
    """
    music = load_dataset("demo", "test")[0].mixture(start=2.0, seconds=10.24)
    wav = np.resize(music, round(audio_s * SAMPLE_RATE))  # the music hardly changes the cost
    pipe(wav[: SAMPLE_RATE // 2], SAMPLE_RATE, num_inference_steps=1)  # libraries warm up
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.flac"
        files.write(source, np.stack([np.roll(wav, 4800 * i) for i in range(channels)]), SAMPLE_RATE)
        start = time.perf_counter()
        with stopwatch() as seconds:
            pipe.restore_file(source, Path(folder) / "output.wav", num_inference_steps=steps)
        total_s = time.perf_counter() - start
    cpu_s, on_gpu = seconds["total"], pipe.device.type == "cuda"
    seconds["other"] = cpu_s - sum(seconds.get(stage, 0.0) for stage in STAGES)
    row = {f"{stage}_s": seconds.get(stage, 0.0) for stage in STAGES} | {"total_s": total_s, "cpu_s": cpu_s}
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    return row | {"real_time_factor": total_s / audio_s, "cpu_factor": cpu_s / audio_s, "peak_gib": peak / 2**30}


def benchmark(cases: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a case, each in a process of its own, from the loading of the weights on.

    A case has arguments of `time_of_file`, `threads`, and `size` and `dtype` of the model (default: the shipped one).
    The full size has random weights, which do not change the cost.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as executor:
        return pd.DataFrame([{**case, **row} for case, row in zip(cases, executor.map(_run, cases), strict=True)])


def _run(case: Mapping[str, Any]) -> dict[str, Any]:
    asked = dict(case)
    size, dtype = asked.pop("size", "compact"), getattr(torch, asked.pop("dtype", "float32"))
    torch.set_num_threads(asked.pop("threads", torch.get_num_threads()))
    pipe = RestorationPipeline.from_pretrained(size, dtype=dtype) if size == "compact" else build(size).to(dtype)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": pipe.device.type} | time_of_file(pipe, **asked)
