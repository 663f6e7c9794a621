"""Retrain all weights of a recipe, run after run, from a folder of audio.

A recipe folder holds one TOML file a run and `runs.toml` with their order. Each run starts from the newest state of
every part that the runs before it left. What is finished is not run again, what was interrupted is resumed, and a
larger budget continues every run. What was really done is recorded: `run.json` beside each run, all of it together
in `training.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlib.audio.files import replace_folder, write_text
from srlib.errors import SrlibError
from srlib.machine import hardware
from srlib.training.config import TrainConfig, read_toml
from srlib.training.publish import publish, training_record

# What a run of a stage leaves for those after it; the first diffusion run fits the prior.
PARTS = {"vae": ("vae",), "vocoder": ("vocoder",), "ldm": ("prior", "unet")}
_NO_LIMIT = 10**9  # steps, where the clock ends a run
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def retrain(
    recipe: str | Path,
    data: str,
    out: str | Path,
    budget: float | None = None,
    init: str | Path | None = None,
    only: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Train the runs of a recipe folder and return the assembled pipeline folder, `out`/pipeline (`out` with `only`).

    Args:
        data: as for `srlib.training.loop.train`.
        out: one folder a run, named as its file.
        budget: seconds for each stage, shared among its runs as their steps are; None goes by steps.
        init: pipeline folder that the first runs start from; None starts from random weights.
        only: names of runs to train now; the others are left as they are.
        settings: settings of every run, over those in the files.
    """
    from srlib.training.loop import train

    recipe, out = Path(recipe), Path(out)
    order, apart = _order(recipe)
    if unknown := sorted(set(only) - {*order, *apart}):
        raise SrlibError(f"{recipe} has no run {unknown[0]!r}: choose of {', '.join([*order, *apart])}.")
    configs = {name: read_toml(recipe / f"{name}.toml") | dict(settings or {}) for name in [*order, *apart]}
    for name, seconds in _shares(configs, budget, apart).items():
        if only and name not in only:
            continue
        if _is_finished(out / name, seconds):
            print(f"{name}: finished before", flush=True)
            continue
        print(f"{name}: {'by its steps' if seconds is None else f'{seconds:.0f} s'}", flush=True)
        before = order[: order.index(name)] if name in order else [n for n in order if _stage(n) != _stage(name)]
        start = _start(out, name, before, init)
        train(
            _stage(name),
            configs[name],
            data,
            out / name,
            init=start,
            max_steps=None if seconds is None else _NO_LIMIT,
            resume=True,
            time_budget=seconds,
        )
        describe_run(out / name, data, seconds)
    if only:  # others may be at work beside this call
        return out
    write_text(out / "training.json", json.dumps(training_record(out), indent=1) + "\n")
    return assemble(out, order, out / "pipeline")


def assemble(runs: Path, order: Sequence[str], out: Path) -> Path:
    """A pipeline folder of the newest state of each part among the finished ones of `order`, oldest first."""
    finished = [name for name in order if (runs / name / "pipeline" / "model_index.json").is_file()]
    if not finished:
        raise SrlibError(f"{runs} holds no finished run of {', '.join(order) or 'this recipe'}: train one first.")
    newest = {part: name for name in finished for part in PARTS[_stage(name)]}

    def copy(whole: Path) -> None:
        shutil.copytree(runs / finished[-1] / "pipeline", whole)
        for part, name in newest.items():
            shutil.rmtree(whole / part)
            shutil.copytree(runs / name / "pipeline" / part, whole / part)

    replace_folder(out, copy)
    return out


def describe_run(folder: Path, data: str, budget: float | None) -> None:
    """Write `run.json` beside a finished run: the command, how long it took on what, and the corpus."""
    rows = (folder / "log.csv").read_text(encoding="utf-8").splitlines()
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    record = {
        "command": shlex.join(["python", "-m", "srlib.training.weights", *sys.argv[1:]]),
        "budget_seconds": budget,
        "steps": int(last["global_step"]),
        "minutes": round(float(last["wall_time"]) / 60, 2),
        "hardware": hardware(),
        "corpus": describe_corpus(data),
    }
    write_text(folder / "run.json", json.dumps(record, indent=1) + "\n")


def describe_corpus(data: str) -> dict[str, Any]:
    """The tracks of a data set's training and validation splits, and a hash that changes with any of them."""
    from srlib.data.tracks import load_dataset

    record: dict[str, Any] = {"name": Path(data).name}
    lines = []
    for split in ("train", "valid"):
        tracks = load_dataset(data, split)
        lines += [f"{split} {t.name} {t.seconds:.3f} {t.bandwidth_hz} {t.collection} {t.weight}" for t in tracks]
        record[split] = [track.name for track in tracks]
        record[f"{split}_weights"] = {track.name: track.weight for track in tracks if track.weight != 1}
        record[f"{split}_minutes"] = round(sum(track.seconds for track in tracks) / 60, 1)
    return record | {"sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90s, 2min or 1h; a bare number is seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*(s|min|h)?", text.strip())
    if not match or float(match[1]) == 0:
        raise SrlibError(f"{text!r} is no time: give one such as 90s, 2min or 1h.")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _order(recipe: Path) -> tuple[list[str], list[str]]:
    path = recipe / "runs.toml"
    if not path.is_file():
        hint = "--recipe names a folder with a runs.toml, such as recipes/compact in a checkout of the project"
        raise SrlibError(f"There is no {path}: {hint}.")
    plan = read_toml(path)
    order, apart = list(plan.get("order", ())), list(plan.get("apart", ()))
    wrong = [name for name in [*order, *apart] if _stage(name) not in PARTS]
    if wrong or not order or set(plan) - {"order", "apart"}:
        raise SrlibError(
            f"{recipe}/runs.toml does not list runs: give order = [...], and apart = [...] for those that nothing"
            f" starts from, with names that begin with {', '.join(PARTS)}."
        )
    return order, apart


def _stage(name: str) -> str:
    return name.partition("-")[0]


def _shares(
    configs: Mapping[str, Mapping[str, Any]], budget: float | None, apart: Sequence[str]
) -> dict[str, float | None]:
    """Seconds of each run: a stage's budget by the steps of its runs; runs that stand apart have one of their own."""
    if budget is None:
        return dict.fromkeys(configs)
    steps = {name: TrainConfig.load(config).max_steps for name, config in configs.items()}
    group = {name: name if name in apart else _stage(name) for name in configs}
    totals = {key: sum(steps[name] for name in steps if group[name] == key) for key in group.values()}
    return {name: budget * steps[name] / totals[group[name]] for name in configs}


def _is_finished(folder: Path, seconds: float | None) -> bool:
    """Whether a run came to its end, by its steps or by a budget: one no smaller than this, or any if this is None."""
    path = folder / "run.json"
    if not path.is_file():
        return False
    given = json.loads(path.read_text(encoding="utf-8"))["budget_seconds"]
    return given is None or seconds is None or given >= seconds


def _start(out: Path, name: str, before: Sequence[str], init: str | Path | None) -> str | None:
    """The pipeline folder a run starts from; a run that was begun keeps its own."""
    config = out / name / "config.json"
    if config.is_file():
        begun = json.loads(config.read_text(encoding="utf-8"))["init"]
        return None if begun == "None" else begun
    if any((out / earlier / "pipeline").is_dir() for earlier in before):
        return str(assemble(out, before, out / "init" / name))
    return str(init) if init else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srlib.training.weights", description="Retrain all weights of a recipe."
    )
    parser.add_argument("--recipe", default="recipes/compact", metavar="FOLDER", help="default: recipes/compact")
    parser.add_argument("--data", default="demo", metavar="ROOT", help="demo, musdb or a folder of audio")
    parser.add_argument("--out", default="runs/weights/compact", metavar="FOLDER", help="default: runs/weights/compact")
    parser.add_argument("--budget", default="", metavar="TIME", help="for each stage, e.g. 2min (default: by steps)")
    parser.add_argument("--init", metavar="FOLDER", help="pipeline folder that the first runs start from")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUN", help="train these runs alone")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run, in TOML")
    parser.add_argument("--publish", metavar="FOLDER", help="also write the weights to ship, in half precision")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; bad input ends with exit code 2 and one sentence."""
    args = _parser().parse_args(argv)
    try:
        try:
            settings = tomllib.loads("\n".join(args.set))
        except ValueError as error:
            raise SrlibError(f"--set {' '.join(args.set)} is not TOML ({error}): write e.g. batch_size=8.") from error
        budget = seconds_of(args.budget) if args.budget else None
        print(retrain(args.recipe, args.data, args.out, budget, args.init, args.only, settings))
        if args.publish:
            print(publish(args.out, args.publish))
    except SrlibError as error:
        print(f"srlib.weights: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
