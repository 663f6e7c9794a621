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
    audio_s: float,
    steps: int | None = None,
    channels: int = 1,
    size: str = "compact",
    dtype: str = "float32",
    threads: int | None = None,
) -> dict[str, Any]:
    """Cost of restoring a file as the command line does: by chunks, the cutoff detected.

    The columns are the device, seconds of each of STAGES and their sum `cpu_s` (as `srlib.machine` counts them), clock
    seconds `total_s`, both divided by the length, and the peak memory in GiB: of the process with its weights, or on a
    GPU that which torch allocated. Sizes but the shipped one have random weights, which do not change the cost.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    kind = getattr(torch, dtype)
    pipe = RestorationPipeline.from_pretrained(size, dtype=kind) if size == "compact" else build(size).to(kind)
    pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")
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
    cpu_s, device = seconds["total"], pipe.device.type
    seconds["other"] = cpu_s - sum(seconds.get(stage, 0.0) for stage in STAGES)
    row = {f"{stage}_s": seconds.get(stage, 0.0) for stage in STAGES} | {"total_s": total_s, "cpu_s": cpu_s}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * getrusage(RUSAGE_SELF).ru_maxrss
    row |= {"real_time_factor": total_s / audio_s, "cpu_factor": cpu_s / audio_s, "peak_gib": peak / 2**30}
    return {"device": device} | row


def benchmark(cases: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a case, arguments of `time_of_file`, each in a process of its own, whose peak memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as executor:
        costs = [executor.submit(time_of_file, **case) for case in cases]
        return pd.DataFrame([{**case, **cost.result()} for case, cost in zip(cases, costs, strict=True)])
