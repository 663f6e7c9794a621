"""The log of a training run: a CSV file, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from srlib.audio.files import write_atomically

LOG_COLUMNS = (
    "run_id", "stage", "global_step", "wall_time", "train/loss", "val/loss", "val/lsd",
    "val/zimtohrli", "val/texture_high", "val/loss_raw", "learning_rate", "samples_per_second", "data_wait_share",
)  # fmt: skip
_FORMATS = {"wall_time": ".1f", "learning_rate": ".3g", "samples_per_second": ".2f", "data_wait_share": ".3f"}


def run_order(name: str) -> list[str | int]:
    """Key that sorts the names of runs: ldm-10 behind ldm-2, vocoder before vocoder-2."""
    return [int(piece) if piece.isdecimal() else piece for piece in re.split(r"(\d+)", name)]


class TrainingLog:
    """Appends rows to `log.csv` of a run's folder; a run that resumes first drops the rows it will write again."""

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        self.path = folder / "log.csv"
        if self.path.exists():
            self._forget_after(resumed_at)
        self._board = _tensorboard(folder / "tensorboard", resumed_at)

    def write(self, row: Mapping[str, str | int | float]) -> None:
        """One row of some of LOG_COLUMNS; the others stay empty."""
        fresh = not self.path.exists()
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        texts = {name: format(value, _FORMATS.get(name, ".5f")) for name, value in numbers.items()}
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow({**row, **texts})
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, row["global_step"])
            self._board.flush()

    def _forget_after(self, step: int) -> None:
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if int(row["global_step"]) <= step]

        def write_rows(partial: Path) -> None:
            with partial.open("w", newline="") as file:
                writer = csv.DictWriter(file, LOG_COLUMNS)
                writer.writeheader()
                writer.writerows(kept)

        write_atomically(self.path, write_rows)


def _tensorboard(folder: Path, step: int):
    """A SummaryWriter that forgets what was written after `step`, or None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)
