"""All runs of a recipe: to train them one after the other, to publish what they made, and to read what was kept of it.

A recipe folder holds one TOML file a run and `runs.toml` with their order. Each run starts from the newest state of
every part that the runs before it left. Finished runs are skipped, interrupted ones are resumed. The record of what was
done is `run.json` beside each run, and `training.json` of all runs together.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srlib.audio.files import read, write_atomically, write_text
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.machine import hardware
from srlib.measure.metrics import evaluate
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.config import TrainConfig, read_toml
from srlib.training.loop import train

# Parts that a run of a stage leaves for those after it; the first diffusion run fits the prior.
PARTS = {"vae": ("vae",), "vocoder": ("vocoder",), "ldm": ("prior", "unet")}
SHIPPED = Path(__file__).parents[1] / "assets" / "compact"
LOWPASS = "lowpass"  # variant of the weights that never met noise
FIRST_RUN = "ldm-1-lowpass"  # makes that variant
_BY_HOURS = re.compile(r"ldm-hours-(\d+)")  # runs of the learning curve; no shipped weights come from them
_SHARD_SIZE = "15MB"  # largest weight file: what the repository's host takes


def _order(name: str) -> list[str | int]:
    """Key that sorts the names of runs: ldm-10 behind ldm-2, vocoder before vocoder-2."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def _stage(name: str) -> str:
    return name.partition("-")[0]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def retrain(
    recipe: str | Path, data: str, out: str | Path, init: str | Path | None = None, only: Sequence[str] = ()
) -> Path:
    """Train the runs of a recipe folder and return the assembled pipeline folder, `out`/pipeline (`out` with `only`).

    Args:
        data: as for `srlib.training.loop.train`.
        out: one folder a run, named as its file.
        init: pipeline folder that the first runs start from; None starts from random weights.
        only: names of runs to train now; the others are left as they are.

    Raises:
        SrlibError: for a folder without a list of runs, or an unknown run; and as `train` does.
    """
    recipe, out = Path(recipe), Path(out)
    order, apart = _plan(recipe)
    if unknown := sorted(set(only) - {*order, *apart}):
        raise SrlibError(f"{recipe} has no run {unknown[0]!r}: choose of {', '.join([*order, *apart])}.")
    configs = {name: TrainConfig.load(recipe / f"{name}.toml") for name in [*order, *apart]}
    for name in only or configs:
        run, start, done = out / name, out / "init" / name, out / name / "run.json"
        if done.is_file() and _json(run / "config.json")["max_steps"] == configs[name].max_steps:
            print(f"{name}: finished before", flush=True)
            continue
        print(name, flush=True)
        before = order[: order.index(name)] if name in order else [n for n in order if _stage(n) != _stage(name)]
        if not (run / "config.json").is_file() and _trained(out, before):
            _assemble(out, before, start)
        done.unlink(missing_ok=True)  # a run that goes on is not finished
        train(_stage(name), configs[name].model_dump(), data, run, start if start.is_dir() else init, resume=True)
        last = pd.read_csv(run / "log.csv").iloc[-1]
        record: dict[str, Any] = {"steps": int(last["global_step"]), "minutes": round(float(last["wall_time"]) / 60, 2)}
        record |= {"hardware": hardware(), "corpus": _json(run / "config.json")["corpus"] | {"name": Path(data).name}}
        write_text(done, json.dumps(record, indent=1) + "\n")
    return out if only else _assemble(out, order, out / "pipeline")  # with `only` others may be at work beside this


def _plan(recipe: Path) -> tuple[list[str], list[str]]:
    """The runs in their order, and those that stand apart: nothing starts from them."""
    path = recipe / "runs.toml"
    if not path.is_file():
        raise SrlibError(f"There is no {path}: name a folder with one, such as recipes/compact in a checkout.")
    plan = read_toml(path)
    order, apart = list(plan.get("order", ())), list(plan.get("apart", ()))
    wrong = [name for name in [*order, *apart] if _stage(name) not in PARTS]
    if wrong or not order or set(plan) - {"order", "apart"}:
        hint = "give order = [...], and apart = [...] for those that nothing starts from"
        raise SrlibError(f"{path} does not list runs: {hint}, with names that begin with {', '.join(PARTS)}.")
    return order, apart


def _trained(runs: Path, order: Sequence[str]) -> list[str]:
    return [name for name in order if (runs / name / "pipeline" / "model_index.json").is_file()]


def _assemble(runs: Path, order: Sequence[str], out: Path) -> Path:
    """A pipeline folder of the newest state of each part among the finished ones of `order`, oldest first."""
    finished = _trained(runs, order)
    newest = {part: name for name in finished for part in PARTS[_stage(name)]}

    def copy(whole: Path) -> None:
        shutil.copytree(runs / finished[-1] / "pipeline", whole)
        for part, name in newest.items():
            shutil.rmtree(whole / part)
            shutil.copytree(runs / name / "pipeline" / part, whole / part)

    write_atomically(out, copy)
    return out


def publish(runs: str | Path, out: str | Path) -> Path:
    """Write the pipeline of a folder of runs (named as in `recipes/`) to `out`, in half precision.

    Autoencoder and vocoder come from the last of their runs, prior and diffusion model from the last `ldm-*` run; the
    diffusion model of `ldm-1-lowpass` becomes the variant `lowpass`. Each run's log goes to `logs/`, its settings and
    its record to `training.json`, without paths of this machine. `out` is replaced as a whole, or not at all.
    """
    runs, out = Path(runs), Path(out)
    write_atomically(out, lambda part: _write(runs, part))
    return out


def _write(runs: Path, out: Path) -> None:
    newest = {stage: _newest(runs, stage) for stage in ("ldm", "vae", "vocoder")}
    pipeline = RestorationPipeline.from_pretrained(newest["ldm"])
    for part in ("vae", "vocoder"):
        setattr(pipeline, part, type(getattr(pipeline, part)).from_pretrained(newest[part] / part))
    for part in (pipeline.unet, pipeline.vocoder):  # the others are small, and closed forms want their digits
        part.half()
    pipeline.save_pretrained(out, max_shard_size=_SHARD_SIZE)
    lowpass = RestorationPipeline.from_pretrained(runs / FIRST_RUN / "pipeline").unet
    lowpass.half().save_pretrained(out / "unet", variant=LOWPASS, max_shard_size=_SHARD_SIZE)
    for path in [*out.glob("*.json"), *out.glob("*/config.json")]:  # diffusers writes where a part was loaded from
        if (config := _json(path)).pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    for folder in ("logs", "early"):
        (out / folder).mkdir()
    for log in runs.glob("*/log.csv"):
        shutil.copyfile(log, out / "logs" / f"{log.parent.name}.csv")
    write_text(out / "training.json", json.dumps(_training_record(runs), indent=1, sort_keys=True) + "\n")
    for noise in ("tone", "white"):  # the first snapshot of a noise, of the run that met it first
        found = runs.glob(f"ldm-*/snapshots/{noise}-*.json")
        record = min(found, key=lambda path: (_order(path.parts[-3]), path.name), default=None)
        if record is None:
            raise SrlibError(f"{runs} holds no snapshot with {noise} noise: set snapshot_steps in the ldm recipes.")
        for path in record.parent.glob(f"{record.stem}*"):  # with reference and restored
            shutil.copyfile(path, out / "early" / re.sub(r"-\d{6}", "", path.name))


def _newest(runs: Path, stage: str) -> Path:
    """Pipeline folder of the last run of a stage."""
    found = [path for path in runs.glob(f"{stage}*/pipeline") if not _BY_HOURS.fullmatch(path.parent.name)]
    if not found:
        raise SrlibError(f"{runs} holds no finished {stage} run: train the recipes of recipes/ there first.")
    return max(found, key=lambda path: _order(path.parent.name))


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


def logs(stage: str = "", folder: Path = SHIPPED / "logs") -> dict[str, pd.DataFrame]:
    """{run: its log} of the runs whose stage is `stage` (all without one), in the order of their training."""
    names = sorted((path.stem for path in folder.glob("*.csv")), key=_order)
    names = [name for one in PARTS for name in names if _stage(name) == one and stage in ("", one)]
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in names if not _BY_HOURS.fullmatch(name)}
    if not found:
        raise SrlibError(f"{folder} holds no log of a {stage or 'training'} run: get a complete copy of the package.")
    return found


def learning_curve(folder: Path = SHIPPED) -> pd.DataFrame:
    """Validations of `ldm-hours-N`, if any, and of the first run, on all music: hours, step, val_lsd, val_zimtohrli."""
    hours = {path: float(match[1]) for path in folder.glob("logs/*.csv") if (match := _BY_HOURS.fullmatch(path.stem))}
    hours[folder / "logs" / f"{FIRST_RUN}.csv"] = training_music(folder, FIRST_RUN)[0]
    columns = {"hours": "hours", "global_step": "step", "val/lsd": "val_lsd", "val/zimtohrli": "val_zimtohrli"}
    found = [pd.read_csv(path).assign(hours=value) for path, value in sorted(hours.items(), key=lambda item: item[1])]
    return pd.concat(found, ignore_index=True).dropna(subset="val/lsd").rename(columns=columns)[[*columns.values()]]


def training_music(folder: Path = SHIPPED, run: str | None = None) -> tuple[float, int]:
    """Hours and number of the tracks that a run learned from; without a name the last run of the curriculum."""
    corpus = _json(folder / "training.json")["corpora"][_recorded(folder, run)["run"]["corpus"]]
    return corpus["train_minutes"] / 60.0, len(corpus["train"])


def run_settings(folder: Path = SHIPPED, run: str | None = None) -> dict[str, Any]:
    """The fields of `TrainConfig` that a run was trained with; without a name the last run of the curriculum."""
    return TrainConfig().model_dump() | {
        k: v for k, v in _recorded(folder, run).items() if k in TrainConfig.model_fields
    }


def _recorded(folder: Path, run: str | None) -> dict[str, Any]:
    """The settings and the record that `publish` wrote of a run."""
    runs = _json(folder / "training.json")["runs"]
    return runs[run or list(logs("ldm", folder / "logs"))[-1]]


def summarise_runs(runs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per run: steps, minutes, mean loss over its first and last tenth of steps, scores of the weights kept.

    A row of a log is a mean over the steps since the one before: it counts for as many. Closed forms take no steps and
    have no losses.
    """
    rows = []
    for name, log in runs.items():
        logged = log.dropna(subset=["train/loss"])
        validated = log.reindex(columns=["val/loss", "val/lsd", "val/zimtohrli"]).dropna(subset="val/lsd")
        kept = validated.sort_values("val/loss").head(1)  # as training keeps them
        step, loss = logged["global_step"], logged["train/loss"]
        weight = step.diff().fillna(step)
        parts = (step <= max(step.max() / 10, step.min()), step > 0.9 * step.max())
        means = [np.average(loss[part], weights=weight[part]) if len(loss) else np.nan for part in parts]
        row = {"run_id": name, "stage": log["stage"].iloc[0], "steps": int(log["global_step"].iloc[-1])}
        row |= {"minutes": log["wall_time"].iloc[-1] / 60.0, "first_loss": means[0], "last_loss": means[1]}
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


def early_example(noise: str, folder: Path = SHIPPED / "early") -> Example:
    """A validation clip restored early in the run that met a noise first; `noise` is "tone" or "white"."""
    record = _json(folder / f"{noise}.json")
    reference, restored = (read(folder / f"{noise}-{kind}.flac")[0][0] for kind in ("reference", "restored"))
    degradation = Degradation.from_json(record["degradation"])
    degraded = degradation.apply(reference, SAMPLE_RATE)
    return Example(degradation, reference, degraded, restored, int(record["global_step"]), record["merge"])


def score_examples(early: dict[str, Example], late: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """One row per restoration of the examples: early in training, and late (`{noise: {merge: [samples]}}`)."""
    restored = {(noise, "early", example.merge): example.restored for noise, example in early.items()}
    restored |= {(noise, "late", merge): wav for noise, merges in late.items() for merge, wav in merges.items()}
    rows = []
    for (noise, stage, merge), wav in restored.items():
        one = early[noise]
        measures = evaluate(one.reference, wav, SAMPLE_RATE, one.degraded, degradation=one.degradation)
        rows.append({"noise": noise, "stage": stage, "merge": merge, **measures})
    return pd.DataFrame(rows)
