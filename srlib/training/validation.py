"""What a run is judged by: restorations of fixed validation clips, their scores, and what is kept of early training."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from srlib.audio.files import write, write_text
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Corpus
from srlib.degrade import Degradation
from srlib.measure import perceptual
from srlib.measure.metrics import HEADLINE_HZ, lsd, texture_high
from srlib.measure.systems import restore
from srlib.restore.pipeline import RestorationPipeline

# (cutoff in Hz, noise, amplitude, tone in Hz)
_CONDITIONS = (
    (4000, "none", 0.0, None),
    (8000, "none", 0.0, None),
    (8000, "tone", 0.1, 3000.0),
    (8000, "white", 0.02, None),
)
MOST_CLIPS, CLIP_SECONDS = 6, 5.12
_SNAPSHOT_MERGE = "none"  # what the model makes of a clip, with nothing taken from the input


@dataclass(frozen=True)
class Clips:
    """The middle of a few validation tracks under the conditions that a run trains for."""

    corpus: Corpus
    stage: str
    noises: Collection[str]  # that the run trains for

    def scores(self, pipeline: RestorationPipeline) -> dict[str, float]:
        """Means over the clips: LSD to 19 kHz, texture above the cutoff and, where it is installed, Zimtohrli."""
        rows = []
        for reference, degradation in self._examples(MOST_CLIPS):
            restored = self._restored(pipeline, reference, degradation, "gain")
            row = {
                "val/lsd": lsd(reference, restored, convention="plain", f_high=HEADLINE_HZ),
                "val/texture_high": texture_high(reference, restored, degradation.stopband_hz(SAMPLE_RATE)),
            }
            heard = perceptual.measure(reference, restored, ("zimtohrli",))
            rows.append(row | {f"val/{name}": value for name, value in heard.items()})
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def snapshot(self, pipeline: RestorationPipeline, run: Path, step: int) -> None:
        """Keep what the model makes of the first clip at this step, with records that replay its degradations."""
        folder = run / "snapshots"
        folder.mkdir(exist_ok=True)
        for reference, degradation in self._examples(1):
            stem = f"{degradation.noise_type}-{step:06d}"
            write(folder / f"{stem}-reference.flac", reference, SAMPLE_RATE, "PCM_16")
            restored = self._restored(pipeline, reference, degradation, _SNAPSHOT_MERGE)
            write(folder / f"{stem}-restored.flac", restored, SAMPLE_RATE, "PCM_16")
            record = {"track": self.corpus.names[0], "run_id": run.name, "global_step": step, "merge": _SNAPSHOT_MERGE}
            record["degradation"] = degradation.record(SAMPLE_RATE)
            write_text(folder / f"{stem}.json", json.dumps(record, indent=1) + "\n")

    def _examples(self, clips: int) -> Iterator[tuple[np.ndarray, Degradation]]:
        """Reference `[samples]` and what is done to it; what sees the true log-mel alone meets every clip once."""
        conditions = [condition for condition in _CONDITIONS if condition[1] == "none" or condition[1] in self.noises]
        for track in range(min(clips, len(self.corpus.names))):
            reference = self.corpus.middle(track, round(CLIP_SECONDS * SAMPLE_RATE))
            for cutoff, noise, amplitude, tone in conditions if self.stage == "ldm" else conditions[:1]:
                yield reference, Degradation(cutoff, noise_type=noise, noise_amplitude=amplitude, tone_hz=tone)

    @torch.no_grad()
    def _restored(
        self, pipeline: RestorationPipeline, reference: np.ndarray, degradation: Degradation, merge: str
    ) -> np.ndarray:
        if self.stage != "ldm":
            return pipeline.vocode_truth(reference)
        degraded = degradation.apply(reference, SAMPLE_RATE)
        return restore(pipeline, degraded, degradation, merge=merge).audio
