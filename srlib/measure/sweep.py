"""The one runner: systems x conditions x tracks to tidy rows, resumable by row, in parallel through joblib.

Worker processes stay alive between sweeps, so that each loads a model, and compiles the 2f model, only once. There is
one for each CPU core, or as many as joblib's `LOKY_MAX_CPU_COUNT` says; their number affects the time only.
With `SRLIB_DASK=ADDRESS` the workers of the Dask scheduler at that address do the work instead, on any machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from srlib.config import SAMPLE_RATE
from srlib.measure.conditions import Case, Recipe, draw
from srlib.measure.measures import Measure, Trial
from srlib.measure.systems import System

T = TypeVar("T")
R = TypeVar("R")
_WORTH = 4  # least tasks for each worker: with fewer, processes take longer to start than to compute
_QUIET_SECONDS = 30  # s, before the first line of progress and between two lines


def sweep(
    systems: Mapping[str, System],
    conditions: Mapping[str, Recipe],
    clips: Mapping[str, np.ndarray],
    measures: Sequence[Measure],
    seed: int = 0,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """One row per clip, condition and system (several where a measure gives several), in that order.

    Its columns are those of `Case.labels`, system, and those of the measures.

    Args:
        systems: {name: system}, such as `systems.named` gives. If one is on a GPU, this process does all.
        conditions: {name: recipe} (`srlib.measure.conditions`).
        clips: {track: float32 [samples] at 48 kHz}.
        measures: functions of a `Trial` (`srlib.measure.measures`).
        store: a folder that keeps every finished row, so that a stopped sweep can continue. A row is used again only
            for the same clip, condition, system, measures, seed and code of the package.
    """
    cases = [
        Case(track, name, clip, draw(recipe, track, seed, len(clip) / SAMPLE_RATE, turn))
        for turn, (track, clip) in enumerate(clips.items())
        for name, recipe in conditions.items()
    ]
    on_gpu = any(getattr(system, "device", "cpu") != "cpu" for system in systems.values())
    rows_of = partial(_rows, systems=systems, measures=measures, seed=seed, store=store)
    done = parallel(rows_of, cases, workers=1 if on_gpu else None)
    bar = tqdm(done, total=len(cases), mininterval=_QUIET_SECONDS, delay=_QUIET_SECONDS, leave=False)
    return pd.DataFrame([row for rows in bar for row in rows])


def _rows(
    case: Case, systems: Mapping[str, System], measures: Sequence[Measure], seed: int, store: str | Path | None
) -> list[dict[str, Any]]:
    """Rows of one case."""
    kept = joblib.Memory(store, verbose=0).cache(_rows_of_system)
    code = _code() if store else ""
    return [row for name, system in systems.items() for row in kept(case, name, system, measures, seed, code)]


def _rows_of_system(
    case: Case, name: str, system: System, measures: Sequence[Measure], seed: int, code: str
) -> list[dict[str, Any]]:
    """Rows of one system; stored ones also depend on `code`."""
    trial = Trial(case, name, system(case, seed))
    rows = [case.labels() | {"system": name}]
    for measure in measures:
        columns = measure(trial)
        rows = [row | more for row in rows for more in (columns if isinstance(columns, list) else [columns])]
    return rows


@cache
def _code() -> str:
    """Hash of the package with its weights."""
    kinds, folder = (".py", ".json", ".safetensors"), Path(__file__).parents[1]
    return joblib.hash([path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in kinds])


def parallel(function: Callable[[T], R], tasks: Sequence[T], workers: int | None = None) -> Iterator[R]:
    """Results of a function of each task, in order, from processes of one thread each (None: one per CPU core)."""
    workers = min(workers or joblib.cpu_count(), max(len(tasks) // _WORTH, 1))  # joblib starts no process for one
    backend: dict[str, Any] = {"backend": "loky", "n_jobs": workers, "inner_max_num_threads": 1}
    if address := os.environ.get("SRLIB_DASK"):
        from distributed import get_client  # of the extra `dev`

        backend = {"backend": "dask", "n_jobs": -1, "client": get_client(address)}
    with joblib.parallel_config(**backend):
        pool = joblib.Parallel(return_as="generator", max_nbytes=None, batch_size=1)
        return pool(joblib.delayed(_on_one_thread)(function, task) for task in tasks)


def _on_one_thread(function: Callable[[T], R], task: T) -> R:
    """Call on one thread: the number of threads changes last digits, and processes run in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(before)
