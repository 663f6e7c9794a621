"""All runs of a recipe: to train them one after the other, to publish what they made, and to read what was kept of it.

A recipe folder holds one TOML file a run and `runs.toml` with their order. Each run starts from the newest state of
every part that the runs before it left. What is finished is not run again, what was interrupted is resumed. What was
really done is recorded: `run.json` beside each run, all of it together in `training.json`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from srlib.audio.files import read, replace_folder, write_text
from srlib.config import SAMPLE_RATE
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.machine import hardware
from srlib.measure.metrics import evaluate
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.config import TrainConfig, read_toml
from srlib.training.loop import train

# What a run of a stage leaves for those after it; the first diffusion run fits the prior.
PARTS = {"vae": ("vae",), "vocoder": ("vocoder",), "ldm": ("prior", "unet")}
SHIPPED = Path(__file__).parents[1] / "assets" / "compact"
LOWPASS = "lowpass"  # variant of the weights that never met noise
FIRST_RUN = "ldm-1-lowpass"  # makes that variant
_BY_HOURS = re.compile(r"ldm-hours-(\d+)")  # runs on so many hours of music, which no shipped weights come from
_SHARD_SIZE = "15MB"


def run_order(name: str) -> list[str | int]:
    """Key that sorts the names of runs: ldm-10 behind ldm-2, vocoder before vocoder-2."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


def _stage(name: str) -> str:
    return name.partition("-")[0]


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
    for name, config in configs.items():
        if only and name not in only:
            continue
        if _is_finished(out / name, config):
            print(f"{name}: finished before", flush=True)
            continue
        print(name, flush=True)
        before = order[: order.index(name)] if name in order else [n for n in order if _stage(n) != _stage(name)]
        start = _start(out, name, before, init)
        (out / name / "run.json").unlink(missing_ok=True)  # a run that goes on is not finished
        train(_stage(name), config.model_dump(), data, out / name, init=start, resume=True)
        write_text(out / name / "run.json", json.dumps(_describe(out / name, data), indent=1) + "\n")
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
        raise SrlibError(
            f"{path} does not list runs: give order = [...], and apart = [...] for those that nothing"
            f" starts from, with names that begin with {', '.join(PARTS)}."
        )
    return order, apart


def _is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a run came to its end, and the recipe has not made it longer since."""
    if not (folder / "run.json").is_file():
        return False
    begun = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (begun["max_steps"], begun["epochs"]) == (config.max_steps, config.epochs)


def _start(out: Path, name: str, before: Sequence[str], init: str | Path | None) -> str | None:
    """The pipeline folder a run starts from; a run that was begun keeps its own."""
    config = out / name / "config.json"
    if config.is_file():
        begun = json.loads(config.read_text(encoding="utf-8"))["init"]
        return None if begun == "None" else begun
    if _trained(out, before):
        return str(_assemble(out, before, out / "init" / name))
    return str(init) if init else None


def _trained(runs: Path, order: Sequence[str]) -> list[str]:
    return [name for name in order if (runs / name / "pipeline" / "model_index.json").is_file()]  # written last


def _assemble(runs: Path, order: Sequence[str], out: Path) -> Path:
    """A pipeline folder of the newest state of each part among the finished ones of `order`, oldest first."""
    finished = _trained(runs, order)
    newest = {part: name for name in finished for part in PARTS[_stage(name)]}

    def copy(whole: Path) -> None:
        shutil.copytree(runs / finished[-1] / "pipeline", whole)
        for part, name in newest.items():
            shutil.rmtree(whole / part)
            shutil.copytree(runs / name / "pipeline" / part, whole / part)

    replace_folder(out, copy)
    return out


def _describe(run: Path, data: str) -> dict[str, Any]:
    """How long a finished run took on what, and the tracks with a hash that changes with any of them."""
    last = pd.read_csv(run / "log.csv").iloc[-1]
    corpus, lines = {"name": Path(data).name}, []
    for split in ("train", "valid"):
        tracks = load_dataset(data, split)
        lines += [f"{split} {t.name} {t.seconds:.3f} {t.bandwidth_hz} {t.collection} {t.weight}" for t in tracks]
        corpus[split] = [track.name for track in tracks]
        corpus[f"{split}_weights"] = {track.name: track.weight for track in tracks if track.weight != 1}
        corpus[f"{split}_minutes"] = round(sum(track.seconds for track in tracks) / 60, 1)
    corpus["sha256"] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    minutes = round(float(last["wall_time"]) / 60, 2)
    return {"steps": int(last["global_step"]), "minutes": minutes, "hardware": hardware(), "corpus": corpus}


def publish(runs: str | Path, out: str | Path) -> Path:
    """Write the pipeline of a folder of runs (named as in `recipes/`) to `out`, in half precision.

    Autoencoder and vocoder come from the last of their runs, prior and diffusion model from the last `ldm-*` run; the
    diffusion model of `ldm-1-lowpass` becomes the variant `lowpass`. Each run's log goes to `logs/`, its settings and
    what was really run to `training.json`, without paths of this machine. What stood in `out` is replaced as a whole,
    or not at all.
    """
    runs, out = Path(runs), Path(out)
    replace_folder(out, lambda part: _write(runs, part))
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
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    (out / "logs").mkdir()
    for log in runs.glob("*/log.csv"):
        shutil.copyfile(log, out / "logs" / f"{log.parent.name}.csv")
    write_text(out / "training.json", json.dumps(_training_record(runs), indent=1, sort_keys=True) + "\n")
    (out / "early").mkdir()
    for noise in ("tone", "white"):
        _copy_first_snapshot(runs, noise, out / "early")


def _newest(runs: Path, stage: str) -> Path:
    """Pipeline folder of the last run of a stage."""
    found = [path for path in runs.glob(f"{stage}*/pipeline") if not _BY_HOURS.fullmatch(path.parent.name)]
    if not found:
        raise SrlibError(f"{runs} holds no finished {stage} run: train the recipes of recipes/ there first.")
    return max(found, key=lambda path: run_order(path.parent.name))


def _copy_first_snapshot(runs: Path, noise: str, folder: Path) -> None:
    """Keep the first snapshot of a noise, of the run that met it first."""
    records = runs.glob(f"ldm-*/snapshots/{noise}-*.json")
    first = min(records, key=lambda path: (run_order(path.parts[-3]), run_order(path.stem)), default=None)
    if first is None:
        raise SrlibError(f"{runs} holds no snapshot with {noise} noise: set snapshot_steps in the ldm recipes.")
    shutil.copyfile(first, folder / f"{noise}.json")
    for kind in ("reference", "restored"):
        shutil.copyfile(first.with_name(f"{first.stem}-{kind}.flac"), folder / f"{noise}-{kind}.flac")


def _training_record(runs: Path) -> dict[str, dict]:
    """What is known of a folder of runs, without paths of this machine.

    `runs`: {run: its settings, and under `run` what was really done}; `corpora`: {hash: the tracks of one}.
    """
    record: dict[str, dict] = {"corpora": {}, "runs": {}}
    for log in sorted(runs.glob("*/log.csv")):
        settings = json.loads((log.parent / "config.json").read_text(encoding="utf-8"))
        for key in ("data", "init"):
            parts = Path(settings[key]).parts
            settings[key] = next((part for part in reversed(parts) if part != "pipeline"), "")
        done = log.parent / "run.json"
        if done.is_file():
            run = json.loads(done.read_text(encoding="utf-8"))
            run.pop("command", None)  # of earlier versions: its arguments are paths
            record["corpora"][run["corpus"]["sha256"]] = run["corpus"]
            settings["run"] = run | {"corpus": run["corpus"]["sha256"]}
        record["runs"][log.parent.name] = settings
    return record


@dataclass(frozen=True)
class Example:
    """One clip before and after, float32 [samples] at 48 kHz, restored at `global_step` of its run with a `merge`."""

    degradation: Degradation
    reference: np.ndarray
    degraded: np.ndarray
    restored: np.ndarray
    global_step: int
    merge: str


def logs(stage: str = "", folder: Path = SHIPPED / "logs") -> dict[str, pd.DataFrame]:
    """{run: its log} of the runs whose stage is `stage` (all without one), in the order of their training."""
    found = {name: log for name, log in _read(folder).items() if not _BY_HOURS.fullmatch(name)}
    found = {name: found[name] for one in PARTS for name in found if _stage(name) == one and stage in ("", one)}
    if not found:
        raise SrlibError(f"{folder} holds no log of a {stage or 'training'} run: get a complete copy of the package.")
    return found


def learning_curve(folder: Path = SHIPPED) -> pd.DataFrame:
    """Validations of `ldm-hours-N`, if any, and of the first run, on all music: hours, step, val_lsd, val_zimtohrli."""
    found = _read(folder / "logs")
    runs = {float(match[1]): log for name, log in found.items() if (match := _BY_HOURS.fullmatch(name))}
    if FIRST_RUN not in found:
        raise SrlibError(f"{folder} lacks the log of {FIRST_RUN}: get a complete copy of the package.")
    runs[training_music(folder, FIRST_RUN)[0]] = found[FIRST_RUN]
    columns = {"global_step": "step", "val/lsd": "val_lsd", "val/zimtohrli": "val_zimtohrli"}
    validated = [log.dropna(subset="val/lsd").rename(columns=columns).assign(hours=h) for h, log in runs.items()]
    return pd.concat(validated, ignore_index=True).reindex(columns=["hours", *columns.values()])


def training_music(folder: Path = SHIPPED, run: str | None = None) -> tuple[float, int]:
    """Hours and number of the tracks that a run learned from; without a name the last run of the curriculum."""
    record, settings = _recorded(folder, run)
    corpus = record["corpora"][settings["run"]["corpus"]]
    return corpus["train_minutes"] / 60.0, len(corpus["train"])


def run_settings(folder: Path = SHIPPED, run: str | None = None) -> dict[str, Any]:
    """The fields of `TrainConfig` that a run was trained with; without a name the last run of the curriculum."""
    defaults = TrainConfig().model_dump()
    return {name: _recorded(folder, run)[1].get(name, value) for name, value in defaults.items()}


def _recorded(folder: Path, run: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `publish` wrote of all runs, and of one."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    curriculum = [name for name in record["runs"] if _stage(name) == "ldm" and not _BY_HOURS.fullmatch(name)]
    return record, record["runs"][run or max(curriculum, key=run_order)]


def _read(folder: Path) -> dict[str, pd.DataFrame]:
    """{run: its log}, by name."""
    names = sorted((path.stem for path in folder.glob("*.csv")), key=run_order)
    return {name: pd.read_csv(folder / f"{name}.csv") for name in names}


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
        kept.append(log[(log.index % -(-len(log) // rows) == 0) | log["val/lsd"].notna()])
    return pd.concat(kept, ignore_index=True)


def early_example(noise: str, folder: Path = SHIPPED / "early") -> Example:
    """What the model made of a validation clip early in the run that met a noise first; `noise` is "tone" or "white".

    `publish` keeps the clip, what was restored, and a record with the step and the degradation.
    """
    path = folder / f"{noise}.json"
    if not path.is_file():
        raise SrlibError(f"{path} is missing: get a complete copy of the package.")
    record = json.loads(path.read_text(encoding="utf-8"))
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
