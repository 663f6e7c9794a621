"""Data sets: the embedded demo music and MUSDB18 (both through `musdb`), folders of audio; splits and bandwidth."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import pandas as pd
from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, ValidationError
from scipy import ndimage, signal

from srlib.audio import files
from srlib.audio.decoding import find_ffmpeg, info
from srlib.audio.folders import audio_files
from srlib.config import SAMPLE_RATE, Profile
from srlib.errors import SrlibError
from srlib.settings import as_srlib_error

Split = Literal["train", "valid", "test"]
SPLITS: tuple[str, ...] = get_args(Split)
DEMO_ASSETS = Path(__file__).parents[1] / "assets" / "demo"
MUSDB_VALID_TRACKS = 10  # of musdb's own 14, as AudioSR's successors split it: 90 / 10 / 50
MUSDB_SIZES = {"train": 100, "test": 50}  # tracks in the folders of a complete MUSDB18
STEMS_BANDWIDTH_HZ = 16_000.0  # MUSDB18's AAC stops there (sigsep.github.io/datasets/musdb.html)
LOWEST_BANDWIDTH_HZ = 1000.0  # in a manifest; a lower value was probably meant in kHz
_CONTEXT_SECONDS = 1  # s, read on both sides of a crop: resampling it then equals cropping the resampled track
_SETUP_FILE = "setup.yaml"  # of the demo set: names of files and validation tracks, for musdb
_MOST_FAULTS = 20  # listed in one message


@dataclass(frozen=True)
class Track:
    """One piece of music. `sample_rate` (Hz) and `seconds` are the file's; `mixture` always gives 48 kHz mono."""

    name: str
    split: str  # train, valid or test
    path: Path
    sample_rate: int
    seconds: float
    artist: str = ""
    title: str = ""
    licence: str = ""
    collection: str = ""  # game, album or artist, whose tracks sound alike
    weight: float = 1.0  # factor on how often training draws it
    bandwidth_hz: float | None = None  # of the whole source track, Hz, where known

    def mixture(self, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Float32 [samples] at 48 kHz, mono: from `start` (s) on, `seconds` long or to the end of the track.

        A crop holds the samples that the same stretch of the whole, resampled track has.
        """
        total, first = round(self.seconds * SAMPLE_RATE), round(start * SAMPLE_RATE)
        last = total if seconds is None else min(total, first + round(seconds * SAMPLE_RATE))
        if not 0 <= first < last:
            raise SrlibError(f"Track {self.name} lasts {self.seconds:.2f} s: no audio at {start} s for {seconds} s.")
        # A whole second is a whole number of samples at every rate: the crop lies on the whole track's sample grid.
        begin = max(0, first // SAMPLE_RATE - _CONTEXT_SECONDS)
        count = (-(-last // SAMPLE_RATE) + _CONTEXT_SECONDS - begin) * self.sample_rate
        wav, _ = files.read(self.path, begin * self.sample_rate, count)
        wav = files.resample(files.to_mono(wav), self.sample_rate, SAMPLE_RATE)
        crop = wav[first - begin * SAMPLE_RATE : last - begin * SAMPLE_RATE]
        missing = (last - first - len(crop)) / SAMPLE_RATE
        if missing > 0.1:
            raise SrlibError(f"{self.path} ends {missing:.2f} s before its header says: get a whole copy.")
        return np.pad(crop, (0, last - first - len(crop)))  # AAC ends a few samples off its header


def load_dataset(dataset: str, split: str | None = None) -> list[Track]:
    """Tracks of a split (all without one), sorted by name.

    `dataset` is "demo", "musdb" (the folder in MUSDB_ROOT), or the path of a folder: of MUSDB18 or of any audio.
    """
    if split is not None and split not in SPLITS:
        raise SrlibError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if dataset == "demo":
        tracks = _load_demo(split)
    elif dataset == "musdb":
        tracks = _load_musdb(_musdb_root(), split)
    elif (folder := Path(dataset)).is_dir():
        tracks = _load_musdb(folder, split) if _musdb_kind(folder) else _load_folder(folder)
    else:
        raise SrlibError(f"There is no data set {dataset!r}: give demo, musdb or an existing folder.")
    tracks = sorted((track for track in tracks if split in (None, track.split)), key=lambda track: track.name)
    if not tracks:
        raise SrlibError(f"The data set {dataset} has no track{f' in its split {split}' if split else ''}.")
    return tracks


def for_profile(profile: Profile, split: str) -> list[Track]:
    """The tracks of a split that a profile works on: the first `profile.max_tracks[split]` by name."""
    return load_dataset(profile.dataset, split)[: profile.max_tracks.get(split)]


def excerpt(track: Track, profile: Profile) -> np.ndarray:
    """The fixed evaluation excerpt: `profile.seconds` from the middle of the track, float32 [samples], 48 kHz mono."""
    return track.mixture(max(0.0, (track.seconds - profile.seconds) / 2), profile.seconds)


def bandwidth_hz(wav: np.ndarray, sample_rate: int) -> float:
    """Measured bandwidth in Hz of [samples] or [channels, samples]; 0 for silence.

    The lowest frequency where the long-term power spectrum, median over 500 Hz, is 60 dB under its level at 1-4 kHz.
    This finds the low-pass edge of a lossy coder also if clipping has added sound above it.
    """
    frequencies, power = signal.welch(files.to_mono(wav), sample_rate, nperseg=2048, detrend=False)
    level = power[(frequencies >= 1000) & (frequencies <= 4000)].mean()
    smooth = ndimage.median_filter(power, max(1, round(500 / frequencies[1])))  # keeps edges
    absent = frequencies[(smooth <= level * 1e-6) & (frequencies > 1000)]
    return 0.0 if level == 0 else float([*absent, frequencies[-1]][0])


def _load_demo(split: str | None) -> list[Track]:
    if not (DEMO_ASSETS / "manifest.csv").is_file():
        raise SrlibError(f"The demo music is missing from {DEMO_ASSETS}: reinstall srlib with its assets.")
    rows = {Path(row["file"]).parent.name: row for row in _read_manifest(DEMO_ASSETS / "manifest.csv")}
    tracks = _load_musdb(DEMO_ASSETS, split, setup_file=_SETUP_FILE)
    return [replace(track, **_Row.model_validate(rows[track.name]).model_dump()) for track in tracks]


def _musdb_root() -> Path:
    value = os.environ.get("MUSDB_ROOT")
    root = Path(value or ".").expanduser()
    if not value or _musdb_kind(root) is None:
        where = "MUSDB18-HQ (https://zenodo.org/records/3338373, 23 GB) or MUSDB18 (https://zenodo.org/records/1117372)"
        layout = "which holds train/*/mixture.wav or train/*.stem.mp4"
        raise SrlibError(f"MUSDB_ROOT is {value or 'not set'}: set it to the unpacked folder of {where}, {layout}.")
    return root


def _musdb_kind(root: Path) -> str | None:
    """`wav` for the folders of MUSDB18-HQ, `stems` for those of MUSDB18, None for anything else."""
    for kind, pattern in (("wav", "*/mixture.wav"), ("stems", "*.stem.mp4")):
        if any(next((root / subset).glob(pattern), None) for subset in MUSDB_SIZES):
            return kind
    return None


def _load_musdb(root: Path, split: str | None, setup_file: str | None = None) -> list[Track]:
    """Read a folder in either of MUSDB18's layouts through musdb; `setup_file` brings a split other than musdb's.

    The first ten by name of musdb's validation tracks are `valid`; the rest of its train folder is `train`.
    """
    is_stems = _musdb_kind(root) == "stems"
    tracks = []
    for subset in MUSDB_SIZES:
        if split is not None and (subset == "test") != (split == "test"):
            continue
        sources, validation_tracks = _musdb_sources(root, subset, not is_stems, setup_file)
        if setup_file is None and len(sources) != MUSDB_SIZES[subset]:
            size = MUSDB_SIZES[subset]
            warnings.warn(f"{root}/{subset} holds {len(sources)} of MUSDB18's {size} tracks.", stacklevel=3)
        valid = sorted(validation_tracks)[:MUSDB_VALID_TRACKS]
        for source in sources:
            if source.samples is None:
                raise SrlibError(f"{source.path} is missing: unpack MUSDB18 again, or remove the track's folder.")
            where = "valid" if subset == "train" and source.name in valid else subset
            known = (source.name, where, Path(source.path), source.rate, source.samples / source.rate)
            artist = source.artist or ""
            facts: dict[str, Any] = {"artist": artist, "collection": artist, "title": source.title or ""}
            tracks.append(Track(*known, **facts, bandwidth_hz=STEMS_BANDWIDTH_HZ if is_stems else None))
    if is_stems:
        limit = "its music stops at 16 kHz, and what is trained or measured on it stops there too"
        warnings.warn(f"{root} is the stems version of MUSDB18: {limit}; MUSDB18-HQ has the full band.", stacklevel=3)
    return tracks


@functools.cache  # musdb asks ffprobe about every track
def _musdb_sources(root: Path, subset: str, is_wav: bool, setup_file: str | None) -> tuple[list[Any], list[str]]:
    find_ffmpeg()  # musdb cannot be imported without, even for WAV folders
    import musdb

    try:
        database = musdb.DB(root=str(root), subsets=[subset], is_wav=is_wav, setup_file=setup_file)
    except Exception as error:  # ffmpeg-python's own error class for a file that ffprobe rejects
        raise SrlibError(f"musdb cannot read {root}/{subset} ({error}): unpack the data set again.") from error
    return list(database.tracks), list(database.setup["validation_tracks"])


class _Row(BaseModel):
    """A row of a manifest; empty cells take the defaults."""

    split: Split | None = None
    bandwidth_hz: Annotated[FiniteFloat, Field(ge=LOWEST_BANDWIDTH_HZ)] | None = None
    weight: Annotated[FiniteFloat, Field(gt=0)] = 1.0
    artist: str = ""
    title: str = ""
    licence: str = ""
    collection: Annotated[str, Field(validation_alias=AliasChoices("collection", "package", "artist"))] = ""


def _read_manifest(path: Path) -> list[dict[str, str]]:
    """Cells of a CSV file with a column `file`, as spreadsheets write it: a byte order mark, semicolons or tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except UnicodeDecodeError as error:
        raise SrlibError(f"{path} is not UTF-8: save it as CSV in UTF-8.") from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SrlibError(f"{path} is not a table ({error}): correct it.") from error
    table.columns = table.columns.str.strip().str.lower()
    if "file" not in table:
        raise SrlibError(f"{path} has no column named file: give one, and split, bandwidth_hz and weight if known.")
    return [{k: str(v).strip() for k, v in row.items() if str(v).strip()} for row in table.to_dict("records")]


def _listed(root: Path, faults: list[str]) -> dict[str, _Row]:
    """{path below root: row} of a folder's manifest, if it has one; its errors are added to `faults`."""
    rows: dict[str, _Row] = {}
    cells: list[dict[str, str]] = []
    with noted(faults):
        cells = _read_manifest(root / "manifest.csv") if (root / "manifest.csv").is_file() else []
    for number, row in enumerate(cells, 2):
        name, wrong = row.get("file", "").replace("\\", "/").removeprefix("./"), []
        if not (root / name).is_file():
            wrong.append(f"there is no file {name!r}")
        if name in rows:
            wrong.append(f"{name!r} is listed twice")
        rows[name] = _Row()
        with noted(wrong):
            rows[name] = _Row.model_validate(row)
        faults += [f"manifest.csv, line {number}: {fault}" for fault in wrong]
    return rows


def _load_folder(root: Path) -> list[Track]:
    """Every audio file under a folder that is not hidden; splits from its manifest.csv, else by the files' names.

    Raises:
        SrlibError: naming everything that is wrong with the files and the manifest.
    """
    faults: list[str] = []
    rows = _listed(root, faults)
    names = {path.relative_to(root).as_posix() for path in audio_files(root).values()}
    names |= {name for name in rows if (root / name).is_file()}
    given = {name: row.split for name, row in rows.items() if row.split}
    splits = _split_by_name(names - given.keys(), set(given.values())) | given
    tracks = []
    for name in sorted(names):
        with noted(faults):
            header = info(root / name)
            if not header.samples:
                raise SrlibError(f"{root / name} holds no samples.")
            facts: dict[str, Any] = rows.get(name, _Row()).model_dump(exclude={"split"})
            seconds = header.samples / header.sample_rate
            tracks.append(Track(name, splits[name], root / name, header.sample_rate, seconds, **facts))
    refuse(faults, f"{root} cannot be used")
    if names - given.keys():
        counts = ", ".join(f"{sum(track.split == split for track in tracks)} {split}" for split in SPLITS)
        sentence = f"{root}: files without a split in manifest.csv were split by name ({counts} in all)."
        warnings.warn(sentence, stacklevel=3)
    return tracks


@contextmanager
def noted(faults: list[str]) -> Iterator[None]:
    """Add the message of an error to `faults` and go on."""
    try:
        yield
    except SrlibError as error:
        faults.append(str(error))
    except ValidationError as error:
        faults.append(str(as_srlib_error(error)))


def refuse(faults: list[str], what: str) -> None:
    """Raise one SrlibError with all faults, if there are any."""
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        raise SrlibError(f"{what}: {'; '.join(fault.rstrip('.') for fault in faults[:_MOST_FAULTS] + more)}.")


def _split_by_name(names: set[str], given: set[str]) -> dict[str, str]:
    """Splits of files, 80/10/10 by a hash of the name, so that a file keeps its split when others come or go.

    If no file trains, or none validates, and that split is not `given`, one of the other files is taken for it.
    """
    draws = {name: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) / 2**64 for name in names}
    splits = {name: "train" if draw < 0.8 else "valid" if draw < 0.9 else "test" for name, draw in draws.items()}
    order = sorted(names, key=draws.__getitem__)
    for split, one in (("train", order[:1]), ("valid", (order if "train" in given else order[1:])[-1:])):
        if split not in given | set(splits.values()):
            splits |= dict.fromkeys(one, split)
    return splits
