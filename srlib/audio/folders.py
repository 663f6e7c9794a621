"""Which audio files are given as files or folders, and where what is made of them goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from srlib.audio.files import is_audio_file
from srlib.errors import SrlibError

OUTPUT_SUFFIXES = (".wav", ".flac")


def audio_files(folder: Path) -> dict[str, Path]:
    """Audio of a folder and the folders in it, by its path from there without the suffix; no hidden files.

    Raises:
        SrlibError: for two files that differ only in their suffix.
    """
    inside = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    shown = {name: path for name, path in inside.items() if not any(part.startswith(".") for part in name.parts)}
    paths = {name: path for name, path in shown.items() if is_audio_file(path)}
    found = {name.with_suffix("").as_posix(): path for name, path in paths.items()}
    if len(found) < len(paths):
        raise SrlibError(f"{folder}: holds audio files that differ only in their suffix; keep one of each name.")
    return found


def _outside(found: dict[str, Path], folder: Path, written: Path) -> dict[str, Path]:
    """The files of a folder without those in `written`, where that is a folder inside it."""
    written = written.resolve()
    if folder.resolve() not in written.parents:
        return found
    return {name: path for name, path in found.items() if written not in path.resolve().parents}


def outputs(given: Iterable[Path], out: str, overwrite: bool) -> dict[Path, Path]:
    """The file that each input is to be restored into, {input: output}.

    Args:
        given: files, or folders that stand for all audio in them, without what lies in `out`.
        out: a file for a single input; else a folder, in which an output has its input's name and .wav.
        overwrite: whether an output may exist already.

    Raises:
        SrlibError: for an empty folder, and for outputs that collide or cannot be written.
    """
    names = _inputs(given, Path(out))
    folder = Path(out)
    if len(names) == 1 and folder.suffix.lower() in OUTPUT_SUFFIXES and not folder.is_dir():
        paths = [folder]
    elif folder.suffix and not folder.is_dir() and not out.endswith(os.sep):
        want = "one of .wav, .flac" if len(names) == 1 else "a folder, since there are several inputs"
        raise SrlibError(f"{out}: the output has to be {want}.")
    else:
        paths = [folder / f"{name}.wav" for name in names.values()]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise SrlibError(f"{path}: two inputs would be written there; restore them into different folders.")
        check_output(path, names, overwrite)
    return dict(zip(names, paths, strict=True))


def _inputs(given: Iterable[Path], out: Path) -> dict[Path, str]:
    """The files that are given, and what each is called below `out`; what lies in `out` is no input."""
    names: dict[Path, str] = {}
    for path in given:
        inside = audio_files(path) if path.is_dir() else {path.stem: path}
        found = _outside(inside, path, out)
        if not found:
            raise SrlibError(f"{path}: this folder holds no audio files.")
        if left := len(inside) - len(found):
            print(f"srlib: {out} is where the output goes: {left} audio files in it are left out.", file=sys.stderr)
        names |= {file: name for name, file in found.items()}
    return names


def check_output(out: Path, given: Collection[Path], overwrite: bool) -> None:
    """Refuse an output that is an input, that exists already, or whose format is not written."""
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise SrlibError(f"{out}: the output has to be one of {', '.join(OUTPUT_SUFFIXES)}.")
    if any(path.exists() and out.exists() and out.samefile(path) for path in given):
        raise SrlibError(f"{out}: this is an input, which is never overwritten; name another output.")
    if out.is_dir():
        raise SrlibError(f"{out}: this is a folder; name a file.")
    if out.exists() and not overwrite:
        raise SrlibError(f"{out}: exists already; add --overwrite to replace it.")


def matched(reference: Path, restored: Path, degraded: Path | None = None) -> dict[str, list[Path]]:
    """Files that belong together, in the order of the arguments, by name without suffix: a .flac becomes a .wav.

    Args:
        reference: a file, or a folder of references; `restored` can be a folder in it.
        restored: a file, or a folder of files with the same names.
        degraded: the same, and it can hold more files.

    Raises:
        SrlibError: for folders that do not match, or a file beside a folder.
    """
    given = [path for path in (reference, restored, degraded) if path]
    if len({path.is_dir() for path in given}) > 1:
        raise SrlibError(f"{', '.join(map(str, given))}: give only files or only folders.")
    if not reference.is_dir():
        return {restored.stem: given}
    first, *others = (audio_files(path) for path in given)
    first = _outside(first, reference, restored)
    for path, files in zip(given[1:], others, strict=True):
        lone = sorted(first.keys() ^ files.keys() if path == restored else first.keys() - files.keys())
        if lone or not first:
            what = f"{lone[0]} is only in one of them" if lone else "neither holds audio"
            raise SrlibError(f"{reference} and {path}: the folders have to hold files of the same names, but {what}.")
    return {name: [first[name], *(files[name] for files in others)] for name in first}


def record(path: Path, name: str) -> Path:
    """`path` itself if it is a file; else the record in this folder that `srlib degrade` wrote for a file's name."""
    if not path.is_dir():
        return path
    for suffix in (*OUTPUT_SUFFIXES, ""):
        if (found := path / f"{name}{suffix}.json").is_file():
            return found
    raise SrlibError(f"{path}: holds no record for {name}, such as {name}.wav.json.")
