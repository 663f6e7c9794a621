"""All runs of a recipe: training one after the other, publication of the weights, and reading of the logs.

A recipe is a folder of TOML files, one a run: first `vae*`, then `vocoder*`, then `ldm*`, each by name. Each run starts
from the pipeline of the run before it. Finished runs are skipped, interrupted ones are resumed. `run.json` in each run
folder records it; `training.json` holds the settings and records of all runs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from srlib.audio.files import read, write_atomically, write_text
from srlib.config import SAMPLE_RATE, Stage
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.machine import hardware
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.config import TrainConfig
from srlib.training.loop import train

SHIPPED = Path(__file__).parents[1] / "assets" / "compact"
LOWPASS = "lowpass"  # variant of the weights, trained without noise
FIRST_RUN = "ldm-1-lowpass"  # the run behind that variant
BY_HOURS = "ldm-hours-"  # runs on so many hours of music, for the learning curve; no shipped weights come from them
_SHARD_SIZE = "15MB"  # largest weight file, a limit of the repository's host


def _stage(name: str) -> str:
    return name.partition("-")[0]


def _in_order(paths: Iterable[Path]) -> list[str]:
    """Stems of the files that name runs of the curriculum, in the order of training; a 10 follows a 9."""
    names = [path.stem for path in paths if not path.stem.startswith(BY_HOURS)]
    names.sort(key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    return [name for stage in get_args(Stage) for name in names if _stage(name) == stage]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def retrain(recipe: str | Path, data: str, out: str | Path, init: str | Path | None = None) -> Path:
    """Train the runs of a recipe folder and return the pipeline folder of the last one.

    Args:
        data: as for `srlib.training.loop.train`.
        out: one folder a run, named as its file.
        init: pipeline folder that the first run starts from; None starts from random weights.

    Raises:
        SrlibError: for a folder without a run; and as `train` does.
    """
    recipe, out = Path(recipe), Path(out)
    order = _in_order(recipe.glob("*.toml"))
    if not order:
        hint = f"name a folder of them, such as recipes/compact; they begin with {', '.join(get_args(Stage))}"
        raise SrlibError(f"{recipe} holds no TOML file of a run: {hint}.")
    configs = {name: TrainConfig.load(recipe / f"{name}.toml") for name in order}
    for name, config in configs.items():
        run, start, done = out / name, init, out / name / "run.json"
        init = run / "pipeline"  # of the next run
        if done.is_file() and _json(run / "config.json")["max_steps"] == config.max_steps:
            print(f"{name}: finished before", flush=True)
            continue
        print(name, flush=True)
        done.unlink(missing_ok=True)  # a run that continues is not finished
        train(_stage(name), config.model_dump(), data, run, start, resume=True)
        last = pd.read_csv(run / "log.csv").iloc[-1]
        record: dict[str, Any] = {"steps": int(last["global_step"]), "minutes": round(float(last["wall_time"]) / 60, 2)}
        record |= {"hardware": hardware(), "corpus": _json(run / "config.json")["corpus"] | {"name": Path(data).name}}
        write_text(done, json.dumps(record, indent=1) + "\n")
    return run / "pipeline"


def publish(runs: str | Path, out: str | Path) -> Path:
    """Write the pipeline of the last run in a folder of runs (`retrain`) to `out`, in half precision.

    The diffusion model of `ldm-1-lowpass` becomes the variant `lowpass`. Each run's log goes to `logs/`, its settings
    and its record to `training.json`, without paths of this machine. `out` is replaced as a whole, or not at all.
    """
    runs, out = Path(runs), Path(out)
    write_atomically(out, lambda part: _write(runs, part))
    return out


def _write(runs: Path, out: Path) -> None:
    order = _in_order(log.parent for log in runs.glob("*/log.csv"))
    if FIRST_RUN not in order:
        raise SrlibError(f"{runs} holds no run {FIRST_RUN}: train a recipe with it into this folder.")
    pipeline = RestorationPipeline.from_pretrained(runs / order[-1] / "pipeline")
    lowpass = RestorationPipeline.from_pretrained(runs / FIRST_RUN / "pipeline").unet
    for part in (pipeline.unet, pipeline.vocoder, lowpass):  # the others are small and fitted in closed form
        part.half()
    pipeline.save_pretrained(out, max_shard_size=_SHARD_SIZE)
    lowpass.save_pretrained(out / "unet", variant=LOWPASS, max_shard_size=_SHARD_SIZE)
    for path in [*out.glob("*.json"), *out.glob("*/config.json")]:  # diffusers writes where a part was loaded from
        if (config := _json(path)).pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    for folder in ("logs", "early"):
        (out / folder).mkdir()
    for log in runs.glob("*/log.csv"):
        shutil.copyfile(log, out / "logs" / f"{log.parent.name}.csv")
    write_text(out / "training.json", json.dumps(_training_record(runs), indent=1, sort_keys=True) + "\n")
    for noise in ("tone", "white"):  # of the first run with it
        found = [path for name in order if (path := runs / name / "snapshots" / f"{noise}.json").is_file()]
        if not found:
            raise SrlibError(f"{runs} holds no snapshot with {noise} noise: set snapshot_step in the ldm recipes.")
        for path in found[0].parent.glob(f"{noise}*"):  # with reference and restored
            shutil.copyfile(path, out / "early" / path.name)


def _training_record(runs: Path) -> dict[str, dict]:
    """`runs`: {run: its settings, and under `run` the record of it}; `corpora`: {hash: the tracks of one}."""
    record: dict[str, dict] = {"corpora": {}, "runs": {}}
    for log in sorted(runs.glob("*/log.csv")):
        settings = _json(log.parent / "config.json")
        settings.pop("corpus", None)
        for key in ("data", "init"):  # the last part of a path
            settings[key] = next((part for part in reversed(Path(settings[key]).parts) if part != "pipeline"), "")
        if (log.parent / "run.json").is_file():
            run = _json(log.parent / "run.json")
            record["corpora"][run["corpus"]["sha256"]] = run["corpus"]
            settings["run"] = run | {"corpus": run["corpus"]["sha256"]}
        record["runs"][log.parent.name] = settings
    return record


def logs(stage: str = "", folder: Path = SHIPPED) -> dict[str, pd.DataFrame]:
    """{run: its log} of the runs whose stage is `stage` (all without one), in the order of their training."""
    names = _in_order(folder.glob("logs/*.csv"))
    return {name: pd.read_csv(folder / "logs" / f"{name}.csv") for name in names if stage in ("", _stage(name))}


def learning_curve(folder: Path = SHIPPED) -> pd.DataFrame:
    """Validations of `ldm-hours-N`, if any, and of the first run, on all music: hours, step, val_lsd, val_zimtohrli."""
    hours = {path: float(path.stem.removeprefix(BY_HOURS)) for path in folder.glob(f"logs/{BY_HOURS}*.csv")}
    hours[folder / "logs" / f"{FIRST_RUN}.csv"] = recorded(folder, FIRST_RUN)["music_hours"]
    columns = {"hours": "hours", "global_step": "step", "val/lsd": "val_lsd", "val/zimtohrli": "val_zimtohrli"}
    found = [pd.read_csv(path).assign(hours=value) for path, value in sorted(hours.items(), key=lambda item: item[1])]
    return pd.concat(found, ignore_index=True).dropna(subset="val/lsd").rename(columns=columns)[[*columns.values()]]


def recorded(folder: Path = SHIPPED, run: str | None = None) -> dict[str, Any]:
    """Settings and record of a published run; None takes the last run of the curriculum.

    `music_hours` and `music_tracks` are the amount of its training music.
    """
    whole = _json(folder / "training.json")
    settings = whole["runs"][run or list(logs("ldm", folder))[-1]]
    corpus = whole["corpora"][settings["run"]["corpus"]]
    return settings | {"music_hours": corpus["train_minutes"] / 60.0, "music_tracks": len(corpus["train"])}


def summarise_runs(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per run: steps, minutes, mean loss over its first and last tenth of steps, scores of the kept weights.

    Runs with a closed form have no steps and no losses.
    """
    rows = []
    for name, log in runs.items():
        validated = log.reindex(columns=["val/loss", "val/lsd", "val/zimtohrli"]).dropna(subset="val/lsd")
        kept = validated.sort_values("val/loss").head(1)  # as training keeps them
        step, loss = log["global_step"], log["train/loss"]
        row = {"run_id": name, "stage": log["stage"].iloc[0], "steps": int(step.iloc[-1])}
        row |= {"minutes": log["wall_time"].iloc[-1] / 60.0}
        row |= {"first_loss": loss[step <= max(step.max() / 10, step.min())].mean()}
        row |= {"last_loss": loss[step > 0.9 * step.max()].mean()}
        rows.append(row | {"val_lsd": kept["val/lsd"].max(), "val_zimtohrli": kept["val/zimtohrli"].max()})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Example:
    """One clip before and after, float32 [samples] at 48 kHz, restored at `global_step` of its run with a `merge`."""

    degradation: Degradation
    reference: np.ndarray
    degraded: np.ndarray
    restored: np.ndarray
    global_step: int
    merge: str


def early_example(noise: str, folder: Path = SHIPPED) -> Example:
    """A validation clip restored early in the first run with a noise; `noise` is "tone" or "white"."""
    record = _json(folder / "early" / f"{noise}.json")
    reference, restored = (read(folder / "early" / f"{noise}-{kind}.flac")[0][0] for kind in ("reference", "restored"))
    degradation = Degradation.from_json(record["degradation"])
    degraded = degradation.apply(reference, SAMPLE_RATE)
    return Example(degradation, reference, degraded, restored, record["global_step"], record["merge"])
