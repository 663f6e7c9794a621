"""Lists of audio files: inputs from files and folders, the output of each, and files of the same name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from srlib.audio.decoding import is_audio_file, is_pipe
from srlib.audio.files import OUTPUT_SUFFIXES
from srlib.errors import SrlibError


def audio_files(folder: Path, written: Path | None = None) -> dict[str, Path]:
    """Audio of a folder and the folders in it, by its path from there without the suffix; nothing hidden.

    Names that differ only in their suffix keep it: `01.mp3` and `01.wav`. `written` is a folder of outputs; its files
    are left out if it lies in this one.
    """
    left_out = written.resolve() if written and folder.resolve() in written.resolve().parents else None
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and is_audio_file(path) and left_out not in path.resolve().parents:  # a loop of links is no file
            found[name] = path
    stems = Counter((*found, *(name.with_suffix("") for name in found)))  # `01.mp3.flac` has the name of `01.mp3`
    unique = {name: name.with_suffix("") if stems[name.with_suffix("")] == 1 else name for name in found}
    return {unique[name].as_posix(): path for name, path in found.items()}


def outputs(given: Collection[Path], out: str, suffix: str = ".wav") -> dict[Path, Path]:
    """The file that each input is to be restored into, {input: output}.

    Args:
        given: files, or folders, which mean all audio in them except files in `out`.
        out: a file for a single input; else a folder, in which an output has its input's name and `suffix`.
        suffix: appended to the name, such as `.flac` or `_restored.wav`.

    Raises:
        SrlibError: for an empty folder, and an output that cannot be written in its format.
    """
    folder = Path(out)
    if not suffix.lower().endswith(OUTPUT_SUFFIXES) or {"/", "\\"} & set(suffix):
        known = ", ".join(OUTPUT_SUFFIXES)
        raise SrlibError(f"The suffix of outputs is {suffix!r}: end it with one of {known}, without a slash.")
    names: dict[Path, str] = {}  # {input: its name below `out`}
    for path in given:
        found = audio_files(path, folder) if path.is_dir() else {"restored" if is_pipe(path) else path.stem: path}
        if not found:
            raise SrlibError(f"{path}: this folder holds no audio files.")
        names |= {file: name for name, file in found.items()}
    alone = len(names) == 1 and next(iter(names)) in given
    named = re.search(r"\.[A-Za-z]\w{1,3}$", out) and not folder.is_dir()  # as a file is
    if alone and named:
        return {next(iter(names)): folder}
    if named and folder.suffix.lower() in OUTPUT_SUFFIXES:
        raise SrlibError(f"{out}: the output has to be a folder, since there are several inputs.")
    return {path: folder / f"{name}{suffix}" for path, name in names.items()}


def check_output(out: Path, given: Collection[Path], overwrite: bool, formats: Sequence[str] = OUTPUT_SUFFIXES) -> None:
    """Refuse an output that is an input, that exists already, or whose format is not written."""
    if out.suffix.lower() not in formats:
        raise SrlibError(f"{out}: the output has to be one of {', '.join(formats)}.")
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
    first, *others = (audio_files(path, restored if path == reference else None) for path in given)
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
