"""Reading and writing of audio files, resampling, downmix, and atomic writing of any file."""

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
from mutagen import MutagenError

from srlib.audio.decoding import BLOCK, VORBIS_ORDER, decoders, find_ffmpeg, limited, native_name
from srlib.audio.recording import Recording, Resampler, as_channels, check_finite, open_recording
from srlib.audio.tags import Metadata, set_speakers, write_metadata
from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError, one_line

_SUBTYPE = {".wav": "FLOAT", ".flac": "PCM_24", ".ogg": "VORBIS"}  # default subtypes of libsndfile's formats
# Arguments of ffmpeg, near the highest quality of each encoder.
_ENCODERS = {
    ".mp3": ["-c:a", "libmp3lame", "-q:a", "0", "-f", "mp3"],
    ".m4a": ["-c:a", "aac", "-b:a", "256k", "-f", "ipod"],
    ".opus": ["-c:a", "libopus", "-b:a", "192k", "-f", "opus"],
}
OUTPUT_SUFFIXES = (*_SUBTYPE, *_ENCODERS)
_BITS = {"PCM_16": 16, "PCM_24": 24}  # bits a sample
_SET_ADD_PEAK_CHUNK = 0x1050  # command of libsndfile (sndfile.h); the chunk holds the time of day: bytes would differ
# Tags that libsndfile can write as INFO of WAV, for programs that read no ID3 there: {ffprobe's name: soundfile's}.
# Beside INFO or bext, ffmpeg before version 8 shows no ID3: a file with further tags and without bext gets no INFO.
_TEXTS = {"track": "tracknumber"} | {
    name: name for name in ("title", "artist", "album", "genre", "date", "comment", "copyright")
}
_WAV_LIMIT = 2**32 - 2**24  # bytes; the size field of WAV has 32 bits, and tags follow the samples


def read(path: str | os.PathLike, start: int = 0, frames: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file, or `frames` samples of it from sample `start` on.

    Returns float32 [channels, samples] and the sample rate in Hz, of the first audio stream that libsndfile or ffmpeg
    finds. Missing, empty, truncated and non-audio files and NaN or Inf samples raise `SrlibError`.
    """
    if start == 0 and frames is None:
        with open_recording(path, strict=True) as recording:
            return np.concatenate(list(recording.blocks()), axis=1), recording.sample_rate
    decoder = next(decoders(Path(path)))
    blocks = list(limited(decoder.blocks(start), sys.maxsize if frames is None else frames))
    if not blocks:
        raise SrlibError(f"{path} holds no samples from sample {start} on: nothing to process.")
    for block in blocks:
        check_finite(block, str(path))
    return np.concatenate(blocks, axis=1), decoder.sample_rate


def write(path: str | os.PathLike, wav: np.ndarray, sample_rate: int, subtype: str | None = None) -> None:
    """Write [samples] or [channels, samples] as .wav (float32) or .flac (24 bit) unless `subtype` says otherwise.

    Integer subtypes clip at full scale. The same samples give the same bytes.
    """
    with open_output(path, Recording.from_array(wav, sample_rate), sample_rate, subtype, sample_rate) as put:
        put(as_channels(wav, sample_rate))


@contextmanager
def open_output(
    path: str | os.PathLike,
    recording: Recording,
    sample_rate: int = SAMPLE_RATE,
    subtype: str | None = None,
    put_rate: int = SAMPLE_RATE,
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes the next `[channels, n]` of a file; the file gets its name when it is complete.

    Integers have no samples beyond full scale: they clip, with a warning.

    Args:
        path: its suffix, one of OUTPUT_SUFFIXES, selects the format.
        recording: the source, whose length, tags, cover, chapters and speakers are kept.
        sample_rate: of the file, Hz.
        subtype: of libsndfile; by default float32 for .wav and 24 bit for .flac. 16 bit is dithered.
        put_rate: sample rate of the blocks, Hz.
    """
    path, suffix, loudest = Path(path), Path(path).suffix.lower(), 0.0
    formats = (".wav", ".flac") if subtype else OUTPUT_SUFFIXES
    if suffix not in formats:
        wanted = f"audio {'with a subtype ' if subtype else ''}is written as {' or '.join(formats)}"
        raise SrlibError(f"{path}: {wanted}, not {f'as {suffix}' if suffix else 'without a suffix'}.")
    if suffix in _ENCODERS:
        find_ffmpeg()
    resampler = Resampler(put_rate, sample_rate, recording.channels, recording.samples_at(sample_rate))
    subtype = subtype or _SUBTYPE.get(suffix, "FLOAT")
    with atomic_path(path) as temporary:
        with _sink(temporary, path, recording, sample_rate, subtype) as sink:

            def put(block: np.ndarray) -> None:
                nonlocal loudest
                check_finite(block, f"{path} was not written: the audio", "check the model's weights")
                block = resampler.feed(block)
                loudest = max(loudest, float(np.abs(block).max(initial=0)))
                sink(block)

            yield put
            sink(resampler.end())
        if (mask := recording.metadata.mask) and suffix not in (".flac", ".ogg"):
            sides = mask & 0x600 if suffix == ".opus" and not mask & 0x130 else 0  # its side speakers are the back ones
            set_speakers(temporary, mask - sides + (sides >> 5))
        if suffix in _ENCODERS:
            _encode(temporary, path, recording.metadata)
            encoded = next(decoders(temporary))
            if encoded.sample_rate != sample_rate:
                recording.warn(path, f"it has {encoded.sample_rate} Hz, since {suffix} has no {sample_rate} Hz")
            if encoded.channels != recording.channels:
                recording.warn(path, f"it has {encoded.channels} channels, since {suffix} has no {recording.channels}")
        try:
            write_metadata(temporary, suffix, recording.metadata, recording.sample_rate, sample_rate)
        except (MutagenError, ValueError, OverflowError) as error:  # no reason to lose the audio
            recording.warn(path, f"not all tags were kept ({one_line(error)})")
    if loudest > 1 and subtype in _BITS:
        recording.warn(path, f"samples up to {loudest:.2f} clip at full scale, 1; a .wav of floats keeps them")


@contextmanager
def _sink(
    temporary: Path, path: Path, recording: Recording, sample_rate: int, subtype: str
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that writes blocks into a file of libsndfile; `path` is the name in its errors."""
    samples, channels, rng = recording.samples_at(sample_rate), recording.channels, np.random.default_rng(0)
    metadata = recording.metadata
    wave = "WAVEX" if metadata.mask else "WAV"
    wave = "RF64" if samples * channels * 4 > _WAV_LIMIT else wave  # bytes of float32
    file_format = {".flac": "FLAC", ".ogg": "OGG"}.get(path.suffix.lower(), wave)
    if not soundfile.check_format(file_format, subtype):
        raise SrlibError(f"{path}: {file_format} has no subtype {subtype}: choose PCM_16, PCM_24 or, in .wav, FLOAT.")
    name = native_name(temporary)
    try:
        with soundfile.SoundFile(name, "w", sample_rate, channels, subtype, format=file_format) as file:
            soundfile._snd.sf_command(file._file, _SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)
            texts = {_TEXTS[name]: text for name, text in metadata.tags.items() if name in _TEXTS}
            for tag, text in texts.items() if metadata.bext or len(texts) == len(metadata.tags) else ():
                setattr(file, tag, text)

            def write(block: np.ndarray) -> None:
                block = block[VORBIS_ORDER.get(channels, slice(None))] if file_format == "OGG" else block
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
    for pair in metadata.tags.items():
        command += ["-metadata", "=".join(pair)[: 2**15 - 1]]  # Linux takes arguments up to 128 KiB
    encoded = temporary.with_name("encoded")
    command += [*_ENCODERS[path.suffix.lower()], f"file:{encoded}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if done.returncode:
        raise SrlibError(f"Cannot write {path} ({one_line(done.stderr)}).")
    os.replace(encoded, temporary)


def _quantised(block: np.ndarray, subtype: str, rng: np.random.Generator) -> np.ndarray:
    """Integers of 16 or 24 bit in the upper bits of int32, clipped; other subtypes are left to libsndfile.

    16 bit gets triangular dither of two steps, except samples that are 16-bit values already, such as silence.
    libsndfile itself would scale by 2^n - 1, which moves loud samples by a step.
    """
    if subtype not in _BITS:
        return block
    limit = 2 ** (_BITS[subtype] - 1)
    steps = block.astype(np.float64) * limit
    if subtype == "PCM_16":
        steps += (steps != np.rint(steps)) * (rng.random(block.shape) - rng.random(block.shape))
    return np.clip(np.rint(steps), -limit, limit - 1).astype(np.int32) << (32 - _BITS[subtype])


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path: the file or folder made there replaces `path` when the block ends without an error.

    Folders above `path` are made.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            part = Path(folder) / "part"  # without a suffix, so that no program takes it for audio
            yield part
            if part.is_dir() and path.is_dir():
                _exchange(part, path)
            else:
                os.replace(part, path)
    except OSError as error:
        raise SrlibError(f"Cannot write {path} ({error.strerror or error}).") from error


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of another, which is moved beside it; if that fails, the old one stays."""
    old = new.with_name("old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file or a folder, which takes the place of `path` once it is whole."""
    with atomic_path(path) as part:
        write(part)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, all of it or none."""
    write_atomically(path, lambda part: part.write_bytes(text.encode("utf-8")))


def resample(wav: np.ndarray, sample_rate: int, new_rate: int) -> np.ndarray:
    """Resample [samples] or [channels, samples] with soxr VHQ to exactly round(samples * new_rate / sample_rate)."""
    if sample_rate == new_rate:
        return wav
    rows = np.atleast_2d(wav)
    resampler = Resampler(sample_rate, new_rate, len(rows), max(1, round(rows.shape[1] * new_rate / sample_rate)))
    return np.concatenate([resampler.feed(rows), resampler.end()], axis=1).reshape(*wav.shape[:-1], -1)


def to_mono(wav: np.ndarray) -> np.ndarray:
    """Mean of the channels: [channels, samples] or [samples] -> [samples]."""
    return np.atleast_2d(wav).mean(axis=0, dtype=wav.dtype)
