"""Decoding: the readers for a file's content, the length by its header, and its samples in blocks."""

from __future__ import annotations

import json
import mimetypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from srlib.errors import SrlibError, input_name

BLOCK = 2**17  # samples of each channel
# First bytes of the formats that libsndfile reads first; ffmpeg reads the others first, also chained Ogg and MP3.
_LIBSNDFILE = (b"RIFF", b"RF64", b"FORM", b"fLaC", b"caff", b"riff", b".snd")
_CHAINABLE = b"OggS"
# Names that count as audio without a look inside, so that a broken file is reported and not skipped.
_CERTAIN = frozenset((".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aif", ".aiff", ".aac", ".wma"))
_NEVER = ("image/", "text/", "font/", "application/json", "application/pdf", "application/zip")  # types by name
_MP4 = "mov,mp4,m4a,3gp,3g2,mj2"  # ffprobe's name
_STREAMED_SIZE = 0x7F00_0000  # bytes; sizes from here up are placeholders of programs that wrote to a pipe
_SLACK_SECONDS = 0.25  # containers round durations, and coders pad: AAC 0.04 s, Opus 0.08 s, MP3 0.05 s
# Channels of Vorbis by their places in WAV, by number; libsndfile leaves them so, also of Opus (Vorbis I, 4.3.9).
VORBIS_ORDER = {
    3: [0, 2, 1], 5: [0, 2, 1, 3, 4], 6: [0, 2, 1, 4, 5, 3], 7: [0, 2, 1, 5, 6, 4, 3], 8: [0, 2, 1, 6, 7, 4, 5, 3]
}  # fmt: skip
PADDING = 4096  # samples that a coder may add after the length in the header of MP4 or Ogg


class Decoder(NamedTuple):
    """One way to read a file. `blocks(start)` gives float32 `[channels, n]` from a sample on, up to the first fault.

    `samples` is the length of each channel by the header, None if it has none; `slack` is the tolerance on it, in
    samples. If `trims` is true, up to PADDING samples beyond `samples` are the coder's padding.
    """

    sample_rate: int  # Hz
    channels: int
    samples: int | None
    blocks: Callable[..., Iterator[np.ndarray]]
    slack: int = 0
    trims: bool = False


def find_ffmpeg() -> None:
    """Make `ffmpeg` and `ffprobe` callable, also from an environment that is used without being activated."""
    path, bin_folder = os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)
    if bin_folder not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join((path, bin_folder))
    missing = [program for program in ("ffmpeg", "ffprobe") if shutil.which(program) is None]
    if missing:
        raise SrlibError(
            f"{' and '.join(missing)} not found on PATH: install ffmpeg, or use the environment that `make` sets up."
        )


def decoders(path: Path, name: str | None = None) -> Iterator[Decoder]:
    """The readers of a file, the one that its first bytes ask for first.

    Raises:
        SrlibError: for an empty or unreadable file, and if no reader can open it; it calls the file `name`.
    """
    name = name or str(path)
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise SrlibError(f"{name} cannot be read ({error.strerror}): give an audio file.") from error
    if not magic:
        raise SrlibError(f"{name} is empty (0 bytes): give audio.")
    opened, readers = 0, [_with_ffmpeg, _with_libsndfile]
    for reader in reversed(readers) if magic in _LIBSNDFILE else readers:
        if decoder := reader(path):
            opened += 1
            yield decoder
    if not opened:
        find_ffmpeg()
        raise SrlibError(
            f"{name} is not an audio file, or too damaged: neither libsndfile nor ffmpeg reads sound in it."
        )


def info(path: str | os.PathLike) -> Decoder:
    """The decoder of a file; if its header lacks the length, the file is decoded once."""
    decoder = next(decoders(Path(path)))
    if decoder.samples:  # fragmented MP4 has 0
        return decoder
    return decoder._replace(samples=sum(block.shape[1] for block in decoder.blocks()))


def limited(blocks: Iterator[np.ndarray], samples: int) -> Iterator[np.ndarray]:
    """The first samples of a stream of blocks `[channels, n]`."""
    for block in blocks:
        yield block[:, :samples]
        samples -= block.shape[1]
        if samples <= 0:
            return


def native_name(path: Path) -> str | bytes:
    """The name of a file for libsndfile: bytes, since a name need not be UTF-8."""
    return os.fsencode(path) if os.name == "posix" else str(path)


def probe(path: Path) -> dict[str, Any]:
    """Report of ffprobe on a file; empty if the format is unknown or ffprobe is missing."""
    command = ["ffprobe", "-v", "warning", "-protocol_whitelist", "file", "-show_streams", "-show_format"]
    command += ["-show_chapters", "-of", "json=string_validation=ignore", "-i", f"file:{path}"]
    try:
        find_ffmpeg()
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        report = json.loads(done.stdout.decode("utf-8", "surrogateescape"))
    except (SrlibError, ValueError):  # ffprobe stops within its report at a stream that no decoder opens
        return {}
    return report | {"estimated": b"Estimating duration" in done.stderr}


def sound(report: dict[str, Any]) -> dict[str, Any] | None:
    """The first audio stream of a report of ffprobe."""
    streams = (stream for stream in report.get("streams", ()) if stream["codec_type"] == "audio")
    return next((stream for stream in streams if int(stream.get("sample_rate", 0)) and stream.get("channels")), None)


def _with_libsndfile(path: Path) -> Decoder | None:
    """None for formats unknown to libsndfile, for MP3 inside RIFF, and for FLAC of unknown length."""
    try:
        with soundfile.SoundFile(native_name(path)) as file:
            if file.subtype.startswith("MPEG") or file.frames >= 2**62:
                return None
            promised, rate, channels = file.frames, file.samplerate, file.channels
            order = VORBIS_ORDER.get(channels) if file.subtype in ("VORBIS", "OPUS") else None
            # libsndfile's log. A wrong "RIFF" size alone is a common and harmless slip of other programs.
            log = r"\b(?:data|SSND|riff|Riff size|Data Size) +: (\d+) \(should be (\d+)\)"
            for size, actual in re.findall(log, file.extra_info):
                if int(actual) < int(size) < _STREAMED_SIZE:
                    promised = -(-file.frames * int(size) // max(int(actual), 1))  # rounded up
    except (soundfile.LibsndfileError, TypeError):  # soundfile asks for the sample rate of what is named .raw
        return None

    def blocks(start: int = 0) -> Iterator[np.ndarray]:
        with soundfile.SoundFile(native_name(path)) as file:
            try:
                file.seek(min(start, file.frames))
                while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                    yield block.T[np.argsort(order)] if order else block.T
            except soundfile.LibsndfileError:
                return  # damaged here: the caller compares the length

    return Decoder(rate, channels, promised, blocks)


def _with_ffmpeg(path: Path) -> Decoder | None:
    """The first audio stream; None if there is none."""
    report = probe(path)
    stream = sound(report)
    if stream is None:
        return None
    rate, channels = int(stream["sample_rate"]), int(stream["channels"])
    seconds = _promised_seconds(report, stream)
    promised = None if seconds is None else round(seconds * rate)
    trims, slack = report["format"]["format_name"] in (_MP4, "ogg"), round(_SLACK_SECONDS * rate)
    return Decoder(rate, channels, promised, partial(_pipe, path, stream), slack, trims)


def _promised_seconds(report: dict[str, Any], stream: dict[str, Any]) -> float | None:
    tags = {name.upper(): value for name, value in stream.get("tags", {}).items()}
    if report["format"]["format_name"] == "caf" and stream["codec_name"].startswith("pcm") and "nb_frames" in stream:
        return int(stream["nb_frames"]) / int(stream["sample_rate"])  # `duration` is that of the samples in the file
    if report["estimated"]:
        return None
    if "duration" in stream:
        return float(stream["duration"])
    if found := re.fullmatch(r"(\d+):(\d+):([\d.]+)", tags.get("DURATION", "")):  # Matroska
        return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
    alone = len(report["streams"]) == 1 and "duration" in report["format"]
    return float(report["format"]["duration"]) if alone else None


def _pipe(path: Path, stream: dict[str, Any], start: int = 0) -> Iterator[np.ndarray]:
    """Blocks of a stream as ffmpeg decodes it, without a temporary file."""
    layout, channels = stream.get("channel_layout", "unknown"), int(stream["channels"])
    steady = f"aformat=sample_rates={stream['sample_rate']}"  # the links of a chain can differ
    steady += "" if layout == "unknown" else f":channel_layouts={layout}"
    command = ["ffmpeg", "-nostdin", "-v", "quiet", "-protocol_whitelist", "file", "-i", f"file:{path}"]
    command += ["-map", f"0:{stream['index']}", "-af", f"{steady},atrim=start_sample={start}"]
    size = 4 * channels  # bytes of float32
    with subprocess.Popen([*command, "-c:a", "pcm_f32le", "-f", "f32le", "pipe:1"], stdout=subprocess.PIPE) as process:
        assert process.stdout  # for the type: it is a pipe
        try:
            while len(data := process.stdout.read(BLOCK * size)) >= size:
                yield np.frombuffer(data[: len(data) // size * size], "<f4").reshape(-1, channels).T
        finally:
            process.kill()  # the caller may stop early


def ends_within_page(path: Path) -> bool:
    """Whether an Ogg file ends inside its last page, by the length in the page's header."""
    with path.open("rb") as stream:
        if stream.read(4) != _CHAINABLE:
            return False
        stream.seek(max(0, path.stat().st_size - 2**17))  # bytes; pages have at most half of that
        tail = stream.read()
    page = tail[tail.rfind(_CHAINABLE) :]  # 27 bytes of header, then the table of segment lengths
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def is_pipe(path: Path) -> bool:
    """Whether a path can be read only once: `-` for standard input, or a pipe such as `<(command)` of a shell."""
    return str(path) == "-" or path.is_fifo()


def is_audio_file(path: Path) -> bool:
    """Whether a file holds sound: by its name where that is certain, else by its content; hidden files do not count."""
    kind = mimetypes.guess_type(path.name)[0] or ""
    if path.name.startswith(".") or kind.startswith(_NEVER) or not path.is_file():
        return False
    if path.suffix.lower() in _CERTAIN:
        return True
    find_ffmpeg()  # without it, a file would be left out in silence
    return sound(probe(path)) is not None


@contextmanager
def local_file(path: str | os.PathLike) -> Iterator[Path]:
    """A file that can be read more than once: `path`, or a temporary copy of a pipe or of standard input (`-`)."""
    path = Path(path)
    if not is_pipe(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="srlib-") as folder:
        copy = Path(folder) / "input"
        try:
            with sys.stdin.buffer if str(path) == "-" else path.open("rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        except OSError as error:
            raise SrlibError(
                f"The temporary folder {folder} does not take {input_name(path)} ({error.strerror}); set TMPDIR."
            ) from error
        yield copy
