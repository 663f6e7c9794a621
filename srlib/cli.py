"""What the verbs of the command line do: check everything, call the library, print."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from srlib.audio import files as audio
from srlib.config import SAMPLE_RATE
from srlib.degrade import Degradation
from srlib.errors import SrlibError

OUTPUT_SUFFIXES = (".wav", ".flac")
_Job = tuple[Path, Path, float]  # input, output, seconds that the input's header promises


def restore(args: argparse.Namespace) -> int:
    """Restore one file into a file, or several into a folder; 2 if some of several could not be restored."""
    names = _restorable(args.inputs, Path(args.out))
    inputs, outputs = list(names), _restored_paths(names, args.out)
    for out in outputs:
        _check_output(out, inputs, args.overwrite)
    if "auto" in args.gap and len(args.gap) > 1:
        raise SrlibError("--gap auto finds all gaps itself: leave out the others.")
    faults: list[Path] | None = [] if len(inputs) > 1 else None
    jobs: list[_Job] = []
    for path, out in zip(inputs, outputs, strict=True):
        with _naming(path, faults):
            header = audio.info(path)
            jobs.append((path, out, header.samples / header.sample_rate))
    if jobs:
        _restore_each(jobs, args, faults)
    return 2 if faults else 0


def _restore_each(jobs: list[_Job], args: argparse.Namespace, faults: list[Path] | None) -> None:
    """Restore file by file, behind one progress bar; `faults` as in `_naming`."""
    from tqdm import tqdm

    from srlib.restore.options import Options

    asked = {
        "num_inference_steps": args.steps,
        "num_samples": args.samples,
        "generator": args.seed,
        "guidance_scale": args.guidance,
        "eta": args.eta,
        "scheduler": args.scheduler,
        "cutoff_hz": args.cutoff_hz,
        "merge": args.merge,
        "gaps": "auto" if "auto" in args.gap else args.gap,
    }
    pipe = _load_pipeline(args.model, args.device)
    Options(**asked).sampling(pipe)  # what no file could change is refused before the first
    bar = {"unit": "s", "bar_format": "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"}
    total = sum(seconds for *_, seconds in jobs)
    with tqdm(total=total, disable=not sys.stderr.isatty(), **bar) as progress, _termination():
        for path, out, _ in jobs:
            started = time.perf_counter()
            with _naming(path, faults):
                seconds = pipe.restore_file(path, out, progress.update, **asked)
                tqdm.write(f"{out}: {seconds:.1f} s restored in {time.perf_counter() - started:.1f} s")


@contextmanager
def _naming(path: Path, faults: list[Path] | None) -> Iterator[None]:
    """Name the file in the sentence of an error; with a list of faults, print it and go on with the next file."""
    try:
        yield
    except (SrlibError, OSError) as error:
        sentence = " ".join(str(error).split())
        named = sentence if path.name in sentence else f"{path}: {sentence}"
        if faults is None:
            raise SrlibError(named) from error
        print("srlib:", named, file=sys.stderr)
        faults.append(path)


@contextmanager
def _termination() -> Iterator[None]:
    """Leave in order when asked to terminate, so that no temporary file stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _restorable(given: list[str], out: Path) -> dict[Path, str]:
    """The inputs and what each is called below OUT; of a folder all audio in it, but for an OUT that lies there."""
    names: dict[Path, str] = {}
    for path in map(Path, given):
        inside = _audio_files(path) if path.is_dir() else {path.stem: path}
        found = _without(inside, path, out)
        if not found:
            raise SrlibError(f"{path}: this folder holds no audio files.")
        if left := len(inside) - len(found):
            print(f"srlib: {out} is where the output goes: {left} audio files in it are left out.", file=sys.stderr)
        names |= {file: name for name, file in found.items()}
    return names


def _restored_paths(inputs: dict[Path, str], out: str) -> list[Path]:
    """OUT itself for one input and a file name; else the input's name + .wav in the folder OUT."""
    folder = Path(out)
    if len(inputs) == 1 and folder.suffix.lower() in OUTPUT_SUFFIXES and not folder.is_dir():
        return [folder]
    if folder.suffix and not folder.is_dir() and not out.endswith(os.sep):
        want = "one of .wav, .flac" if len(inputs) == 1 else "a folder, since there are several inputs"
        raise SrlibError(f"{out}: the output has to be {want}.")
    outputs = [folder / f"{name}.wav" for name in inputs.values()]
    for i, path in enumerate(outputs):
        if path in outputs[:i]:
            raise SrlibError(f"{path}: two inputs would be written there; restore them into different folders.")
    return outputs


def _check_output(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """Refuse an output that is an input, exists already, or is of a kind that is not written."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise SrlibError(f"{out}: the output has to be one of {', '.join(OUTPUT_SUFFIXES)}.")
    if any(path.exists() and out.exists() and out.samefile(path) for path in inputs):
        raise SrlibError(f"{out}: this is an input, which is never overwritten; name another output.")
    if out.is_dir():
        raise SrlibError(f"{out}: this is a folder; name a file.")
    if out.exists() and not overwrite:
        raise SrlibError(f"{out}: exists already; add --overwrite to replace it.")


def _check_degradation(path: Path, degradation: Degradation, wav: np.ndarray, sample_rate: int) -> None:
    try:
        degradation.check(sample_rate, wav.shape[-1])
    except SrlibError as error:
        raise SrlibError(f"{path}: {error}") from None


def _load_pipeline(model: str, device: str | None) -> Any:
    """The model on the device asked for: by default CUDA where there is one."""
    import torch

    from srlib.restore.pipeline import RestorationPipeline

    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise SrlibError(f"There is no device {device!r}: use cpu or cuda.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise SrlibError(f"The device {device} is not supported: use cpu or cuda.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SrlibError(f"The device {device} was asked for, but torch sees no CUDA here: use cpu.")
    return RestorationPipeline.from_pretrained(model).to(chosen)


def degrade(args: argparse.Namespace) -> None:
    """Write a degraded copy, and the record that replays it."""
    path, out = Path(args.input), Path(args.out)
    record = Path(f"{out}.json")
    _check_output(out, [path], args.overwrite)
    if record.exists() and not args.overwrite:
        raise SrlibError(f"{record}: exists already; add --overwrite to replace it.")
    wav, sample_rate = audio.read(path)
    degradation = _degradation(args, sample_rate)
    _check_degradation(path, degradation, wav, sample_rate)
    degraded = degradation.apply(wav, sample_rate)
    with audio.atomic_path(record) as unfinished:  # both files or neither
        unfinished.write_text(degradation.to_json(sample_rate), encoding="utf-8")
        audio.write(out, degraded, sample_rate)
    print(f"{out}: degraded; {record} replays it")


def _degradation(args: argparse.Namespace, sample_rate: int) -> Degradation:
    """What the options ask for: a drawn, a recorded or a described degradation, and never nothing."""
    from srlib.degrade import DegradationConfig, sample

    described = ("cutoff_hz", "filter", "order", "noise", "amplitude", "tone_hz", "noise_first", "gap")
    given = [f"--{name.replace('_', '-')}" for name in described if getattr(args, name) is not None]
    if args.random and args.replay:
        raise SrlibError("--random and --replay exclude each other: give one of them.")
    if args.replay and args.seed is not None:
        given.append("--seed")
    if given and (args.random or args.replay):
        source = "--random" if args.random else "--replay"
        raise SrlibError(f"{source} decides {', '.join(given)} itself: leave that out.")
    if args.random:
        return sample(np.random.default_rng(args.seed or 0), DegradationConfig().for_sample_rate(sample_rate))
    if args.replay:
        recorded = _read_record(Path(args.replay))
        if recorded.does_nothing:
            raise SrlibError(f"{args.replay}: this record says to do nothing: give one with a cutoff, noise or gaps.")
        return recorded
    return _described(args)


def _described(args: argparse.Namespace) -> Degradation:
    noise = args.noise or "none"
    if args.cutoff_hz is None and (args.filter or args.order is not None):
        raise SrlibError("--filter and --order describe a low-pass filter: add --cutoff-hz.")
    if noise == "none" and (args.amplitude is not None or args.tone_hz or args.noise_first):
        raise SrlibError("--amplitude, --tone-hz and --noise-first describe noise: add --noise tone or --noise white.")
    if noise != "none" and not args.amplitude:
        raise SrlibError(f"--noise {noise} needs an --amplitude above zero, such as 0.01.")
    if (noise == "tone") != (args.tone_hz is not None):
        raise SrlibError("--noise tone and --tone-hz HZ go together: give both or neither.")
    degradation = Degradation(
        cutoff_hz=args.cutoff_hz,
        filter_type=args.filter or "cheby1",
        filter_order=8 if args.order is None else args.order,
        noise_type=noise,
        noise_amplitude=args.amplitude or 0.0,
        tone_hz=args.tone_hz,
        gaps=tuple(args.gap or ()),
        seed=args.seed or 0,
        noise_first=bool(args.noise_first),
    )
    if degradation.does_nothing:
        raise SrlibError("There is nothing to do: give --cutoff-hz, --noise, --gap, --random or --replay.")
    return degradation


def _read_record(path: Path) -> Degradation:
    try:
        return Degradation.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise SrlibError(f"{path}: this is no text: give the .json file written beside the audio.") from None
    except SrlibError as error:
        raise SrlibError(f"{path}: {error}") from None


def evaluate(args: argparse.Namespace) -> None:
    """Print the metrics of one pair of files, or of every pair of two folders."""
    reference, restored = Path(args.reference), Path(args.restored)
    folders = reference.is_dir() and restored.is_dir()
    if not folders and (reference.is_dir() or restored.is_dir()):
        raise SrlibError(f"{reference} and {restored}: give two files or two folders, not one of each.")
    pairs = _pairs(reference, restored) if folders else {restored.stem: (reference, restored)}
    degraded = _degraded_of(args.degraded, pairs, folders) if args.degraded else {}
    rows = []
    for stem, (ref, est) in pairs.items():
        record = _record_of(args.record, stem) if args.record else None
        rows.append({"file": stem + est.suffix} | _evaluate_pair(ref, est, degraded.get(stem), record, args.cutoff_hz))
    if args.json:
        finite = [_finite(row) for row in rows]
        print(json.dumps(finite if folders else finite[0], indent=2))
    else:
        _print_table(rows)


def _without(found: dict[str, Path], folder: Path, restored: Path) -> dict[str, Path]:
    """Audio `found` in a folder, less what lies in `restored` where that is a folder in it."""
    restored = restored.resolve()
    if folder.resolve() not in restored.parents:
        return found
    return {name: path for name, path in found.items() if restored not in path.resolve().parents}


def _audio_files(folder: Path) -> dict[str, Path]:
    """Audio of a folder and the folders in it, by path from there without the suffix."""
    inside = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    shown = {name: path for name, path in inside.items() if not any(part.startswith(".") for part in name.parts)}
    paths = {name: path for name, path in shown.items() if audio.is_audio_file(path)}
    found = {name.with_suffix("").as_posix(): path for name, path in paths.items()}
    if len(found) < len(paths):
        raise SrlibError(f"{folder}: holds audio files that differ only in their suffix; keep one of each name.")
    return found


def _pairs(reference: Path, restored: Path) -> dict[str, tuple[Path, Path]]:
    """Files of two folders by stem, since restoring a .flac writes a .wav."""
    references, estimates = _without(_audio_files(reference), reference, restored), _audio_files(restored)
    unpaired = sorted(references.keys() ^ estimates.keys())
    if unpaired or not references:
        what = f"{unpaired[0]} is only in one of them" if unpaired else "neither holds audio"
        raise SrlibError(f"{reference} and {restored}: the folders have to hold files of the same names, but {what}.")
    return {stem: (references[stem], estimates[stem]) for stem in references}


def _degraded_of(given: str, stems: Collection[str], folders: bool) -> dict[str, Path]:
    """The degraded file of every stem: one for the one there is, or those in a folder."""
    path = Path(given)
    if path.is_dir() != folders:
        raise SrlibError(f"{path}: give a {'folder' if folders else 'file'} of degraded audio, like the others.")
    found = _audio_files(path) if folders else dict.fromkeys(stems, path)
    if missing := next((stem for stem in stems if stem not in found), None):
        raise SrlibError(f"{path}: holds no audio file named {missing}.")
    return found


def _record_of(given: str, stem: str) -> Path:
    """One record for every file, or the record in a folder that `srlib degrade` wrote for a stem."""
    path = Path(given)
    if not path.is_dir():
        return path
    for suffix in (*OUTPUT_SUFFIXES, ""):
        if (found := path / f"{stem}{suffix}.json").is_file():
            return found
    raise SrlibError(f"{path}: holds no record for {stem}, such as {stem}.wav.json.")


def _evaluate_pair(
    reference: Path, restored: Path, degraded: Path | None, record: Path | None, cutoff_hz: float | None
) -> dict[str, float]:
    """Metrics of one pair, at 48 kHz."""
    from srlib.measure import metrics

    wavs = [_read_48k(path) for path in (reference, restored)]
    degraded_wav = _read_48k(degraded) if degraded else None
    degradation = _read_record(record) if record else None
    try:
        return metrics.evaluate(*wavs, SAMPLE_RATE, degraded_wav, cutoff_hz, degradation)
    except SrlibError as error:
        raise SrlibError(f"{restored}: {error}") from None


def _read_48k(path: Path) -> np.ndarray:
    return audio.resample(*audio.read(path), SAMPLE_RATE)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has neither NaN (undefined) nor infinity (a perfect match): null stands for both."""
    return {key: value if isinstance(value, str) or math.isfinite(value) else None for key, value in row.items()}


def _print_table(rows: list[dict[str, Any]]) -> None:
    """One metric a line; folders add the mean and the median over files."""
    for row in rows:
        print(row["file"])
        for key, value in row.items():
            if key != "file":
                print(f"  {key:<20} {value:10.4f}")
    if len(rows) > 1:
        print(f"mean and median over {len(rows)} files")
        for key in dict.fromkeys(key for row in rows for key in row if key != "file"):
            # Only tones have a tone's metrics; and NaN, which silence has, is in no order that a median could follow.
            values = [row[key] for row in rows if key in row and not math.isnan(row[key])]
            mean = sum(values) / len(values) if values else math.nan  # fmean raises for opposite infinities
            count = f"  of {len(values)} files" if len(values) < len(rows) else ""
            print(f"  {key:<20} {mean:10.4f} {median(values or [math.nan]):10.4f}{count}")


def train(args: argparse.Namespace) -> None:
    """Train one part of the model."""
    import warnings

    from srlib.training import loop as training

    if args.resume and not (Path(args.out) / training.CHECKPOINT).is_file():  # or it was stopped before its first one
        print(f"srlib: {args.out} holds no checkpoint: this run starts anew.", file=sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"srlib: {message}\n"
    run = training.train(
        args.stage, args.config, args.data, args.out, init=args.init, max_steps=args.max_steps, resume=args.resume
    )
    print(run)


def import_audiosr(args: argparse.Namespace) -> None:
    """Convert AudioSR's checkpoint to a model folder; its path is the last line."""
    from srlib.audiosr import checkpoint as convert

    print(convert.import_audiosr(args.checkpoint, args.out, args.dtype, args.ema))


def reproduce(args: argparse.Namespace) -> None:
    """Run the notebooks whose inputs changed."""
    from srlib import config
    from srlib.report.reproduce import reproduce as run_chain

    run_chain(config.profile(args.profile).name, start=args.start, only=args.only, force=args.force)


def report(args: argparse.Namespace) -> None:
    """Typeset the PDF, and fill the README's table if it is about the demo; the path is the last line."""
    from srlib import config
    from srlib.report import pdf as reporting

    profile = config.profile(args.profile).name
    path = reporting.build(profile, draft=args.draft)
    if profile == "demo" and not args.draft:
        reporting.update_readme(profile)
    print(path)
