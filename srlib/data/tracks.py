"""Data sets: the embedded demo music, MUSDB18 (both through `musdb`), any folder of audio; splits, crops, bandwidth."""

from __future__ import annotations

import csv
import functools
import hashlib
import math
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage, signal

from srlib.audio import files
from srlib.config import PROFILES, SAMPLE_RATE, Profile
from srlib.errors import SrlibError

SPLITS = ("train", "valid", "test")
DEMO_ASSETS = Path(__file__).parents[1] / "assets" / "demo"
MUSDB_VALID_TRACKS = 10  # of musdb's own 14, as AudioSR's heirs split it: 90 / 10 / 50
MUSDB_SIZES = {"train": 100, "test": 50}  # tracks in the folders of a complete MUSDB18
STEMS_BANDWIDTH_HZ = 16_000.0  # MUSDB18's AAC stops there (sigsep.github.io/datasets/musdb.html)
_CONTEXT_SECONDS = 1  # read around a crop, so that resampling it equals cropping the resampled track
_SETUP_FILE = "setup.yaml"  # of the demo set: tells musdb what its files are called, and its validation tracks


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
    collection: str = ""  # the game, album or artist it is of: its tracks sound alike
    weight: float = 1.0  # how much more often than its length says training draws it
    bandwidth_hz: float | None = None  # where known: of the whole source track, Hz
    source: Any = field(default=None, repr=False, compare=False)  # musdb's own track object, None for plain files

    def mixture(self, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
        """Float32 [samples] at 48 kHz, mono: from `start` (s) on, `seconds` long or to the end of the track.

        A crop holds the samples that the same stretch of the whole, resampled track has.
        """
        total = round(self.seconds * SAMPLE_RATE)
        first = round(start * SAMPLE_RATE)
        last = total if seconds is None else min(total, first + round(seconds * SAMPLE_RATE))
        if not 0 <= first < last:
            raise SrlibError(f"Track {self.name} lasts {self.seconds:.2f} s: no audio at {start} s for {seconds} s.")
        # A whole second is a whole number of samples at every rate: the crop lies on the whole track's sample grid.
        begin = max(0, first // SAMPLE_RATE - _CONTEXT_SECONDS)
        wav = self._read(begin, -(-last // SAMPLE_RATE) + _CONTEXT_SECONDS)
        wav = files.resample(files.to_mono(wav), self.sample_rate, SAMPLE_RATE)
        crop = wav[first - begin * SAMPLE_RATE : last - begin * SAMPLE_RATE]
        missing = last - first - len(crop)
        if missing > 0.1 * SAMPLE_RATE:
            raise SrlibError(
                f"{self.path} ends {missing / SAMPLE_RATE:.2f} s before its header says: get a whole copy."
            )
        return np.pad(crop, (0, missing)) if missing else crop  # AAC ends a few samples off its header

    def _read(self, begin: int, end: int) -> np.ndarray:
        """[channels, samples] at the file's own rate between two whole seconds; the end may lie past the track's."""
        if self.source is None:
            return files.read(self.path, begin * self.sample_rate, (end - begin) * self.sample_rate)[0]
        try:
            duration = end - begin if end < self.seconds else None
            wav = self.source.load_audio(str(self.path), self.source.stem_id, begin, duration)
        except (OSError, RuntimeError, ValueError, Warning) as error:  # stempeg raises Warning
            raise SrlibError(f"musdb cannot read {self.path} ({error}): get a whole copy.") from error
        return np.atleast_2d(np.asarray(wav, dtype=np.float32).T)  # musdb: [samples] or [samples, channels]


def load_dataset(dataset: str | Profile, split: str | None = None) -> list[Track]:
    """Tracks of a split (all without one), sorted by name.

    `dataset` is "demo", "musdb" (the folder in MUSDB_ROOT), "folder:PATH" (any audio, recursively), the path of a
    folder of either kind, or a profile.
    """
    if split is not None and split not in SPLITS:
        raise SrlibError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    name = dataset.dataset if isinstance(dataset, Profile) else str(dataset)
    if name in PROFILES:
        name = PROFILES[name].dataset
    if name == "demo":
        tracks = _load_demo(split)
    elif name == "musdb":
        tracks = _load_musdb(_musdb_root(), split)
    elif (folder := Path(name.removeprefix("folder:"))).is_dir():
        is_musdb = not name.startswith("folder:") and _musdb_kind(folder) is not None
        tracks = _load_musdb(folder, split) if is_musdb else _load_folder(folder)
    else:
        raise SrlibError(f"There is no data set {name!r}: give demo, musdb, folder:PATH or an existing folder.")
    tracks = sorted((track for track in tracks if split in (None, track.split)), key=lambda track: track.name)
    if not tracks:
        raise SrlibError(f"The data set {name} has no track{f' in its split {split}' if split else ''}.")
    return tracks


def for_profile(profile: Profile, split: str) -> list[Track]:
    """The tracks of a split that a profile works on: the first `profile.max_tracks[split]` by name."""
    return load_dataset(profile, split)[: profile.max_tracks.get(split)]


def excerpt(track: Track, profile: Profile) -> np.ndarray:
    """The fixed evaluation excerpt: `profile.seconds` from the middle of the track, float32 [samples], 48 kHz mono."""
    return track.mixture(max(0.0, (track.seconds - profile.seconds) / 2), profile.seconds)


def seeded_crop(track: Track, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A crop at a random place, float32 [seconds * 48000]; shorter tracks are padded with zeros at the end."""
    crop = track.mixture(rng.uniform(0.0, max(0.0, track.seconds - seconds)), seconds)
    return np.pad(crop, (0, max(0, round(seconds * SAMPLE_RATE) - len(crop))))


def bandwidth_hz(wav: np.ndarray, sample_rate: int) -> float:
    """Measured bandwidth in Hz of [samples] or [channels, samples]; 0 for silence.

    Where the long-term power spectrum, median over 500 Hz, first falls 60 dB under its level at 1-4 kHz. Going upwards
    finds the low-pass edge of a lossy coder even where clipping has put something above it again.
    """
    if wav.shape[-1] < 2048:
        raise SrlibError(f"{wav.shape[-1]} samples are too few to measure a bandwidth: give at least 2048.")
    frequencies, power = signal.welch(files.to_mono(wav), sample_rate, nperseg=2048, detrend=False)
    level = power[(frequencies >= 1000) & (frequencies <= 4000)].mean()
    smooth = ndimage.median_filter(power, max(1, round(500 / frequencies[1])))  # keeps edges
    absent = np.flatnonzero((smooth <= level * 1e-6) & (frequencies > 1000))
    if level == 0:
        return 0.0
    return float(frequencies[absent[0]] if len(absent) else frequencies[-1])


def demo_manifest() -> dict[str, dict[str, str]]:
    """Rows of the embedded set's manifest by track name: split, title, artist, licence, package, bandwidth_hz, ..."""
    if not (DEMO_ASSETS / "manifest.csv").is_file():
        raise SrlibError(f"The demo music is missing from {DEMO_ASSETS}: reinstall srlib with its assets.")
    return {Path(row["file"]).parent.name: row for row in _read_manifest(DEMO_ASSETS / "manifest.csv")}


def _load_demo(split: str | None) -> list[Track]:
    manifest = demo_manifest()
    tracks = []
    for track in _load_musdb(DEMO_ASSETS, split, setup_file=_SETUP_FILE):
        row = manifest[track.name]
        facts = {key: row[key] for key in ("artist", "title", "licence")} | {"collection": row["package"]}
        tracks.append(replace(track, **facts, bandwidth_hz=float(row["bandwidth_hz"])))
    return tracks


def _musdb_root() -> Path:
    """MUSDB_ROOT, checked; where the data come from is in every message."""
    where = "MUSDB18-HQ (https://zenodo.org/records/3338373, 23 GB) or MUSDB18 (https://zenodo.org/records/1117372)"
    if not os.environ.get("MUSDB_ROOT"):
        raise SrlibError(f"MUSDB_ROOT is not set: set it to the unpacked folder of {where}.")
    root = Path(os.environ["MUSDB_ROOT"]).expanduser()
    if _musdb_kind(root) is None:
        raise SrlibError(
            f"MUSDB_ROOT={root} has neither train/*/mixture.wav nor train/*.stem.mp4: set it to the folder of {where}."
        )
    return root


def _musdb_kind(root: Path) -> str | None:
    """ "wav" for MUSDB18-HQ folders, "stems" for MUSDB18, None for anything else."""
    for kind, pattern in (("wav", "*/mixture.wav"), ("stems", "*.stem.mp4")):
        if any(next((root / subset).glob(pattern), None) for subset in MUSDB_SIZES):
            return kind
    return None


def _load_musdb(root: Path, split: str | None, setup_file: str | None = None) -> list[Track]:
    """Read a folder in either of MUSDB18's layouts through musdb; `setup_file` brings a split other than musdb's.

    Of musdb's validation tracks the first ten by name are `valid`; the rest of its train folder is `train`.
    """
    is_stems = _musdb_kind(root) == "stems"
    subsets = [subset for subset in MUSDB_SIZES if split is None or (subset == "test") == (split == "test")]
    tracks = []
    for subset in subsets:
        sources, validation_tracks = _musdb_sources(root, subset, not is_stems, setup_file)
        if setup_file is None and len(sources) != MUSDB_SIZES[subset]:
            warnings.warn(
                f"{root}/{subset} holds {len(sources)} of MUSDB18's {MUSDB_SIZES[subset]} tracks.", stacklevel=3
            )
        valid = set(sorted(validation_tracks)[:MUSDB_VALID_TRACKS])
        for source in sources:
            if source.samples is None:
                raise SrlibError(f"{source.path} is missing: unpack MUSDB18 again, or remove the track's folder.")
            track_split = "valid" if subset == "train" and source.name in valid else subset
            facts = {"artist": source.artist or "", "title": source.title or "", "source": source}
            facts["collection"] = facts["artist"]
            seconds = source.samples / source.rate
            tracks.append(Track(source.name, track_split, Path(source.path), source.rate, seconds, **facts))
    if not is_stems:
        return tracks
    warnings.warn(
        f"{root} is the stems version of MUSDB18: its music stops at 16 kHz, and what is trained or measured on it"
        " stops there too; MUSDB18-HQ has the full band.",
        stacklevel=3,
    )
    return [replace(track, bandwidth_hz=STEMS_BANDWIDTH_HZ) for track in tracks]


@functools.cache  # musdb asks ffprobe about every track
def _musdb_sources(root: Path, subset: str, is_wav: bool, setup_file: str | None) -> tuple[list[Any], list[str]]:
    files.find_ffmpeg()  # musdb cannot be imported without, even for WAV folders
    import musdb

    try:
        database = musdb.DB(root=str(root), subsets=[subset], is_wav=is_wav, setup_file=setup_file)
    except Exception as error:  # ffmpeg-python's own error class for a file that ffprobe rejects
        raise SrlibError(f"musdb cannot read {root}/{subset} ({error}): unpack the data set again.") from error
    return list(database.tracks), list(database.setup["validation_tracks"])


def _load_folder(root: Path) -> list[Track]:
    """Every audio file under a folder; splits from its manifest.csv, else 80/10/10 by a hash of the file's name.

    The hash keeps a file in its split however many others come or go.
    """
    rows = {}
    if (root / "manifest.csv").is_file():
        rows = {row.get("file", ""): row for row in _read_manifest(root / "manifest.csv")}
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if files.is_audio_file(path)}
    if missing := sorted(rows.keys() - paths.keys()):
        raise SrlibError(f"{root}/manifest.csv lists {missing[0]!r}, which is not there: correct the manifest.")
    tracks = [_file_track(name, path, rows.get(name, {})) for name, path in paths.items()]
    if any(not rows.get(name, {}).get("split") for name in paths):
        counts = ", ".join(f"{sum(track.split == split for track in tracks)} {split}" for split in SPLITS)
        warnings.warn(
            f"{root}: files without a split in manifest.csv were split by name ({counts} in all).", stacklevel=3
        )
    return tracks


def _file_track(name: str, path: Path, row: dict[str, str]) -> Track:
    split = row.get("split") or _hash_split(name)
    if split not in SPLITS:
        raise SrlibError(f"The manifest gives {name} the split {split!r}: choose one of {', '.join(SPLITS)}.")
    header = files.info(path)
    facts = {key: row.get(key) or "" for key in ("artist", "title", "licence")}
    facts["collection"] = row.get("collection") or row.get("package") or facts["artist"]
    try:
        bandwidth = float(row["bandwidth_hz"]) if row.get("bandwidth_hz") else None
        weight = float(row.get("weight") or 1)
    except ValueError as error:
        raise SrlibError(f"The manifest's bandwidth_hz or weight of {name} is no number: correct it.") from error
    if not 0 < weight < math.inf:
        raise SrlibError(f"The manifest gives {name} the weight {weight:g}: give one above zero.")
    seconds = header.samples / header.sample_rate
    return Track(name, split, path, header.sample_rate, seconds, **facts, weight=weight, bandwidth_hz=bandwidth)


def _hash_split(name: str) -> str:
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return "train" if draw < 0.8 else "valid" if draw < 0.9 else "test"


def _read_manifest(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
