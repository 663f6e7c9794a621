"""Audio files in and out, resampling and channels; files are never left half written."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from srlib.audio.decoding import MPEG_SUFFIXES, existing_file, one_line, read_ffmpeg, read_soundfile
from srlib.audio.decoding import find_ffmpeg as find_ffmpeg
from srlib.audio.decoding import info as info
from srlib.errors import SrlibError

_SOUNDFILE_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf")
)
_FFMPEG_SUFFIXES = frozenset((".m4a", ".aac", ".mp4", ".mka", ".webm", ".wma", ".ac3", ".wv"))
_AUDIO_SUFFIXES = _SOUNDFILE_SUFFIXES | MPEG_SUFFIXES | _FFMPEG_SUFFIXES
_DEFAULT_SUBTYPE = {".wav": "FLOAT", ".flac": "PCM_24"}
_WAV_LIMIT = 2**32 - 2**16  # bytes; the size field of WAV has 32 bits
TAGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")


def is_audio_file(path: Path) -> bool:
    """Whether a file in a folder is named like audio and is not hidden."""
    return path.suffix.lower() in _AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def read(path: str | os.PathLike, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file, or `frames` samples of it from sample `start` on.

    Returns float32 [channels, samples] and the sample rate in Hz. Whatever soundfile cannot open goes through ffmpeg
    (first audio stream). Missing, empty, truncated and non-audio files and NaN or Inf samples raise `SrlibError`.
    """
    path = existing_file(path)
    wav, sample_rate = read_soundfile(path, start, frames) or read_ffmpeg(path, start, frames)
    if wav.shape[1] == 0:
        raise SrlibError(f"{path} holds no samples{f' from sample {start} on' if start else ''}: nothing to process.")
    check_finite(wav, path)
    return wav, sample_rate


def write(path: str | os.PathLike, wav: np.ndarray, sample_rate: int, subtype: str | None = None) -> None:
    """Write [samples] or [channels, samples] as .wav (float32) or .flac (24 bit) unless `subtype` says otherwise.

    Integer subtypes clip at full scale. The same samples give the same bytes.
    """
    wav = np.asarray(wav)
    if wav.ndim not in (1, 2) or wav.size == 0 or wav.dtype.kind != "f":
        raise SrlibError(f"{path}: expected floats [samples] or [channels, samples], got {wav.dtype} {wav.shape}.")
    wav = np.atleast_2d(wav)
    check_finite(wav, Path(path))
    with open_output(path, sample_rate, *wav.shape, subtype=subtype) as put:
        put(wav)


@contextmanager
def open_output(
    path: str | os.PathLike,
    sample_rate: int,
    channels: int,
    samples: int,
    tags: Mapping[str, str] | None = None,
    subtype: str | None = None,
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes the next `[channels, n]` of a file, which appears under its name once it is whole.

    What clips in a .flac for want of a float format is told in a line on standard error; who asks for a subtype knows.

    Args:
        samples: how many will be written for each channel: a WAV beyond 4 GiB becomes RF64.
        tags: of `TAGS`; those that the format cannot hold are left out.
        subtype: of libsndfile; by default float32 for .wav and 24 bit for .flac.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _DEFAULT_SUBTYPE:
        raise SrlibError(f"{path}: audio is written as .wav or .flac, not {suffix or 'without a suffix'}.")
    may_clip, clipped = subtype is None and suffix == ".flac", 0
    subtype = subtype or _DEFAULT_SUBTYPE[suffix]
    size = samples * channels * (8 if subtype == "DOUBLE" else 4)
    file_format = "FLAC" if suffix == ".flac" else "RF64" if size > _WAV_LIMIT else "WAV"
    with atomic_path(path) as temporary:
        try:
            file = soundfile.SoundFile(temporary, "w", sample_rate, channels, subtype, format=file_format)
        except (soundfile.LibsndfileError, ValueError, TypeError) as error:
            raise SrlibError(f"Cannot write {path} ({one_line(error)}).") from error
        with file:
            for name, value in (tags or {}).items():
                with suppress(soundfile.LibsndfileError):
                    setattr(file, name, value)

            def put(block: np.ndarray) -> None:
                nonlocal clipped
                if block.size and not _is_finite(block):
                    raise SrlibError(f"{path} was not written: it would hold NaN or Inf; check the model's weights.")
                if may_clip:
                    clipped += np.count_nonzero(np.abs(block) > 1)
                try:
                    file.write(block.T)
                except soundfile.LibsndfileError as error:
                    raise SrlibError(f"Cannot write {path} ({one_line(error)}).") from error

            yield put
        written = soundfile.info(temporary).frames
        if written != samples:
            raise SrlibError(f"Cannot write {path}: {written} of {samples} samples fitted; is the disk full?")
        _clear_peak_time(temporary)
    if clipped:
        per_cent = 100 * clipped / (samples * channels)
        share = f"{per_cent:.2f} %" if per_cent >= 0.01 else "less than 0.01 %"
        print(f"srlib: {path}: {share} of the samples clip at full scale; a .wav file keeps them.", file=sys.stderr)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A path to write to, in a temporary folder beside `path`; when the block ends well it is renamed to `path`."""
    path = Path(path)
    if path.is_dir():
        raise SrlibError(f"{path} is a folder: give the name of a file to write.")
    if not path.parent.is_dir():
        raise SrlibError(f"The folder {path.parent} does not exist: create it, or write elsewhere.")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            part = Path(folder) / "part"  # without a suffix: nobody takes half a file for music
            yield part
            os.replace(part, path)
    except OSError as error:
        raise SrlibError(f"Cannot write {path} ({error.strerror or error}).") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file or a new folder, which appears under its name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        write(part)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, all of it or none."""
    write_atomically(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, all of it or none."""
    write_bytes(path, text.encode("utf-8"))


def replace_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a folder, then put it in the place of `path`; if that fails, the old folder stays.

    No system call exchanges two folders on every system, so the old one is renamed first. If the process is killed
    between the two renames, the next call puts the old folder back.
    """
    old = path.with_name(f".{path.name}.old")
    _settle(path, old)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        new = Path(folder) / "part"
        write(new)
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        finally:
            _settle(path, old)


def _settle(path: Path, old: Path) -> None:
    """Remove the old folder where there is a new one, else put it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not path.exists():
        os.rename(old, path)
    elif old.exists():
        shutil.rmtree(old)


def resample(wav: np.ndarray, sample_rate: int, new_rate: int) -> np.ndarray:
    """Resample [samples] or [channels, samples] with soxr VHQ to exactly round(samples * new_rate / sample_rate)."""
    if sample_rate <= 0 or new_rate <= 0:
        raise SrlibError(f"Sample rates are positive, got {sample_rate} and {new_rate} Hz.")
    if sample_rate == new_rate:
        return wav
    resampled = soxr.resample(np.ascontiguousarray(wav.T), sample_rate, new_rate, quality="VHQ").T
    length = max(1, round(wav.shape[-1] * new_rate / sample_rate))
    missing = length - resampled.shape[-1]
    if missing > 0:  # soxr's own rounding, a sample at most
        resampled = np.pad(resampled, [(0, 0)] * (wav.ndim - 1) + [(0, missing)])
    return resampled[..., :length]


def to_mono(wav: np.ndarray) -> np.ndarray:
    """Mean of the channels: [channels, samples] or [samples] -> [samples]."""
    if wav.ndim == 1:
        return wav
    return wav[0] if len(wav) == 1 else wav.mean(axis=0, dtype=wav.dtype)


def check_finite(wav: np.ndarray, path: Path) -> None:
    """Raise SrlibError if `wav` (of any shape but empty) holds NaN or Inf."""
    if not _is_finite(wav):
        raise SrlibError(f"{path}: the samples contain NaN or Inf: repair the audio before it is processed.")


def _is_finite(wav: np.ndarray) -> bool:
    # Minimum and maximum carry NaN and Inf along and, unlike isfinite(wav), need no second array.
    return bool(np.isfinite(wav.min()) and np.isfinite(wav.max()))


def _clear_peak_time(path: Path) -> None:
    """libsndfile stores the time of day in the PEAK chunk of float files; without it the bytes are repeatable."""
    with path.open("r+b") as stream:
        if stream.read(12)[:4] not in (b"RIFF", b"RF64"):
            return
        while len(header := stream.read(8)) == 8 and not header.startswith(b"data"):
            if header.startswith(b"PEAK"):
                stream.seek(4, os.SEEK_CUR)  # its version
                stream.write(bytes(4))
                return
            stream.seek(int.from_bytes(header[4:], "little"), os.SEEK_CUR)
