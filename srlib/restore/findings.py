"""The findings of a restoration, as a sentence and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from srlib.audio.recording import Recording
from srlib.restore.analysis import Analysis
from srlib.restore.gaps import LONGEST_S, SHORTEST_S
from srlib.restore.merge import FULL_BAND
from srlib.restore.options import Options
from srlib.settings import Gap

_NO_GAP = f"no gap of {1000 * SHORTEST_S:.0f} to {1000 * LONGEST_S:.0f} ms found; --gap START:END fills others"
_KINDS = ("tone", "hum")


@dataclass(frozen=True)
class Segment:
    """A time span of some channels (counted from 0) whose band ends at `passband_hz`; None is full band."""

    start_s: float
    end_s: float
    channels: tuple[int, ...]
    passband_hz: float | None


@dataclass(frozen=True)
class Findings:
    """Findings of one recording.

    Args:
        seconds: of the recording.
        segments: in order of their start; a steady recording has one, and silence none.
        noise_db: reduction of stationary noise, dB; None if none was found.
        tones_hz: stationary tones that were subtracted.
        hum_hz: the mains whose hum and harmonics were subtracted.
        gaps: (start, end) in seconds, filled.
        warnings: sentences on damage of the file and limits of the result.
    """

    seconds: float
    segments: tuple[Segment, ...] = ()
    noise_db: float | None = None
    tones_hz: tuple[float, ...] = ()
    hum_hz: tuple[float, ...] = ()
    gaps: tuple[Gap, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, recording: Recording, options: Options, analysis: Analysis, noise_db: float | None) -> Findings:
        """The findings of an analysed recording; `noise_db` is the reduction of its noise."""
        seconds = recording.samples / recording.sample_rate
        segments: dict[tuple[float, float, float | None], list[int]] = {}
        for part in (one for one in analysis.parts if one.layout.unique):  # not silent
            edge_hz = None if part.band == FULL_BAND else part.band.passband_hz
            for channel, spans in zip(part.channels, part.spans, strict=True):
                for start, end in spans:
                    segments.setdefault((start, min(end, seconds), edge_hz), []).append(channel)
        rows = sorted(segments.items(), key=lambda row: (row[0][0], row[1]))
        bands = tuple(Segment(start, end, tuple(sorted(channels)), hz) for (start, end, hz), channels in rows)
        combs = [comb for part in analysis.parts for channel in part.tones for comb in channel]
        tones, hum = (tuple(sorted({one.fundamental_hz for one in combs if one.kind == kind})) for kind in _KINDS)
        no_gap = options.gaps == "auto" and not analysis.gaps
        notes = (recording.incomplete, *recording.warnings, _NO_GAP if no_gap else None)
        return cls(seconds, bands, noise_db, tones, hum, analysis.gaps, tuple(note for note in notes if note))

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """One line for a person."""
        told = [self._bands()]
        if self.noise_db is not None:
            told.append(f"noise reduced by {self.noise_db:.0f} dB")
        if self.tones_hz:
            told.append(f"tone {', '.join(f'{hz:.0f}' for hz in self.tones_hz)} Hz subtracted")
        if self.hum_hz:
            told.append(f"hum {', '.join(f'{hz:.0f}' for hz in self.hum_hz)} Hz and its harmonics subtracted")
        if self.gaps:
            told.append("gap " + ", ".join(f"{start:.2f}-{end:.2f} s" for start, end in self.gaps) + " filled")
        return "; ".join([*told, *self.warnings])

    def _bands(self) -> str:
        if not self.segments:
            return "silence: nothing to restore"
        if all(segment.passband_hz is None for segment in self.segments):
            untouched = self.noise_db is None and not (self.tones_hz or self.hum_hz or self.gaps)
            return f"full band{': nothing to restore' if untouched else ''}; --cutoff-hz overrides"
        return ", ".join(self._of(segment) for segment in self.segments)

    def _of(self, segment: Segment) -> str:
        edge_hz, where = segment.passband_hz, []
        band = "full band, left as it is" if edge_hz is None else f"band to {edge_hz / 1000:.1f} kHz"
        if any(one.start_s > 0 for one in self.segments):
            clock = (f"{int(seconds) // 60}:{int(seconds) % 60:02d}" for seconds in (segment.start_s, segment.end_s))
            where.append("-".join(clock))
        if set(segment.channels) != {channel for one in self.segments for channel in one.channels}:
            where.append("channel " + ", ".join(str(channel + 1) for channel in segment.channels))
        return f"{band} ({', '.join(where)})" if where else band
