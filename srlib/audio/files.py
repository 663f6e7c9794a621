"""Audio files in and out, resampling and channels; files are never left half written."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from srlib.errors import SrlibError

# libsndfile guesses the length of an MP3 without a Xing header and stops there, so MP3 goes through ffmpeg.
_MPEG_SUFFIXES = frozenset((".mp3", ".mp2", ".mpga"))
_SOUNDFILE_SUFFIXES = frozenset(
    (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf")
)
_FFMPEG_SUFFIXES = frozenset((".m4a", ".aac", ".mp4", ".mka", ".webm", ".wma", ".ac3", ".wv"))
_AUDIO_SUFFIXES = _SOUNDFILE_SUFFIXES | _MPEG_SUFFIXES | _FFMPEG_SUFFIXES
_DEFAULT_SUBTYPE = {".wav": "FLOAT", ".flac": "PCM_24"}
_STREAMED_SIZE = 0x7FFF_F000  # sizes from here up are placeholders of programs that wrote to a pipe
_MALFORMED = 3  # libsndfile's SF_ERR_MALFORMED_FILE
# Samples: the longest block of Vorbis, the longest packet of Opus is shorter. Some encoders let the last page promise a
# part of a block that was never written; such files are whole, and silence is what players make of it.
_OGG_BLOCK = 8192
_WAV_LIMIT = 2**32 - 2**16  # bytes; the size field of WAV has 32 bits
TAGS = ("title", "artist", "album", "date", "tracknumber", "genre", "comment", "copyright", "license")
_DAMAGE = re.compile(r"partial file|ended prematurely|Error submitting packet|Invalid data found", re.IGNORECASE)


class AudioInfo(NamedTuple):
    """What a file's header says; `samples` is per channel and an estimate where the format holds none (AAC, MP3)."""

    sample_rate: int
    samples: int
    channels: int


def find_ffmpeg() -> None:
    """Make `ffmpeg` and `ffprobe` callable, also from an environment that is used without being activated."""
    missing = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    bin_folder = str(Path(sys.executable).parent)
    if missing and bin_folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), bin_folder))
        missing = [program for program in missing if shutil.which(program) is None]
    if missing:
        raise SrlibError(
            f"{' and '.join(missing)} not found on PATH: install ffmpeg, or use the environment that `make` sets up."
        )


def is_audio_file(path: Path) -> bool:
    """What a folder of audio is searched for: files that are named like audio and are not hidden."""
    return path.suffix.lower() in _AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def info(path: str | os.PathLike) -> AudioInfo:
    """Sample rate (Hz), samples per channel and channels of a file, without decoding it."""
    path = _existing_file(path)
    if path.suffix.lower() not in _MPEG_SUFFIXES:
        try:
            header = soundfile.info(path)
            return AudioInfo(header.samplerate, header.frames, header.channels)
        except soundfile.LibsndfileError:
            pass  # ffmpeg knows more formats
    return _probe(path)


def read(path: str | os.PathLike, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file, or `frames` samples of it from sample `start` on.

    Returns float32 [channels, samples] and the sample rate in Hz. Whatever soundfile cannot open goes through ffmpeg
    (first audio stream). Missing, empty, truncated and non-audio files and NaN or Inf samples raise `SrlibError`.
    """
    path = _existing_file(path)
    wav, sample_rate = _read_soundfile(path, start, frames) or _read_ffmpeg(path, start, frames)
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
            raise SrlibError(f"Cannot write {path} ({_one_line(error)}).") from error
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
                    raise SrlibError(f"Cannot write {path} ({_one_line(error)}).") from error

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
    """A temporary path beside `path` that becomes `path` when the block ends well and vanishes when it does not."""
    path = Path(path)
    if path.is_dir():
        raise SrlibError(f"{path} is a folder: give the name of a file to write.")
    if not path.parent.is_dir():
        raise SrlibError(f"The folder {path.parent} does not exist: create it, or write elsewhere.")
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SrlibError(f"Cannot write {path} ({error.strerror or error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


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


def _existing_file(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.is_dir():
        raise SrlibError(f"{path} is a folder: give an audio file.")
    if not path.is_file():
        raise SrlibError(f"{path} does not exist: check the name of the audio file.")
    if path.stat().st_size == 0:
        raise SrlibError(f"{path} is empty (0 bytes): give an audio file.")
    if not os.access(path, os.R_OK):
        raise SrlibError(f"{path} cannot be read: check its permissions.")
    return path


@contextmanager
def decoded(path: str | os.PathLike) -> Iterator[Path]:
    """A file that soundfile reads: `path` itself, or a temporary one that ffmpeg decoded it to."""
    path = _existing_file(path)
    file = _open_soundfile(path)
    if file is not None:
        file.close()
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="srlib-") as folder:
        yield _decode(path, Path(folder))


def _open_soundfile(path: Path) -> soundfile.SoundFile | None:
    """The open file, or None when libsndfile does not know the format."""
    if path.suffix.lower() in _MPEG_SUFFIXES:
        return None
    try:
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        if error.code == _MALFORMED:
            raise truncated(path) from error
        return None
    if _is_cut_off(file, path):
        file.close()
        raise truncated(path)
    return file


def _read_soundfile(path: Path, start: int, frames: int | None) -> tuple[np.ndarray, int] | None:
    """As `read`, or None when libsndfile does not know the format."""
    file = _open_soundfile(path)
    if file is None:
        return None
    with file:
        start = min(start, file.frames)
        end = file.frames if frames is None else min(start + frames, file.frames)
        # libsndfile's seek lands beside the sample in some Ogg files, or fails: decode those from their start.
        first = 0 if file.format == "OGG" else start
        try:
            file.seek(first)
            wav = file.read(end - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise truncated(path) from error
        return whole(wav, end - first, file, path)[start - first :].T, file.samplerate


def whole(wav: np.ndarray, expected: int, file: soundfile.SoundFile, path: Path) -> np.ndarray:
    """What an open file gave, `[samples, channels]`, when it promised `expected` samples; `path` is its name.

    The end of an Ogg file may be short of less than a block, which becomes silence; all else that is short is refused.
    """
    missing = expected - len(wav)
    if missing >= (_OGG_BLOCK if file.format == "OGG" else 1):
        raise truncated(path)
    return np.pad(wav, ((0, missing), (0, 0))) if missing else wav


def _is_cut_off(file: soundfile.SoundFile, path: Path) -> bool:
    """Whether the header promises more bytes than the file has; libsndfile reads such files without complaint."""
    if file.format == "OGG":
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 2**17))
            tail = stream.read()
        page = tail[tail.rfind(b"OggS") :]  # 27 bytes of header, then the table of segment lengths
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    # Seen in libsndfile's log. A wrong "RIFF" size alone is a common and harmless slip of other programs.
    sizes = re.findall(r"\b(?:data|SSND|riff|Riff size|Data Size) +: (\d+) \(should be (\d+)\)", file.extra_info)
    return any(int(actual) < int(promised) < _STREAMED_SIZE for promised, actual in sizes)


def _read_ffmpeg(path: Path, start: int, frames: int | None) -> tuple[np.ndarray, int]:
    end = "" if frames is None else f":end_sample={start + frames}"
    trim = [] if start == 0 and frames is None else ["-af", f"atrim=start_sample={start}{end}"]
    with tempfile.TemporaryDirectory(prefix="srlib-") as folder:
        wav, sample_rate = soundfile.read(_decode(path, Path(folder), trim), dtype="float32", always_2d=True)
    return wav.T, sample_rate


def _decode(path: Path, folder: Path, trim: Sequence[str] = ()) -> Path:
    """The float WAV in a folder that ffmpeg decodes a file, or what is left after trimming it, to."""
    header = _probe(path)
    wav = folder / "decoded.wav"
    log = _run("ffmpeg", path, "-vn", "-map", "0:a:0", *trim, "-c:a", "pcm_f32le", "-rf64", "auto", str(wav))
    if not wav.exists() or wav.stat().st_size == 0:
        raise SrlibError(f"{path} is not an audio file that ffmpeg can decode ({_one_line(log)}).")
    shortfall = header.samples - soundfile.info(wav).frames
    guessed = "Estimating duration" in log  # no length in the file, so nothing to compare with
    if _DAMAGE.search(log) or (not trim and not guessed and shortfall > max(0.05 * header.samples, 0.5 * header[0])):
        raise truncated(path)
    return wav


def _probe(path: Path) -> AudioInfo:
    entries = ["-select_streams", "a:0", "-show_entries", "stream=sample_rate,channels,duration:format=duration"]
    report = json.loads(_run("ffprobe", path, *entries, "-of", "json") or "{}")
    if not report.get("streams"):
        raise SrlibError(f"{path} is not an audio file: neither soundfile nor ffmpeg finds sound in it.")
    stream = report["streams"][0]
    seconds = float(stream.get("duration") or report.get("format", {}).get("duration") or 0.0)
    sample_rate = int(stream["sample_rate"])
    return AudioInfo(sample_rate, round(seconds * sample_rate), int(stream["channels"]))


def _run(program: str, path: Path, *arguments: str) -> str:
    """ffprobe's report, or ffmpeg's warnings; `file:` keeps odd names from being read as options or addresses."""
    find_ffmpeg()
    level = ["-v", "quiet"] if program == "ffprobe" else ["-nostdin", "-v", "warning"]
    command = [program, *level, "-protocol_whitelist", "file", "-i", f"file:{path}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if program == "ffprobe" else done.stderr


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


def truncated(path: Path) -> SrlibError:
    """The error for a file that holds less than its header says."""
    return SrlibError(f"{path} is truncated or damaged: it holds less audio than it should; get a complete copy.")


def _one_line(message: object) -> str:
    lines = str(message).strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, all of it or none."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, all of it or none."""
    write_atomically(path, lambda part: part.write_bytes(content))


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it: a reader never sees half an artefact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        part = Path(folder) / path.name
        write(part)
        os.replace(part, path)


def replace_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a folder beside `path`, then put it there; whatever stops it, the old or the new one is left.

    No system call exchanges two folders everywhere, so the old one steps aside for a moment: after a kill in that
    moment it stands beside `path`, and the next call puts it back first.
    """
    aside = path.with_name(f".{path.name}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    if aside.exists() and not path.exists():
        os.rename(aside, path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        new, old, older = (Path(folder) / name for name in ("new", "old", "older"))
        write(new)
        if aside.exists():  # of a call that was killed behind that moment
            os.rename(aside, older)
        if path.is_dir():
            os.rename(path, aside)
        try:
            os.rename(new, path)
        except BaseException:
            if aside.exists():
                os.rename(aside, path)
            raise
        if aside.exists():
            os.rename(aside, old)
