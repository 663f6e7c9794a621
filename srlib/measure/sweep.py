"""The one runner: systems x conditions x tracks to tidy rows, resumable by row, in parallel through joblib.

Worker processes stay alive from one sweep to the next, so that a model loads, and the 2f model compiles, once in each.
`SRLIB_PARALLEL` names another backend of joblib, as `dask` does for one whose `dask.distributed.Client` is there.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np
import pandas as pd
import torch

from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError
from srlib.measure.baselines import Ridge
from srlib.measure.conditions import Case, Recipe, draw
from srlib.measure.measures import Measure, Trial
from srlib.measure.metrics import bootstrap_ci
from srlib.measure.systems import System

T, R = TypeVar("T"), TypeVar("R")
_WORTH = 4  # tasks a worker, under which processes take longer to start than to work
_REPORT_SECONDS = 30


def sweep(
    systems: Mapping[str, System],
    conditions: Mapping[str, Recipe],
    clips: Mapping[str, np.ndarray],
    measures: Sequence[Measure],
    seed: int = 0,
    workers: int | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """One row per clip, condition and system (several where a measure gives several), in that order.

    Its columns are track, condition, what was drawn (`Case.labels`), system, and those of the measures.

    Args:
        systems: {name: system}, such as `systems.named` gives.
        conditions: {name: recipe} (`srlib.measure.conditions`).
        clips: {track: float32 [samples] at 48 kHz}.
        measures: functions of a `Trial` (`srlib.measure.measures`).
        workers: processes of one thread each, which change nothing but the time; None is one per CPU core. Systems on
            a GPU share this process.
        store: a file that takes every row when it is done, and from which a sweep that was stopped goes on. A row
            serves again only for the same clip, condition, system, measures, seed and code.
    """
    tasks, done = [], _Store(store)
    for turn, (track, clip) in enumerate(clips.items()):
        for condition, recipe in conditions.items():
            degradation = draw(recipe, track, seed, len(clip) / SAMPLE_RATE, turn)
            case = (track, condition, clip, degradation)
            keys = {name: done.key(case, name, system, measures, seed) for name, system in systems.items()}
            missing = {name: system for name, system in systems.items() if keys[name] not in done.rows}
            tasks.append((case, keys, missing, measures, seed))
    if any(getattr(system, "device", "cpu") != "cpu" for system in systems.values()):
        workers = 1
    rows = []
    for found, (_, keys, missing, *_) in zip(
        _reported(parallel(_measured, tasks, workers), len(tasks)), tasks, strict=True
    ):
        for name in systems:
            if name in missing:
                done.add(keys[name], found[name])
            rows += found[name] if name in missing else done.rows[keys[name]]
    return pd.DataFrame(rows)


def _measured(task: tuple) -> dict[str, list[dict[str, Any]]]:
    """{system: its rows} of one case."""
    arguments, _, systems, measures, seed = task
    case, found = Case(*arguments), {}
    for name, system in systems.items():
        trial = Trial(case, name, system, seed)
        rows = [case.labels() | {"system": name}]
        for measure in measures:
            columns = measure(trial)
            rows = [row | more for row in rows for more in (columns if isinstance(columns, list) else [columns])]
        found[name] = rows
    return found


class _Store:
    """Rows in a file of JSON lines, each with a hash of all that it depends on."""

    def __init__(self, path: str | Path | None) -> None:
        self.path, self.rows = path and Path(path), {}
        if self.path and self.path.is_file():
            whole, _, torn = self.path.read_text(encoding="utf-8").rpartition("\n")
            if torn:  # the last line was cut off
                self.path.write_text(whole and whole + "\n", encoding="utf-8")
            self.rows = dict(json.loads(line) for line in whole.splitlines())

    def key(self, *parts: Any) -> str:
        """Of a row; the same in every process. Without a file no row is looked up."""
        if not self.path:
            return ""
        try:
            return joblib.hash((*parts, _code()))
        except pickle.PicklingError as error:
            raise SrlibError(
                f"{self.path} cannot keep rows of functions without a module: store none ({error})"
            ) from None

    def add(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Append the rows of one system and case."""
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, rows], default=lambda value: value.tolist()) + "\n")


@cache
def _code() -> str:
    """Hash of the package with its weights."""
    kinds, folder = (".py", ".json", ".safetensors"), Path(__file__).parents[1]
    return joblib.hash([path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in kinds])


def parallel(function: Callable[[T], R], tasks: Sequence[T], workers: int | None = None) -> Iterator[R]:
    """Results of a function of each task, in order, from processes of one thread each (None: one per CPU core)."""
    workers = min(workers or joblib.cpu_count(), max(len(tasks) // _WORTH, 1))
    if workers == 1:
        return (_alone(function, task) for task in tasks)
    backend = os.environ.get("SRLIB_PARALLEL", "loky")
    inner = {"inner_max_num_threads": 1} if backend == "loky" else {}
    with joblib.parallel_config(backend, n_jobs=workers, **inner):
        pool = joblib.Parallel(return_as="generator", max_nbytes=None, batch_size=1)
        return pool(joblib.delayed(_alone)(function, task) for task in tasks)


def _alone(function: Callable[[T], R], task: T) -> R:
    """On one thread: with others the last digits are others, and processes are the parallelism."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(task)
    finally:
        torch.set_num_threads(before)


def _reported(results: Iterator[R], total: int) -> Iterator[R]:
    """The same, with a line about the time twice a minute."""
    start = said = time.perf_counter()
    for count, result in enumerate(results, 1):
        yield result
        if time.perf_counter() - said > _REPORT_SECONDS:
            said = time.perf_counter()
            print(f"{count} of {total} cases, {said - start:.0f} s", flush=True)


def fit_ridges(
    conditions: Mapping[str, Recipe], clips: Mapping[str, np.ndarray], seed: int = 0, workers: int | None = None
) -> dict[str, Ridge]:
    """{condition: ridge regression} from training clips {track: [samples]}, degraded as each condition says."""
    tasks = [(recipe, clips, seed) for recipe in conditions.values()]
    return dict(zip(conditions, parallel(_fit, tasks, workers), strict=True))


def _fit(task: tuple[Recipe, Mapping[str, np.ndarray], int]) -> Ridge:
    recipe, clips, seed = task
    return Ridge.fit((draw(recipe, track, seed).apply(wav, SAMPLE_RATE), wav) for track, wav in clips.items())


def summarise(table: pd.DataFrame, columns: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """One row per condition and system: means over tracks, the interval of `lsd_19k`, and its ratio to the oracle's.

    `columns` are averaged beside it; a measure that was not taken is NaN.
    """
    keys = ["condition", "noise", "cutoff_hz", "system", "merge"]
    groups = table.groupby(keys, sort=False, dropna=False)
    summary = groups.agg(tracks=("track", "size"), lsd_19k=("lsd_19k", "mean"))
    intervals = [bootstrap_ci(group["lsd_19k"], seed) for _, group in groups]
    summary[["ci_low", "ci_high"]] = intervals
    summary["ratio"] = np.nan
    summary["lsd_19k_median"] = groups["lsd_19k"].median()
    summary = summary.join(groups[[name for name in columns if name in table]].mean()).reset_index()
    oracle = summary[summary["system"] == "oracle"].set_index("condition")["lsd_19k"]
    summary["ratio"] = summary["lsd_19k"] / summary["condition"].map(oracle)
    return summary.reindex(
        columns=[*keys, "tracks", "lsd_19k", "ci_low", "ci_high", "ratio", "lsd_19k_median", *columns]
    )


def paired_difference(
    table: pd.DataFrame, system: str, other: str, condition: str, seed: int = 0, measure: str = "lsd_19k"
) -> tuple[float, float, float]:
    """Mean difference in a measure of a system from another over the tracks of a condition, and its 95 % interval.

    Tracks differ more from each other than systems do: the interval of a difference says what those of two means hide.
    """
    scores = table[table["condition"] == condition].pivot(index="track", columns="system", values=measure)
    difference = scores[system] - scores[other]
    return float(difference.mean()), *bootstrap_ci(difference, seed)
