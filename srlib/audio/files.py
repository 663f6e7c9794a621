"""Audio files in and out, resampling and channels; files are never left half written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from mutagen import MutagenError

from srlib.audio.decoding import BLOCK, decoders, existing_file, find_ffmpeg, limited, native_name
from srlib.audio.decoding import info as info
from srlib.audio.decoding import is_audio_file as is_audio_file
from srlib.audio.recording import Recording, Resampler, as_channels, is_finite, open_recording
from srlib.audio.tags import Metadata, settle_header, write_metadata
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError

_SUBTYPE = {".wav": "FLOAT", ".flac": "PCM_24", ".ogg": "VORBIS"}  # what libsndfile writes unless it is told otherwise
# What ffmpeg writes: near the highest quality that each encoder is meant for.
_ENCODERS = {
    ".mp3": ["-c:a", "libmp3lame", "-q:a", "0", "-f", "mp3"],
    ".m4a": ["-c:a", "aac", "-b:a", "256k", "-f", "ipod"],
    ".opus": ["-c:a", "libopus", "-b:a", "192k", "-f", "opus"],
}
OUTPUT_SUFFIXES = (*_SUBTYPE, *_ENCODERS)
_BITS = {"PCM_16": 16, "PCM_24": 24}
_WAV_LIMIT = 2**32 - 2**24  # bytes; the size field of WAV has 32 bits, and tags follow the samples


def read(path: str | os.PathLike, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file, or `frames` samples of it from sample `start` on.

    Returns float32 [channels, samples] and the sample rate in Hz, of the first audio stream that libsndfile or ffmpeg
    finds. Missing, empty, truncated and non-audio files and NaN or Inf samples raise `SrlibError`.
    """
    if start == 0 and frames is None:
        with open_recording(path, strict=True) as recording:
            return np.concatenate(list(recording.blocks()), axis=1), recording.sample_rate
    decoder = next(decoders(existing_file(path)))
    blocks = list(limited(decoder.blocks(start), sys.maxsize if frames is None else frames))
    if not blocks:
        raise SrlibError(f"{path} holds no samples from sample {start} on: nothing to process.")
    if not all(map(is_finite, blocks)):
        raise SrlibError(f"{path}: the samples contain NaN or Inf: repair the audio before it is processed.")
    return np.concatenate(blocks, axis=1), decoder.sample_rate


def write(path: str | os.PathLike, wav: np.ndarray, sample_rate: int, subtype: str | None = None) -> None:
    """Write [samples] or [channels, samples] as .wav (float32) or .flac (24 bit) unless `subtype` says otherwise.

    Integer subtypes clip at full scale. The same samples give the same bytes.
    """
    try:
        recording = Recording.from_array(wav, sample_rate)
    except SrlibError as error:
        raise SrlibError(f"{path} was not written. {error}") from error
    with open_output(path, recording, sample_rate, subtype, sample_rate) as put:
        put(as_channels(wav, sample_rate))


@contextmanager
def open_output(
    path: str | os.PathLike,
    recording: Recording,
    sample_rate: int = SAMPLE_RATE,
    subtype: str | None = None,
    put_rate: int = SAMPLE_RATE,
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes the next `[channels, n]` of a file, which appears under its name once it is whole.

    What clips in a .flac for want of a float format is told in a warning; who asks for a subtype knows.

    Args:
        path: its suffix, one of OUTPUT_SUFFIXES, says the format.
        recording: what the file is made of: its length, tags, cover, chapters and speakers are kept.
        sample_rate: of the file, Hz.
        subtype: of libsndfile; by default float32 for .wav and 24 bit for .flac. 16 bit is dithered.
        put_rate: sample rate of the blocks, Hz.
    """
    path, samples, clipped = Path(path), recording.samples_at(sample_rate), 0
    suffix = path.suffix.lower()
    formats = (".wav", ".flac") if subtype else OUTPUT_SUFFIXES
    if suffix not in formats:
        wanted = f"audio {'with a subtype ' if subtype else ''}is written as {' or '.join(formats)}"
        raise SrlibError(f"{path}: {wanted}, not {f'as {suffix}' if suffix else 'without a suffix'}.")
    if suffix in _ENCODERS:
        find_ffmpeg()
    resampler = Resampler(put_rate, sample_rate, recording.channels, samples)
    with atomic_path(path) as temporary:
        with _sink(temporary, path, recording, sample_rate, subtype or _SUBTYPE.get(suffix, "FLOAT")) as sink:

            def put(block: np.ndarray) -> None:
                nonlocal clipped
                if not is_finite(block):
                    raise SrlibError(f"{path} was not written: it would hold NaN or Inf; check the model's weights.")
                block = resampler.feed(block)
                clipped += int((np.abs(block) > 1).sum()) if suffix == ".flac" and not subtype else 0
                sink(block)

            yield put
            sink(resampler.end())
        if suffix not in (".flac", ".ogg"):
            settle_header(temporary, recording.metadata.mask)
        if suffix in _ENCODERS:
            _encode(temporary, path, recording.metadata)
            if (encoded := next(decoders(temporary)).sample_rate) != sample_rate:
                recording.warn(path, f"it has {encoded} Hz, since {suffix} has no {sample_rate} Hz")
        try:
            write_metadata(temporary, suffix, recording.metadata, recording.sample_rate, sample_rate)
        except (MutagenError, ValueError, OverflowError) as error:  # no reason to lose the audio
            recording.warn(path, f"not all tags were kept ({one_line(error)})")
    if clipped:
        per_cent = 100 * clipped / (samples * recording.channels)
        share = f"{per_cent:.2f} %" if per_cent >= 0.01 else "less than 0.01 %"
        recording.warn(path, f"{share} of the samples clip at full scale; a .wav file keeps them")


@contextmanager
def _sink(
    temporary: Path, path: Path, recording: Recording, sample_rate: int, subtype: str
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes blocks into a file of libsndfile; `path` is what its errors name."""
    samples, channels, rng = recording.samples_at(sample_rate), recording.channels, np.random.default_rng(0)
    size = samples * channels * (8 if subtype == "DOUBLE" else 4)
    wave = "RF64" if size > _WAV_LIMIT else "WAVEX" if recording.metadata.mask else "WAV"
    file_format = {".flac": "FLAC", ".ogg": "OGG"}.get(path.suffix.lower(), wave)
    if not soundfile.check_format(file_format, subtype):
        raise SrlibError(f"{path}: {file_format} has no subtype {subtype}: choose PCM_16, PCM_24 or, in .wav, FLOAT.")
    name = native_name(temporary)
    try:
        with soundfile.SoundFile(name, "w", sample_rate, channels, subtype, format=file_format) as file:

            def write(block: np.ndarray) -> None:
                for start in range(0, block.shape[1], BLOCK):  # libsndfile's Vorbis crashes on long ones
                    file.write(_quantised(block[:, start : start + BLOCK], subtype, rng).T)

            yield write
        written = soundfile.info(name).frames
    except soundfile.LibsndfileError as error:
        raise SrlibError(f"Cannot write {path} ({one_line(error)}).") from error
    if written != samples:
        raise SrlibError(f"Cannot write {path}: {written} of {samples} samples fitted; is the disk full?")


def _encode(temporary: Path, path: Path, metadata: Metadata) -> None:
    """Let ffmpeg encode a finished file, in its place."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{temporary}"]
    command += [part for pair in metadata.tags.items() for part in ("-metadata", "=".join(pair))]
    encoded = temporary.with_name("encoded")
    command += [*_ENCODERS[path.suffix.lower()], f"file:{encoded}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        raise SrlibError(f"Cannot write {path} ({one_line(done.stderr)}).")
    os.replace(encoded, temporary)


def _quantised(block: np.ndarray, subtype: str, rng: np.random.Generator) -> np.ndarray:
    """Integers of 16 or 24 bit in the upper bits of int32, clipped; 16 bit with triangular dither of two steps.

    What has 16 bit already, such as silence, is not dithered. Other subtypes are left to libsndfile.
    """
    if subtype not in _BITS:
        return block
    limit = 2 ** (_BITS[subtype] - 1)
    steps = block.astype(np.float64) * limit
    if subtype == "PCM_16":
        dither = rng.random(block.shape) - rng.random(block.shape)
        steps += np.where(steps == np.rint(steps), 0, dither)
    return np.clip(np.rint(steps), -limit, limit - 1).astype(np.int32) << (32 - _BITS[subtype])


def one_line(message: object) -> str:
    """The last line of what another library says."""
    lines = str(message).strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"


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
    """Let `write` make a folder, then put it in the place of `path`; if that fails, the old folder stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        write(new)
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            raise


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
