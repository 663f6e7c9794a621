"""What was kept of the training of the shipped weights: the log of every run, and what the model made early on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from srlib.audio import files as audio
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure.metrics import evaluate
from srlib.training.logs import run_order

STAGES = ("vae", "vocoder", "ldm")  # in the order of their training
SHIPPED = Path(__file__).parents[1] / "assets" / "compact"
_BY_HOURS = re.compile(r"(?:\w+-)?hours-(\d+)")  # runs on so many hours of music, which no shipped weights come from


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
    found = {name: log for name, log in _read(folder).items() if not _BY_HOURS.fullmatch(name)}
    found = {
        name: log for one in STAGES for name, log in found.items() if one == log["stage"].iloc[0] and stage in ("", one)
    }
    if not found:
        raise SrlibError(f"{folder} holds no log of a {stage or 'training'} run: get a complete copy of the package.")
    return found


def learning_curve(folder: Path = SHIPPED / "logs", needed: bool = True) -> pd.DataFrame:
    """Validations of the runs named `ldm-hours-N`, which differ in hours of music: hours, step, val_lsd, val_zimtohrli.

    Args:
        needed: raise SrlibError where there is no such run; else the table is one row of NaN.
    """
    runs = {int(match[1]): log for name, log in _read(folder).items() if (match := _BY_HOURS.fullmatch(name))}
    if needed and not runs:
        raise SrlibError(f"{folder} holds no log of a run ldm-hours-N: train those of recipes/compact.")
    columns = {"global_step": "step", "val/lsd": "val_lsd", "val/zimtohrli": "val_zimtohrli"}
    pieces = [
        log.dropna(subset="val/lsd")[[*columns]].rename(columns=columns).assign(hours=hours)
        for hours, log in runs.items()
    ]
    curve = pd.concat(pieces, ignore_index=True) if pieces else pd.DataFrame(index=[0])
    return curve.reindex(columns=["hours", *columns.values()])


def training_music(folder: Path = SHIPPED) -> tuple[float, int]:
    """Hours and number of the tracks that the last run of the curriculum learned from."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    curriculum = [name for name in record["runs"] if name.startswith("ldm") and not _BY_HOURS.fullmatch(name)]
    last = max(curriculum, key=run_order)
    corpus = record["corpora"][record["runs"][last]["run"]["corpus"]]
    return corpus["train_minutes"] / 60.0, len(corpus["train"])


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    """{run: its log}, by name."""
    paths = sorted(folder.glob("*.csv"), key=lambda path: run_order(path.stem))
    return {path.stem: pd.read_csv(path) for path in paths}


def summarise_runs(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per run: steps, minutes, mean loss over its first and last tenth of steps, scores of the weights kept.

    A row of a log is a mean over the steps since the one before: it counts for as many. What has a closed form takes no
    steps and has no losses.
    """
    rows = []
    for name, log in runs.items():
        logged = log.dropna(subset=["train/loss"])
        validated = log.reindex(columns=["val/loss", "val/lsd", "val/zimtohrli"]).dropna(subset="val/lsd")
        kept = validated.sort_values("val/loss").head(1)  # as training keeps them
        step, loss = logged["global_step"], logged["train/loss"]
        weight = step.diff().fillna(step)
        first, last = step <= max(step.max() / 10, step.min()), step > 0.9 * step.max()
        rows.append(
            {
                "run_id": name,
                "stage": log["stage"].iloc[0],
                "steps": int(log["global_step"].iloc[-1]),
                "minutes": log["wall_time"].iloc[-1] / 60.0,
                "first_loss": np.average(loss[first], weights=weight[first]) if len(loss) else np.nan,
                "last_loss": np.average(loss[last], weights=weight[last]) if len(loss) else np.nan,
                "val_lsd": kept["val/lsd"].max(),
                "val_zimtohrli": kept["val/zimtohrli"].max(),
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

    `srlib.training.publish` keeps the clip, what was restored, and a record with the step and the degradation.
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
