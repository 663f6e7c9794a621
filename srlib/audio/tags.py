"""Metadata of audio files: tags, cover, chapters, speaker layout. ffprobe reads them; there is one writer a format."""

from __future__ import annotations

import base64
import io
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import mutagen
from mutagen import flac, id3, mp4

from srlib.audio.decoding import probe, sound

# Tags that describe the old file and not the music, by ffprobe's names.
_OF_THE_FILE = {
    "encoder", "software", "encoded_by", "major_brand", "minor_version", "compatible_brands", "creation_time",
    "duration", "language", "handler_name", "vendor_id", "itunsmpb", "waveformatextensible_channel_mask",
}  # fmt: skip
_FRAMES = {
    "title": "TIT2", "artist": "TPE1", "album": "TALB", "album_artist": "TPE2", "track": "TRCK", "disc": "TPOS",
    "composer": "TCOM", "genre": "TCON", "date": "TDRC", "copyright": "TCOP", "publisher": "TPUB", "tbpm": "TBPM",
}  # fmt: skip
_VORBIS = {"album_artist": "albumartist", "track": "tracknumber", "disc": "discnumber"}
# Speakers of WAVE_FORMAT_EXTENSIBLE, a bit each, by ffmpeg's names of layouts (libavutil/channel_layout.h).
_MASKS = {
    "2.1": 0xB, "3.0": 0x7, "3.0(back)": 0x103, "3.1": 0xF, "4.0": 0x107, "4.1": 0x10F, "quad": 0x33,
    "quad(side)": 0x603, "5.0": 0x37, "5.0(side)": 0x607, "5.1": 0x3F, "5.1(side)": 0x60F, "6.0": 0x707,
    "6.1": 0x70F, "6.1(back)": 0x13F, "7.0": 0x637, "7.1": 0x63F, "7.1(wide)": 0xFF,
}  # fmt: skip


@dataclass(frozen=True)
class Metadata:
    """Tags by ffprobe's names, the cover's bytes, chapters as (seconds, title), and ffmpeg's name of the layout."""

    tags: dict[str, str] = field(default_factory=dict)
    cover: bytes | None = None
    chapters: list[tuple[float, str]] = field(default_factory=list)
    layout: str | None = None
    bext: bytes | None = None  # chunk of Broadcast WAV (EBU Tech 3285), as in the file

    @property
    def mask(self) -> int:
        """Speaker bits of a layout beyond stereo; 0 if it is not known."""
        return _MASKS.get(self.layout or "", 0)


def read_metadata(path: Path) -> Metadata:
    """The metadata of a file; without ffmpeg there are none."""
    report = probe(path)
    stream = sound(report) or {}
    tags = report.get("format", {}).get("tags") or stream.get("tags", {})  # Ogg has them in the stream
    kept = {name.lower(): _text(value) for name, value in tags.items() if name.lower() not in _OF_THE_FILE}
    covers = [other["index"] for other in report.get("streams", ()) if other["disposition"]["attached_pic"]]
    chapters = [
        (float(chapter["start_time"]), _text(chapter.get("tags", {}).get("title", "")))
        for chapter in report.get("chapters", ())
    ]
    cover = _cover(path, covers[0]) if covers else None
    return Metadata(kept, cover, chapters, stream.get("channel_layout"), _bext(path))


def _text(value: str) -> str:
    """Text of a tag; bytes that are no UTF-8 are read as Windows-1252."""
    raw = any("\udc80" <= letter <= "\udcff" for letter in value)
    return value.encode("utf-8", "surrogateescape").decode("cp1252", "replace") if raw else value


def _cover(path: Path, index: int) -> bytes | None:
    command = ["ffmpeg", "-nostdin", "-v", "quiet", "-protocol_whitelist", "file", "-i", f"file:{path}"]
    command += ["-map", f"0:{index}", "-c", "copy", "-f", "image2pipe", "pipe:1"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout or None


def _bext(path: Path) -> bytes | None:
    """The chunk bext of a WAV file of any size; in RF64 and BW64 the chunk ds64 holds the size of the samples."""
    with path.open("rb") as stream:
        if stream.read(12)[:4] not in (b"RIFF", b"RF64", b"BW64"):
            return None
        samples_size = 0
        while len(head := stream.read(8)) == 8:
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"bext":
                return stream.read(size)
            if name == b"ds64":
                samples_size = int.from_bytes(stream.read(16)[8:], "little")
                size -= 16
            if name == b"data" and size == 2**32 - 1:
                size = samples_size
            stream.seek(size + size % 2, io.SEEK_CUR)
    return None


def write_metadata(path: Path, suffix: str, metadata: Metadata, old_rate: int, new_rate: int) -> None:
    """Add metadata to a finished file of a format: .wav, .flac, .ogg, .opus, .mp3; to .m4a the cover alone."""
    if suffix == ".wav":
        _write_wave(path, metadata, old_rate, new_rate)
    elif suffix == ".mp3":
        _id3(metadata).save(path)
    elif suffix != ".m4a":
        _write_vorbis(path, metadata)
    elif metadata.cover:
        file = mp4.MP4(path)
        file["covr"] = [mp4.MP4Cover(metadata.cover, 14 if _mime(metadata.cover) == "image/png" else 13)]
        file.save()


def _mime(cover: bytes) -> str:
    return "image/png" if cover.startswith(b"\x89PNG") else "image/jpeg"


def _id3(metadata: Metadata) -> id3.ID3:
    tags = id3.ID3()
    for name, text in metadata.tags.items():
        if name == "comment":
            tags.add(id3.COMM(encoding=3, lang="XXX", desc="", text=[text]))
        elif frame := _FRAMES.get(name):
            tags.add(getattr(id3, frame)(encoding=3, text=[text]))
        else:
            tags.add(id3.TXXX(encoding=3, desc=name, text=[text]))
    if metadata.cover:
        tags.add(id3.APIC(encoding=3, mime=_mime(metadata.cover), type=3, desc="", data=metadata.cover))
    return tags


def _write_vorbis(path: Path, metadata: Metadata) -> None:
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    for name, text in metadata.tags.items():
        with suppress(ValueError):  # a name that Vorbis comments cannot have
            file[_VORBIS.get(name, name)] = text
    for i, (seconds, title) in enumerate(metadata.chapters, 1):
        minutes, rest = divmod(seconds, 60)
        file[f"chapter{i:03d}"] = f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{rest:06.3f}"
        file[f"chapter{i:03d}name"] = title
    if metadata.mask:
        file["waveformatextensible_channel_mask"] = f"0x{metadata.mask:04x}"
    if metadata.cover:
        picture = flac.Picture()
        picture.type, picture.mime, picture.data = 3, _mime(metadata.cover), metadata.cover
        if isinstance(file, flac.FLAC):
            file.add_picture(picture)
        else:
            file["metadata_block_picture"] = base64.b64encode(picture.write()).decode()
    file.save()


def set_speakers(path: Path, mask: int) -> None:
    """Set the speakers of a WAV file of WAVE_FORMAT_EXTENSIBLE."""
    with path.open("r+b") as stream:
        stream.seek(stream.read(128).index(b"fmt ") + 28)  # bytes from there to the mask
        stream.write(mask.to_bytes(4, "little"))


def _write_wave(path: Path, metadata: Metadata, old_rate: int, new_rate: int) -> None:
    """Append chunks to a WAV file: cues, bext with its start (samples since midnight) at the new rate, and ID3."""
    chunks = _cues(metadata.chapters, new_rate) if metadata.chapters else []
    if metadata.bext and len(metadata.bext) >= 602:  # bytes, without the coding history
        start = round(int.from_bytes(metadata.bext[338:346], "little") * new_rate / old_rate)
        chunks.append((b"bext", metadata.bext[:338] + start.to_bytes(8, "little") + metadata.bext[346:]))
    if metadata.tags or metadata.cover:
        tags = io.BytesIO()
        _id3(metadata).save(tags, padding=lambda _: 0)
        chunks.append((b"id3 ", tags.getvalue()))
    with path.open("r+b") as stream:
        place, width = (20, 8) if stream.read(4) == b"RF64" else (4, 4)  # of the size of the file
        stream.seek(0, io.SEEK_END)
        stream.write(bytes(stream.tell() % 2))
        for name, content in chunks:
            stream.write(_chunk(name, content))
        size = stream.tell() - 8
        stream.seek(place)
        stream.write(size.to_bytes(width, "little"))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)


def _cues(chapters: list[tuple[float, str]], sample_rate: int) -> list[tuple[bytes, bytes]]:
    """Chunks of WAV: a place for each chapter, and its title as a label."""
    points, labels = len(chapters).to_bytes(4, "little"), b"adtl"
    for i, (seconds, title) in enumerate(chapters, 1):
        number, place = i.to_bytes(4, "little"), round(seconds * sample_rate).to_bytes(4, "little")
        points += number + place + b"data" + bytes(8) + place
        labels += _chunk(b"labl", number + title.encode() + b"\0")
    return [(b"cue ", points), (b"LIST", labels)]
