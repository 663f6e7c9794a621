"""Assemble finished training runs into one pipeline folder to ship: half precision, with logs and early examples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from srlib.audio.files import replace_folder, write_text
from srlib.errors import SrlibError
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.logs import run_order

_SHARD_SIZE = "15MB"
HOURS = "hours"  # in the names of runs on a part of the music, which are not shipped
LOWPASS = "lowpass"  # variant of the weights that never met noise


def publish(runs: str | Path, out: str | Path) -> Path:
    """Write the pipeline of a folder of runs (named as in `recipes/`) to `out`, in half precision.

    Autoencoder and vocoder come from the last of their runs, prior and diffusion model from the last `ldm-*` run; the
    diffusion model of `ldm-1-lowpass` becomes the variant `lowpass`. Each run's log goes to `logs/`, its settings and
    what was really run to `training.json`. What stood in `out` is replaced as a whole, or not at all.
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
    lowpass = RestorationPipeline.from_pretrained(runs / "ldm-1-lowpass" / "pipeline").unet
    lowpass.half().save_pretrained(out / "unet", variant=LOWPASS, max_shard_size=_SHARD_SIZE)
    _forget_origin(out)
    _copy_records(runs, out)
    _copy_early(runs, out / "early")


def _in_order(path: Path) -> list[list[str | int]]:
    """Key that sorts what runs left, folder by folder: a slash would put vocoder-2 before vocoder."""
    return [run_order(name) for name in path.parts]


def _newest(runs: Path, stage: str) -> Path:
    """Pipeline folder of the last run of a stage."""
    found = (path for path in runs.glob(f"{stage}*/pipeline") if HOURS not in path.parent.name)
    finished = sorted(found, key=_in_order)
    if not finished:
        raise SrlibError(f"{runs} holds no finished {stage} run: train the recipes of recipes/ there first.")
    return finished[-1]


def _forget_origin(out: Path) -> None:
    """Drop the paths of this machine that diffusers writes into the configurations."""
    for path in [*out.glob("*.json"), *out.glob("*/config.json")]:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _copy_early(runs: Path, folder: Path) -> None:
    """Keep the first snapshot of each noise, of the run that met it first."""
    folder.mkdir(exist_ok=True)
    for noise in ("tone", "white"):
        records = sorted(runs.glob(f"ldm-*/snapshots/{noise}-*.json"), key=_in_order)
        if not records:
            raise SrlibError(f"{runs} holds no snapshot with {noise} noise: set snapshot_steps in the ldm recipes.")
        first = records[0]
        shutil.copyfile(first, folder / f"{noise}.json")
        for kind in ("reference", "restored"):
            shutil.copyfile(first.with_name(f"{first.stem}-{kind}.flac"), folder / f"{noise}-{kind}.flac")


def _copy_records(runs: Path, out: Path) -> None:
    (out / "logs").mkdir(exist_ok=True)
    for log in runs.glob("*/log.csv"):
        shutil.copyfile(log, out / "logs" / f"{log.parent.name}.csv")
    write_text(out / "training.json", json.dumps(training_record(runs), indent=1, sort_keys=True) + "\n")


def training_record(runs: Path) -> dict[str, dict]:
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
            settings["run"] = json.loads(done.read_text(encoding="utf-8"))
            corpus = settings["run"]["corpus"]
            settings["run"]["corpus"] = corpus["sha256"]
            record["corpora"][corpus["sha256"]] = corpus
        record["runs"][log.parent.name] = settings
    return record
