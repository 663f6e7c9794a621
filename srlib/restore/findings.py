"""What a restoration found; a stand-in until the module of that name is merged."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Findings:
    """Seconds of audio, and where its band ends."""

    seconds: float
    cutoff_hz: float | None

    def as_dict(self) -> dict:
        """For a report."""
        return asdict(self)

    def sentence(self) -> str:
        """For a line."""
        return "full band" if self.cutoff_hz is None else f"band to {self.cutoff_hz:.0f} Hz"
