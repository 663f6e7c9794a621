"""Opening audio: libsndfile where it knows the format, else ffmpeg; what is missing, damaged or cut off is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from srlib.errors import SrlibError

# libsndfile guesses the length of an MP3 without a Xing header and stops there, so MP3 goes through ffmpeg.
MPEG_SUFFIXES = frozenset((".mp3", ".mp2", ".mpga"))
_STREAMED_SIZE = 0x7FFF_F000  # bytes; sizes from here up are placeholders of programs that wrote to a pipe
_MALFORMED = 3  # libsndfile's SF_ERR_MALFORMED_FILE
# Samples: the longest block of Vorbis; packets of Opus are shorter. The last page of some files promises part of a
# block that was never written; such files are whole, and players put silence there.
_OGG_BLOCK = 8192
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


def info(path: str | os.PathLike) -> AudioInfo:
    """Sample rate (Hz), samples per channel and channels of a file, without decoding it."""
    path = existing_file(path)
    if path.suffix.lower() not in MPEG_SUFFIXES:
        try:
            header = soundfile.info(path)
            return AudioInfo(header.samplerate, header.frames, header.channels)
        except soundfile.LibsndfileError:
            pass  # ffmpeg knows more formats
    return _probe(path)


@contextmanager
def decoded(path: str | os.PathLike) -> Iterator[Path]:
    """A file that soundfile reads: `path` itself, or a temporary one that ffmpeg decoded it to."""
    path = existing_file(path)
    file = _open_soundfile(path)
    if file is not None:
        file.close()
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="srlib-") as folder:
        yield _decode(path, Path(folder))


def read_soundfile(path: Path, start: int, frames: int | None) -> tuple[np.ndarray, int] | None:
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


def _open_soundfile(path: Path) -> soundfile.SoundFile | None:
    """The open file, or None when libsndfile does not know the format."""
    if path.suffix.lower() in MPEG_SUFFIXES:
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


def read_ffmpeg(path: Path, start: int, frames: int | None) -> tuple[np.ndarray, int]:
    """Float32 `[channels, samples]` and the sample rate of what ffmpeg decodes, from a sample on."""
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
        raise SrlibError(f"{path} is not an audio file that ffmpeg can decode ({one_line(log)}).")
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


def existing_file(path: str | os.PathLike) -> Path:
    """The path of a file that can be read and is not empty; else SrlibError says why."""
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


def truncated(path: Path) -> SrlibError:
    """The error for a file that holds less than its header says."""
    return SrlibError(f"{path} is truncated or damaged: it holds less audio than it should; get a complete copy.")


def one_line(message: object) -> str:
    """The last line of what another library says."""
    lines = str(message).strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"
