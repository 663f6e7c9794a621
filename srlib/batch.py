"""A batch of restorations, with a line for each file; a file that fails is named and does not stop the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srlib.audio import files, folders
from srlib.audio.decoding import info, is_pipe
from srlib.config import SAMPLE_RATE
from srlib.errors import IncompleteWarning, SrlibError, input_name, one_line

FAULT, INCOMPLETE = 2, 3  # exit codes: a file failed; all were restored, but an input was truncated or damaged
_SHOWN_SECONDS = 30  # of the spectrograms, from the middle of the file
_BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"


def restore_all(
    outputs: dict[Path, Path],
    load: Callable[[], Any],
    options: dict[str, Any],
    overwrite: bool = False,
    skip_existing: bool = False,
    report: Path | None = None,
    show: bool = False,
    shown: str | None = None,
) -> int:
    """Restore recordings, and give the exit code: 0, FAULT or INCOMPLETE.

    Args:
        outputs: {input: output}.
        load: returns the pipeline; it is called once, if there is something to restore.
        options: of `RestorationPipeline.restore_file`.
        overwrite: replace outputs that exist.
        skip_existing: leave out inputs whose output exists.
        report: a JSON file for the findings of each recording.
        show: draw the spectrogram before and after as a PNG beside each output.
        shown: name of a single output in its line and in the report, if it is not its path.

    Raises:
        SrlibError: for an error in a single recording; with several it is printed and the next one is restored.
    """
    from tqdm import tqdm

    if report:
        folders.check_output(report, outputs, True, (".json",))
    rows: list[dict[str, Any]] = []  # of the report
    failed = rows if len(outputs) > 1 else None
    promised = _promised_seconds(outputs, overwrite, skip_existing, failed)
    pipe = load() if promised else None
    with tqdm(total=sum(promised.values()), disable=not sys.stderr.isatty(), unit="s", bar_format=_BAR) as progress:
        for path in promised:
            with naming(path, failed):
                row, line = _restore(pipe, path, outputs[path], shown or str(outputs[path]), options, progress.update)
                rows.append(row)
                if show:
                    _draw(path, outputs[path])
                try:
                    tqdm.write(line)
                    sys.stdout.flush()
                except BrokenPipeError:
                    hush()
    if report:
        files.write_text(report, json.dumps(rows, indent=2) + "\n")
    if any("error" in row for row in rows):
        return FAULT
    return INCOMPLETE if any(row["incomplete"] for row in rows) else 0


def _promised_seconds(
    outputs: dict[Path, Path], overwrite: bool, skip_existing: bool, failed: list[dict[str, Any]] | None
) -> dict[Path, float]:
    """Inputs that can be restored, and their seconds by the header; the others are named before any work."""
    wanted = {path: out for path, out in outputs.items() if not (skip_existing and os.path.isfile(out))}
    if kept := len(outputs) - len(wanted):
        print(f"srlib: {kept} of {len(outputs)} outputs exist already and are kept.", file=sys.stderr)
    there = [out for out in wanted.values() if os.path.isfile(out)]  # False for a name that is too long
    if len(wanted) > 1 and there and not overwrite:
        several = f"{len(there)} of {len(wanted)} outputs exist already, such as {there[0]}"
        raise SrlibError(f"{several}: add --skip-existing to keep them, or --overwrite to replace them.")
    inputs_of, promised = Counter(outputs.values()), {}
    for path, out in wanted.items():
        with naming(path, failed):
            if inputs_of[out] > 1:
                raise SrlibError(f"{path}: another input would be written to {out} too; restore it elsewhere.")
            folders.check_output(out, outputs, overwrite)
            header = None if is_pipe(path) else info(path)
            promised[path] = (header.samples or 0) / header.sample_rate if header else 0.0
    return promised


def _restore(
    pipe: Any, path: Path, out: Path, shown: str, options: dict[str, Any], progress: Callable[[float], None]
) -> tuple[dict[str, Any], str]:
    """Restore a file; its row of the report and its line."""
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # the findings include them
        findings = pipe.restore_file(path, out, progress, **options)
    row = {"file": str(path), "output": shown} | findings.as_dict()
    row["incomplete"] = any(issubclass(warning.category, IncompleteWarning) for warning in caught)
    took = f"{findings.seconds:.1f} s restored in {time.perf_counter() - started:.1f} s"
    return row, f"{shown}: {findings.sentence()}; {took}"


def load(model: str, device: str | None, asked: dict[str, Any]) -> Any:
    """The pipeline of a model on a device; options that the model does not support raise SrlibError."""
    import torch

    from srlib.restore.options import Options
    from srlib.restore.pipeline import RestorationPipeline

    cuda = torch.cuda.is_available()
    device = device or ("cuda" if cuda else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?" if cuda else "cpu", device):
        raise SrlibError(f"There is no device {device!r} here: use cpu, or cuda where torch sees one.")
    options = Options(**{name: value for name, value in asked.items() if name not in ("sample_rate", "subtype")})
    pipe = RestorationPipeline.from_pretrained(model).to(device)
    options.sampling(pipe)
    return pipe


@contextmanager
def naming(path: Path, failed: list[dict[str, Any]] | None = None) -> Iterator[None]:
    """Add the file's name to an error and raise it; with `failed`, print it, append its row, and continue."""
    name = input_name(path)
    try:
        yield
    except (SrlibError, OSError) as error:
        sentence = one_line(error)
        named = sentence if Path(name).name in sentence else f"{name}: {sentence}"
        if failed is None:
            raise SrlibError(named) from error
        print("srlib:", named, file=sys.stderr)
        failed.append({"file": str(path), "error": named})


def read_record(path: Path) -> Any:
    """The degradation of a record that `degrade` wrote."""
    from srlib.degrade import Degradation

    with naming(path):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise SrlibError(f"{path} cannot be read ({error.strerror}): give a record of `srlib degrade`.") from error
        return Degradation.from_json(text)


def compare(pairs: dict[str, list[Path]], cutoff_hz: float | None, record: Path | None) -> list[dict[str, Any]]:
    """Scores of {name: (reference, restored, and maybe degraded)}; the row of a bad pair among several has an error."""
    from srlib.measure import metrics

    rows: list[dict[str, Any]] = []
    for name, paths in pairs.items():
        with naming(paths[1], rows if len(pairs) > 1 else None):
            truth, estimate, *others = (files.resample(*files.read(path), SAMPLE_RATE) for path in paths)
            known = read_record(folders.record(record, name)) if record else None
            scores = metrics.evaluate(truth, estimate, SAMPLE_RATE, others[0] if others else None, cutoff_hz, known)
            rows.append({"file": name + paths[1].suffix} | scores)
    return rows


def hush() -> None:
    """Discard further output: its reader, such as `head`, has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_in_order() -> None:
    """Turn SIGTERM (`kill`) and SIGHUP (a closed terminal) into SystemExit, so that temporary files are removed."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextmanager
def standard_output() -> Iterator[Path]:
    """A .wav file to write, which is copied to standard output at the end; printed lines go to standard error."""
    printed, sys.stdout = sys.stdout, sys.stderr
    try:
        with tempfile.TemporaryDirectory(prefix="srlib-") as folder:
            out = Path(folder) / "output.wav"
            yield out
            if out.exists():
                with out.open("rb") as stream:
                    shutil.copyfileobj(stream, printed.buffer)
                printed.buffer.flush()
    finally:
        sys.stdout = printed


def _draw(path: Path, out: Path) -> None:
    """The spectrogram of a recording before and after, mono, as a PNG beside the output."""
    from srlib.report import plots

    clips = {}
    for name, file in {"input": path, "restored": out}.items():
        header = info(file)
        wanted = _SHOWN_SECONDS * header.sample_rate
        wav, sample_rate = files.read(file, max(0, ((header.samples or 0) - wanted) // 2), wanted)
        clips[name] = files.resample(files.to_mono(wav), sample_rate, SAMPLE_RATE)
    with files.atomic_path(out.with_name(out.name + ".png")) as part:
        plots.spectrograms(clips, path.name.encode("utf-8", "replace").decode()).savefig(part, format="png")
