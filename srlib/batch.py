"""A batch of restorations: a line for each file; what fails is named, and the rest goes on."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from srlib.audio import files, folders
from srlib.audio.decoding import is_pipe
from srlib.config import SAMPLE_RATE
from srlib.errors import IncompleteWarning, SrlibError

FAULT, INCOMPLETE = 2, 3  # exit codes: something was refused or failed; all was restored, but an input lacks a part
_SHOWN_SECONDS = 30  # of the spectrograms, from the middle of the file


@dataclass
class Batch:
    """What to restore, {input: output}, and how.

    Args:
        load: gives the pipeline; it is called once, when there is something to restore.
        options: of `RestorationPipeline.restore_file`.
        report: a JSON file for what was found in each recording.
        show: draw the spectrogram before and after as a PNG beside each output.
        shown: what the one output is called in its line and in the report, if it is not its path.
    """

    outputs: dict[Path, Path]
    load: Callable[[], Any]
    options: dict[str, Any]
    overwrite: bool = False
    skip_existing: bool = False
    report: Path | None = None
    show: bool = False
    shown: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # of the report
    faults: int = 0

    def run(self) -> int:
        """Restore all; the exit code is 0, FAULT or INCOMPLETE."""
        from tqdm import tqdm

        promised = self._checked()
        pipe = self.load() if promised else None
        bar = {"unit": "s", "bar_format": "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"}
        with tqdm(total=sum(promised.values()), disable=not sys.stderr.isatty(), **bar) as progress:
            for path in promised:
                with self._naming(path):
                    line = self._restore(pipe, path, self.outputs[path], progress.update)
                    try:
                        tqdm.write(line)
                        sys.stdout.flush()
                    except BrokenPipeError:
                        hush()
        if self.report:
            files.write_text(self.report, json.dumps(self.rows, indent=2) + "\n")
        incomplete = any(row.get("incomplete") for row in self.rows)
        return FAULT if self.faults else INCOMPLETE if incomplete else 0

    def _checked(self) -> dict[Path, float]:
        """Inputs that can be restored, and their seconds by their headers; the others are named before any work."""
        promised, equal = {}, folders.collisions(self.outputs)
        if self.report:
            folders.check_output(self.report, self.outputs, True, (".json",))
        wanted = {path: out for path, out in self.outputs.items() if not (self.skip_existing and out.is_file())}
        if kept := len(self.outputs) - len(wanted):
            print(f"srlib: {kept} of {len(self.outputs)} outputs exist already and are kept.", file=sys.stderr)
        there = [out for out in wanted.values() if out.is_file()]
        if len(wanted) > 1 and there and not self.overwrite:
            several = f"{len(there)} of {len(wanted)} outputs exist already, such as {there[0]}"
            raise SrlibError(f"{several}: add --skip-existing to keep them, or --overwrite to replace them.")
        for path, out in wanted.items():
            if path not in equal:
                folders.check_output(out, self.outputs, self.overwrite)
        for path, out in wanted.items():
            with self._naming(path):
                if path in equal:
                    raise SrlibError(f"{path}: another input would be written to {out} too; restore it elsewhere.")
                header = None if is_pipe(path) else files.info(path)
                promised[path] = (header.samples or 0) / header.sample_rate if header else 0.0
        return promised

    def _restore(self, pipe: Any, path: Path, out: Path, progress: Callable[[float], None]) -> str:
        """Restore a file, and give its line."""
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")  # the findings hold them
            findings = pipe.restore_file(path, out, progress, **self.options)
        shown = self.shown or str(out)
        row = {"file": str(path), "output": shown} | findings.as_dict()
        row["incomplete"] = any(issubclass(warning.category, IncompleteWarning) for warning in caught)
        self.rows.append(row)
        if self.show:
            _draw(path, out)
        took = f"{findings.seconds:.1f} s restored in {time.perf_counter() - started:.1f} s"
        return f"{shown}: {findings.sentence()}; {took}"

    @contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        """Name the file in the sentence of an error; of several files, print it and go on with the next."""
        with naming(path, self._fault if len(self.outputs) > 1 else None):
            yield

    def _fault(self, path: Path, sentence: str) -> None:
        self.faults += 1
        self.rows.append({"file": str(path), "error": sentence})
        print("srlib:", sentence, file=sys.stderr)


def load(model: str, device: str | None, asked: dict[str, Any]) -> Any:
    """The pipeline of a model on a device; what it can do for no file is refused before the first."""
    import torch

    from srlib.restore.options import Options
    from srlib.restore.pipeline import RestorationPipeline

    cuda = torch.cuda.is_available()
    device = device or ("cuda" if cuda else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?" if cuda else "cpu", device):
        raise SrlibError(f"There is no device {device!r} here: use cpu, or cuda where torch sees one.")
    pipe = RestorationPipeline.from_pretrained(model).to(device)
    Options(**{name: value for name, value in asked.items() if name not in ("sample_rate", "subtype")}).sampling(pipe)
    return pipe


@contextmanager
def naming(path: Path, fault: Callable[[Path, str], None] | None = None) -> Iterator[None]:
    """Name the file in the sentence of an error, and raise it, or hand it to `fault`."""
    try:
        yield
    except (SrlibError, OSError) as error:
        sentence = " ".join(str(error).split())
        named = sentence if path.name in sentence else f"{path}: {sentence}"
        if fault is None:
            raise SrlibError(named) from error
        fault(path, named)


def read_record(path: Path) -> Any:
    """The degradation of a record that `degrade` wrote."""
    from srlib.degrade import Degradation

    with naming(path):
        return Degradation.from_json(path.read_text(encoding="utf-8", errors="replace"))


def compare(
    pairs: dict[str, list[Path]], cutoff_hz: float | None, record: Path | None
) -> tuple[list[dict[str, Any]], int]:
    """Scores of {name: (reference, restored, and maybe degraded)}, and how many of several pairs have none.

    Such a pair is named on standard error; of a single one the error is raised.
    """
    from srlib.measure import metrics

    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for name, paths in pairs.items():
        with naming(paths[1], (lambda _, sentence: faults.append(sentence)) if len(pairs) > 1 else None):
            truth, estimate, *others = (files.resample(*files.read(path), SAMPLE_RATE) for path in paths)
            known = read_record(folders.record(record, name)) if record else None
            scores = metrics.evaluate(truth, estimate, SAMPLE_RATE, others[0] if others else None, cutoff_hz, known)
            rows.append({"file": name + paths[1].suffix} | scores)
    for sentence in faults:
        print("srlib:", sentence, file=sys.stderr)
    return rows, len(faults)


def hush() -> None:
    """Print into nothing from here on: whoever read the output, such as `head`, has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_in_order() -> None:
    """Let a closed terminal and `kill` end the program through its `finally`s, so that no temporary file stays."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))


@contextmanager
def standard_output() -> Iterator[Path]:
    """A .wav file to write, which goes to standard output when it is whole; what is printed goes to standard error."""
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
    """The spectrogram of a recording before and after, as a PNG beside the output."""
    from srlib.report import plots

    clips = {"input": _middle(path), "restored": _middle(out)}
    with files.atomic_path(out.with_name(out.name + ".png")) as part:
        plots.spectrograms(clips, path.name.encode("utf-8", "replace").decode()).savefig(part, format="png")


def _middle(path: Path) -> np.ndarray:
    """Up to 30 s from the middle of a file, mono, 48 kHz, `[samples]`."""
    header = files.info(path)
    wanted = _SHOWN_SECONDS * header.sample_rate
    wav, sample_rate = files.read(path, max(0, ((header.samples or 0) - wanted) // 2), wanted)
    return files.resample(files.to_mono(wav), sample_rate, SAMPLE_RATE)
