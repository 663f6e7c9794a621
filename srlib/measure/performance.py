"""What a restoration costs: time by stage and peak memory, for model sizes, precisions, steps and lengths.

A case is measured in a process of its own, from the loading of the weights on. The full size has random weights, which
say nothing of quality and all of speed.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch

from srlib.audio import files
from srlib.config import SAMPLE_RATE
from srlib.data.tracks import load_dataset
from srlib.machine import hardware, stopwatch
from srlib.restore.pipeline import RestorationPipeline, build

R = TypeVar("R")
STAGES = ("encode", "diffusion", "decode", "vocoder", "merge", "other")
_CHUNK_SECONDS = 10.24  # one chunk of the pipeline
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
    """Seconds in total for a file that is restored as the command line does: chunk by chunk, cutoff detected."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.flac"
        files.write(source, np.stack([np.roll(_music(audio_s), 4800 * i) for i in range(channels)]), SAMPLE_RATE)
        _forget_peak(pipe)
        wall, cpu = time.perf_counter(), time.process_time()
        pipe.restore_file(source, Path(folder) / "output.wav")
        total_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    row = {"audio_s": audio_s, "channels": channels, "total_s": total_s, "cpu_s": cpu_s}
    factors = {"real_time_factor": total_s / audio_s, "cpu_factor": cpu_s / audio_s}
    return row | factors | {"peak_gib": _peak_gib(pipe)}


def _forget_peak(pipe: RestorationPipeline) -> None:
    """Let the peak start again from what is held now, where the system can."""
    if pipe.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def _peak_gib(pipe: RestorationPipeline) -> float:
    return (torch.cuda.max_memory_allocated() if pipe.device.type == "cuda" else peak_memory()) / 2**30


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes.

    Linux keeps it with the address space; getrusage's figure, used elsewhere, a child inherits from its parent.
    """
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, str]:
    """What the figures depend on besides the code: the machine, what a stage's second is there, and the load."""
    machine, capabilities = hardware(), torch.cpu.get_capabilities()
    units = [unit for unit in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(unit)]
    return {
        "processor": machine["processor"] + (f" ({', '.join(units)})" if units else ""),
        **({"gpu": machine["gpu"]} if machine["gpu"] else {}),
        "seconds by stage": "of the clock" if machine["gpu"] else "of one processor core",
        "cores": str(machine["cores"]),
        "load before": f"{os.getloadavg()[1]:.1f} processes" if hasattr(os, "getloadavg") else "unknown",
        "torch": machine["torch"],
    }


def benchmark(cases: Iterable[tuple[str, str, float, int]]) -> pd.DataFrame:
    """`time_by_stage` of each case (size, `float32` or `bfloat16`, seconds of audio, steps), in a fresh process each.

    A model other than the shipped one has random weights, which are written once and then loaded.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size, dtype, audio_s, steps in cases:
            model = size if size == "compact" else f"{folder}/{size}-{dtype}"
            if model != "compact" and not Path(model).exists():
                _in_fresh_process(_write, size, dtype, model)
            case = {"size": size, "dtype": dtype, "audio_s": audio_s, "steps": steps}
            rows.append(case | _in_fresh_process(_run, model, dtype, audio_s, steps))
    return pd.DataFrame(rows)


def file_benchmark(cases: Sequence[tuple[float, int]]) -> pd.DataFrame:
    """`time_of_file` of each case (seconds, channels) with the shipped model, in a fresh process each."""
    return pd.DataFrame([_in_fresh_process(_run_file, *case) for case in cases])


def _in_fresh_process(function: Callable[..., R], *arguments: object) -> R:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write(size: str, dtype: str, model: str) -> None:
    build(size).to(getattr(torch, dtype)).save_pretrained(model)


def _run(model: str, dtype: str, audio_s: float, steps: int) -> dict[str, str | float]:
    torch.set_num_threads(1)  # processor seconds are then those of the clock
    pipe = RestorationPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(_device())
    return {"device": _device()} | time_by_stage(pipe, audio_s, steps)


def _run_file(audio_s: float, channels: int) -> dict[str, float]:
    return time_of_file(RestorationPipeline.from_pretrained("compact").to(_device()), audio_s, channels)


def _music(seconds: float) -> np.ndarray:
    """A demo test track, repeated to a length: what is restored hardly changes the cost."""
    excerpt = load_dataset("demo", "test")[0].mixture(start=2.0, seconds=min(seconds, _CHUNK_SECONDS))
    return np.resize(excerpt, round(seconds * SAMPLE_RATE))
