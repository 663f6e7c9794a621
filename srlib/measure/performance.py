"""What a restoration costs: time by stage and peak memory, for model sizes, precisions, steps and lengths.

    python -m srlib.measure.performance [performance] [restore_speed]     measures both records, or the one named,
                                                                  and writes them, in about half an hour

A case is measured in a process of its own, from the loading of the weights on. The full size has random weights, which
say nothing of quality and all of speed.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.machine import hardware
from srlib.report import artifacts

if TYPE_CHECKING:
    from srlib.restore.pipeline import RestorationPipeline

R = TypeVar("R")
TABLE, NOTEBOOK = "performance", "10_performance"
STAGES = ("encode", "diffusion", "decode", "vocoder", "merge", "other")
_CHUNK_SECONDS = 10.24  # one chunk of the pipeline
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: which model, in which precision (`float32` or `bfloat16`), on how much audio."""

    size: str
    dtype: str = "float32"
    audio_s: float = _CHUNK_SECONDS
    steps: int = 1


RECORD = (
    *(Case("compact", steps=steps) for steps in (1, 2, 4, 8, 16, 50)),
    *(Case("compact", audio_s=seconds) for seconds in (5.0, 20.0, 60.0)),
    Case("compact", "bfloat16"),
    *(Case("audiosr", "bfloat16", steps=steps) for steps in (1, 50)),
    Case("audiosr", steps=50),
)
FILES_TABLE, FILES = "restore_speed", ((10.0, 1), (60.0, 1), (60.0, 2), (60.0, 6), (300.0, 2))  # seconds, channels
QUICK = ((_CHUNK_SECONDS, 1), (_CHUNK_SECONDS, 4), (5.0, 1))  # seconds of audio and steps


def measure(pipe: RestorationPipeline, audio_s: float, steps: int) -> dict[str, float]:
    """Seconds (`srlib.machine`) of each of STAGES and in total, real-time factor and peak memory in GiB.

    The memory is that of the process while it restores, weights included; on a GPU what torch allocated there.
    """
    import torch

    from srlib.machine import stopwatch

    wav, on_gpu = _music(audio_s), pipe.device.type == "cuda"
    pipe(wav[: SAMPLE_RATE // 2], SAMPLE_RATE, num_inference_steps=1, cutoff_hz=4000.0)  # libraries warm up
    _forget_peak(on_gpu)
    with stopwatch() as seconds:
        pipe(wav, SAMPLE_RATE, num_inference_steps=steps, cutoff_hz=4000.0)
    seconds["other"] = seconds["total"] - sum(seconds.get(stage, 0.0) for stage in STAGES)
    row = {f"{stage}_s": seconds.get(stage, 0.0) for stage in (*STAGES, "total")}
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    return row | {"real_time_factor": seconds["total"] / audio_s, "peak_gib": peak / 2**30}


def measure_file(pipe: RestorationPipeline, audio_s: float, channels: int) -> dict[str, float]:
    """As `measure`, in total, for a file that is restored as the command line does: chunk by chunk, cutoff detected."""
    import torch

    from srlib.audio import files as audio

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "input.flac"
        audio.write(source, np.stack([np.roll(_music(audio_s), 4800 * i) for i in range(channels)]), SAMPLE_RATE)
        on_gpu = pipe.device.type == "cuda"
        _forget_peak(on_gpu)
        wall, cpu = time.perf_counter(), time.process_time()
        pipe.restore_file(source, Path(folder) / "output.wav")
        total_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_memory()
    row = {"audio_s": audio_s, "channels": channels, "total_s": total_s, "cpu_s": cpu_s}
    return row | {"real_time_factor": total_s / audio_s, "cpu_factor": cpu_s / audio_s, "peak_gib": peak / 2**30}


def _forget_peak(on_gpu: bool) -> None:
    """Let the peak start again from what is held now, where the system can."""
    import torch

    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes.

    Linux keeps it with the address space; getrusage's figure, used elsewhere, a child inherits from its parent.
    """
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def conditions() -> dict[str, str]:
    """What the figures depend on besides the code: the machine, what a stage's second is there, and the load."""
    import torch

    machine = hardware()
    capabilities = torch.cpu.get_capabilities()
    units = [unit for unit in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(unit)]
    return {
        "processor": machine["processor"] + (f" ({', '.join(units)})" if units else ""),
        **({"gpu": machine["gpu"]} if machine["gpu"] else {}),
        "seconds by stage": "of the clock" if machine["gpu"] else "of one processor core",
        "cores": str(machine["cores"]),
        "load before": f"{os.getloadavg()[1]:.1f} processes" if hasattr(os, "getloadavg") else "unknown",
        "torch": machine["torch"],
    }


def benchmark(cases: Iterable[Case]) -> pd.DataFrame:
    """One row per case, each from a fresh process; a model with random weights is written once and then loaded."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            model = case.size if case.size == "compact" else f"{folder}/{case.size}-{case.dtype}"
            if model != "compact" and not Path(model).exists():
                _in_fresh_process(_write, case, model)
            rows.append(asdict(case) | _in_fresh_process(_run, case, model))
    return pd.DataFrame(rows)


def file_benchmark() -> pd.DataFrame:
    """One row for each of FILES with the shipped model, each from a fresh process."""
    return pd.DataFrame([_in_fresh_process(_run_file, *case) for case in FILES])


def _in_fresh_process(function: Callable[..., R], *arguments: object) -> R:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def quick(pipe: RestorationPipeline, size: str) -> pd.DataFrame:
    """Rows for the pipeline and the machine at hand, in seconds instead of many minutes, in this process."""
    dtype, device = str(pipe.dtype).removeprefix("torch."), pipe.device.type
    rows = [(Case(size, dtype, *case), measure(pipe, *case)) for case in QUICK]
    return pd.DataFrame([asdict(case) | {"device": device} | row for case, row in rows])


def recorded(profile: str, here: pd.DataFrame, again: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """The benchmark and the hardware it ran on: the committed record, or a new one if `again` asks.

    The smoke profile has no record; it gets what was measured `here`.
    """
    return _recorded(TABLE, profile, here, lambda: benchmark(RECORD), again)


def recorded_files(profile: str, pipe: RestorationPipeline, again: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """As `recorded`, for whole files; the smoke profile measures a second of stereo with its own pipeline."""
    here = pd.DataFrame([measure_file(pipe, 1.0, 2)]) if profile == artifacts.DRAFT_PROFILE else pd.DataFrame()
    return _recorded(FILES_TABLE, profile, here, file_benchmark, again)


def _recorded(
    name: str, profile: str, here: pd.DataFrame, measure_all: Callable[[], pd.DataFrame], again: bool
) -> tuple[pd.DataFrame, dict[str, str]]:
    if profile == artifacts.DRAFT_PROFILE:
        return here, conditions()
    if again:
        machine = conditions()
        return measure_all(), machine
    found = artifacts.committed_table(name)
    if found is None:  # half an hour is not spent without being asked for
        raise SrlibError(
            f"The record report/tables/{name}.csv is missing: get it back from git, or measure it anew, "
            f"with python -m srlib.measure.performance {name}."
        )
    return found


def _write(case: Case, model: str) -> None:
    import torch

    from srlib.restore.pipeline import build

    build(case.size).to(getattr(torch, case.dtype)).save_pretrained(model)


def _run(case: Case, model: str) -> dict[str, str | float]:
    import torch

    from srlib.restore.pipeline import RestorationPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # processor seconds are then those of the clock
    pipe = RestorationPipeline.from_pretrained(model, dtype=getattr(torch, case.dtype)).to(device)
    return {"device": device} | measure(pipe, case.audio_s, case.steps)


def _run_file(audio_s: float, channels: int) -> dict[str, float]:
    import torch

    from srlib.restore.pipeline import RestorationPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return measure_file(RestorationPipeline.from_pretrained("compact").to(device), audio_s, channels)


def _music(seconds: float) -> np.ndarray:
    """A demo test track, repeated to a length: what is restored hardly changes the cost."""
    from srlib.data.tracks import load_dataset

    excerpt = load_dataset("demo", "test")[0].mixture(start=2.0, seconds=min(seconds, _CHUNK_SECONDS))
    return np.resize(excerpt, round(seconds * SAMPLE_RATE))


if __name__ == "__main__":
    for name, measure_all in ((FILES_TABLE, file_benchmark), (TABLE, lambda: benchmark(RECORD))):
        if name in (sys.argv[1:] or (TABLE, FILES_TABLE)):
            machine = conditions()
            table = measure_all()
            print(table.to_string(), "written to", artifacts.save_table(table, name, "demo", NOTEBOOK, machine))
