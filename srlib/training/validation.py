"""Validation of a run: restorations of fixed clips, their scores, and snapshots of early training."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from srlib.audio.files import write, write_text
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Corpus
from srlib.degrade import Degradation
from srlib.measure import perceptual
from srlib.measure.lsd import PLAIN, lsd
from srlib.measure.metrics import texture_high
from srlib.measure.systems import restore
from srlib.restore.pipeline import RestorationPipeline

_CONDITIONS = (  # a run is scored on those whose noise it trains on
    Degradation(4000),
    Degradation(8000),
    Degradation(8000, noise_type="tone", noise_amplitude=0.1, tone_hz=3000.0),
    Degradation(8000, noise_type="white", noise_amplitude=0.02),
)
MOST_CLIPS, CLIP_SECONDS = 6, 5.12  # clips; s, the middle of each track
_SNAPSHOT_MERGE = "none"  # a snapshot shows the generated audio alone


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
            edge_hz = cast(float, degradation.stopband_hz(SAMPLE_RATE))  # every condition has a filter
            restored = self._restored(pipeline, reference, degradation, "gain")
            row = {
                "val/lsd": lsd(reference, restored, convention=PLAIN),
                "val/texture_high": texture_high(reference, restored, edge_hz),
            }
            heard = perceptual.measure(reference, restored, ("zimtohrli",))
            rows.append(row | {f"val/{name}": value for name, value in heard.items()})
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def snapshot(self, pipeline: RestorationPipeline, run: Path, step: int) -> None:
        """Keep restorations of the first clip at this step, with records that replay its degradations."""
        folder = run / "snapshots"
        folder.mkdir(exist_ok=True)
        for reference, degradation in self._examples(1):
            noise = degradation.noise_type
            restored = self._restored(pipeline, reference, degradation, _SNAPSHOT_MERGE)
            for kind, wav in (("reference", reference), ("restored", restored)):
                write(folder / f"{noise}-{kind}.flac", wav, SAMPLE_RATE, "PCM_16")
            record = {"track": self.corpus.names[0], "run_id": run.name, "global_step": step, "merge": _SNAPSHOT_MERGE}
            record["degradation"] = degradation.record(SAMPLE_RATE)
            write_text(folder / f"{noise}.json", json.dumps(record, indent=1) + "\n")

    def _examples(self, clips: int) -> Iterator[tuple[np.ndarray, Degradation]]:
        """Reference `[samples]` and its degradation; stages other than ldm see the true log-mel, so each clip once."""
        conditions = [one for one in _CONDITIONS if one.noise_type == "none" or one.noise_type in self.noises]
        for track in range(min(clips, len(self.corpus.names))):
            reference = self.corpus.middle(track, round(CLIP_SECONDS * SAMPLE_RATE))
            for degradation in conditions if self.stage == "ldm" else conditions[:1]:
                yield reference, degradation

    @torch.no_grad()
    def _restored(
        self, pipeline: RestorationPipeline, reference: np.ndarray, degradation: Degradation, merge: str
    ) -> np.ndarray:
        if self.stage != "ldm":
            return pipeline.vocode_truth(reference)
        return restore(pipeline, degradation.apply(reference, SAMPLE_RATE), degradation, merge=merge).audio
