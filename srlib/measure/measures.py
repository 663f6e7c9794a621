"""Measures of a sweep: functions of a `Trial` that give columns of its row, or several rows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.measure import metrics, perceptual
from srlib.measure.conditions import Case
from srlib.measure.lsd import HEADLINE_HZ, PLAIN, Convention, Spectra, distance
from srlib.measure.systems import System
from srlib.restore.cutoff import FULL_FROM_HZ, detect_band

_SEEDS = 3  # samples that diversity is measured over


@dataclass
class Trial:
    """One system on one case, and what it gave."""

    case: Case
    name: str
    system: System
    seed: int

    @cached_property
    def output(self) -> Any:
        """What the system returned: [samples], a `RestorationOutput`, or what else its measures take."""
        return self.system(self.case, self.seed)

    @cached_property
    def audio(self) -> np.ndarray:
        """The restored clip, [samples] at 48 kHz."""
        return getattr(self.output, "audio", self.output)

    @cached_property
    def spectra(self) -> Spectra:
        """Those of the restored clip."""
        return Spectra(self.audio[None])


Columns = dict[str, Any]
Measure = Callable[[Trial], Columns | list[Columns]]


@dataclass(frozen=True)
class Perceptual:
    """Measures of `srlib.measure.perceptual` by name; those that are not installed are left out.

    With `systems` or `conditions` they are taken of these alone.
    """

    names: tuple[str, ...] = ("zimtohrli",)
    systems: Collection[str] | None = None
    conditions: Collection[str] | None = None

    def __call__(self, trial: Trial) -> Columns:
        """One column each."""
        asked = (trial.name, self.systems), (trial.case.condition, self.conditions)
        wanted = all(chosen is None or name in chosen for name, chosen in asked)
        return perceptual.measure(trial.case.reference, trial.audio, self.names if wanted else ())


@dataclass(frozen=True)
class Distance:
    """The LSD by one convention after a change of the reference and of the estimate, as the column `name`."""

    name: str
    convention: Convention = PLAIN
    change_reference: Callable[[np.ndarray], np.ndarray] | None = None
    change_estimate: Callable[[np.ndarray], np.ndarray] | None = None

    def __call__(self, trial: Trial) -> Columns:
        """One column."""
        changes = (trial.case.truth, self.change_reference), (trial.spectra, self.change_estimate)
        truth, restored = (one if change is None else change(one.wav[0]) for one, change in changes)
        return {self.name: distance(truth, restored, self.convention)}


def scores(trial: Trial) -> Columns:
    """All of `metrics.evaluate`."""
    return metrics.evaluate(trial.case.truth, trial.spectra, degradation=trial.case.degradation)


def known_band(trial: Trial) -> Columns:
    """SNR below the cutoff against the reference as filtered; without a filter the band ends at 19 kHz."""
    edge_hz = trial.case.passband_hz or HEADLINE_HZ
    return {"snr_known_db": metrics.snr_low_db(trial.case.filtered, trial.audio, edge_hz)}


def noise_found(trial: Trial) -> Columns:
    """Whether our model found stationary noise."""
    findings = getattr(trial.output, "findings", None)
    return {"noise_found": None if findings is None else findings.noise_db is not None}


def samples(trial: Trial) -> Columns:
    """Log-mels above the band for `perceptual.accuracies` and, if the system samples, their `diversity`.

    Diversity is the standard deviation over three seeds, nat; the first is that of the trial.
    """
    f_low = cast(float, trial.case.stopband_hz)  # asked only of cases with a filter
    row: Columns = {
        "real": perceptual.upper_band(trial.case.reference, f_low),
        "restored": perceptual.upper_band(trial.audio, f_low),
    }
    if getattr(trial.system, "options", {}).get("num_inference_steps") not in (None, 0, 1):
        others = (trial.system(trial.case, trial.seed + i) for i in range(1, _SEEDS))
        mels = [perceptual.upper_band(output.log_mel, f_low) for output in (trial.output, *others)]
        row["diversity"] = float(np.std(mels, axis=0).mean())
    return row


def in_gaps(trial: Trial) -> list[Columns]:
    """One row a gap: plain LSD to 19 kHz and log-mel distance over the frames with their centre inside it."""
    truth, restored = trial.case.truth, trial.spectra
    power = (truth.log_power(PLAIN) - restored.log_power(PLAIN))[0, :, PLAIN.band]
    mel = (truth.log_mel - restored.log_mel)[0, 0]
    centres = np.arange(len(power)) * PLAIN.hop_length, (np.arange(len(mel)) + 0.5) * HOP_LENGTH
    rows = []
    for start, end in trial.case.degradation.gaps:
        inside = [(start * SAMPLE_RATE <= centre) & (centre < end * SAMPLE_RATE) for centre in centres]
        lsd_19k, log_mel_l1 = np.sqrt((power[inside[0]] ** 2).mean(1)).mean(), np.abs(mel[inside[1]]).mean()
        rows.append({"gap_ms": round(1000 * (end - start)), "lsd_19k": float(lsd_19k), "log_mel_l1": float(log_mel_l1)})
    return rows


@dataclass(frozen=True)
class Edge:
    """Where a detector says that the degraded clip's band ends, beside where it does, Hz.

    `<name>_inside`: from a share `tolerance` under the -3 dB point to one over the -20 dB point; full band: 18.5 kHz or
    more. `<name>_off`: distance from the transition, % of the -3 dB point.
    """

    name: str
    detector: Callable[[torch.Tensor], float]
    tolerance: float = 0.1

    def __call__(self, trial: Trial) -> Columns:
        """The columns low_hz, high_hz and three of the detector."""
        low_hz, high_hz = trial.case.passband_hz or FULL_FROM_HZ, trial.case.stopband_hz or FULL_FROM_HZ
        full = low_hz == high_hz >= FULL_FROM_HZ  # a sharp edge so high, or none
        if full:
            low_hz, high_hz = FULL_FROM_HZ, SAMPLE_RATE / 2
        edge_hz = self.detector(torch.from_numpy(trial.case.degraded))
        inside = (1 - self.tolerance) * low_hz <= edge_hz <= (1 + self.tolerance) * high_hz
        off = 100 * max(low_hz - edge_hz, edge_hz - high_hz, 0.0) / low_hz
        found = {"hz": edge_hz, "inside": edge_hz >= FULL_FROM_HZ if full else inside, "off": off}
        return {"low_hz": low_hz, "high_hz": high_hz} | {f"{self.name}_{key}": value for key, value in found.items()}


def band_edge(wav: torch.Tensor) -> float:
    """Our detector's -3 dB point of `[samples]` at 48 kHz, Hz."""
    return detect_band(wav).passband_hz
