"""What was kept of the training of the shipped weights: the log of every run, and what the model made early on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from srlib import audio
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.metrics import evaluate
from srlib.trainlog import run_order

STAGES = ("vae", "vocoder", "ldm")  # in the order of their training
SHIPPED = Path(__file__).parent / "assets" / "compact"


@dataclass(frozen=True)
class Example:
    """One clip before and after: `reference`, `degraded` and `restored` are float32 [samples] at 48 kHz.

    `global_step` of its run and the `merge` say how it was restored.
    """

    track: str
    degradation: Degradation
    reference: np.ndarray
    degraded: np.ndarray
    restored: np.ndarray
    global_step: int
    merge: str


def logs(stage: str = "", folder: Path = SHIPPED / "logs") -> dict[str, pd.DataFrame]:
    """{run: its log} of the runs whose stage is `stage` (all without one), in the order of their training."""
    paths = sorted(folder.glob("*.csv"), key=lambda path: run_order(path.stem))
    found = {path.stem: pd.read_csv(path) for path in paths}
    found = {
        name: log for one in STAGES for name, log in found.items() if one == log["stage"].iloc[0] and stage in ("", one)
    }
    if not found:
        raise SrlibError(f"{folder} holds no log of a {stage or 'training'} run: get a complete copy of the package.")
    return found


def summarise_runs(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per run: steps, minutes, mean loss over its first and last tenth of steps, last validation LSD.

    A row of a log is a mean over the steps since the one before: it counts for as many.
    """
    rows = []
    for name, log in runs.items():
        logged, lsd = log.dropna(subset=["train/loss"]), log["val/lsd"].dropna()
        step, loss = logged["global_step"], logged["train/loss"]
        weight = step.diff().fillna(step)
        first, last = step <= max(step.iloc[-1] / 10, step.iloc[0]), step > 0.9 * step.iloc[-1]
        rows.append(
            {
                "run_id": name,
                "stage": log["stage"].iloc[0],
                "steps": int(log["global_step"].iloc[-1]),
                "minutes": log["wall_time"].iloc[-1] / 60.0,
                "first_loss": np.average(loss[first], weights=weight[first]),
                "last_loss": np.average(loss[last], weights=weight[last]),
                "val_lsd": lsd.iloc[-1] if len(lsd) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def thinned(runs: dict[str, pd.DataFrame], rows: int = 25) -> pd.DataFrame:
    """The logs of all runs in one table: some `rows` of each, evenly spaced, and every validation."""
    kept = []
    for log in runs.values():
        every = -(-len(log) // rows)
        kept.append(log[(log.index % every == 0) | log["val/lsd"].notna()])
    return pd.concat(kept, ignore_index=True)


def early_example(noise: str, folder: Path = SHIPPED / "early") -> Example:
    """What the model made of a validation clip early in the run that met a noise first; `noise` is "tone" or "white".

    `srlib.publish` keeps the clip, what was restored, and a record with the step and the degradation.
    """
    record_path = folder / f"{noise}.json"
    if not record_path.is_file():
        raise SrlibError(f"{record_path} is missing: get a complete copy of the package.")
    record = json.loads(record_path.read_text(encoding="utf-8"))
    reference, restored = (audio.read(folder / f"{noise}-{kind}.flac")[0][0] for kind in ("reference", "restored"))
    degradation = Degradation.from_json(record["degradation"])
    degraded = degradation.apply(reference, SAMPLE_RATE)
    step, merge = int(record["global_step"]), record["merge"]
    return Example(record["track"], degradation, reference, degraded, restored, step, merge)


def score_examples(early: dict[str, Example], late: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row per restoration of the examples: early in training, and late (`{noise: {merge: [samples]}}`)."""
    restored = {(noise, "early", example.merge): example.restored for noise, example in early.items()}
    restored |= {(noise, "late", merge): wav for noise, merges in late.items() for merge, wav in merges.items()}
    rows = []
    for (noise, stage, merge), wav in restored.items():
        example = early[noise]
        measures = evaluate(example.reference, wav, SAMPLE_RATE, example.degraded, degradation=example.degradation)
        rows.append({"noise": noise, "stage": stage, "merge": merge, **measures})
    return pd.DataFrame(rows)
