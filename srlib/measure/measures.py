"""Measures of a sweep: functions of a `Trial` that return columns of its row, or several rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch

from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.measure import metrics, perceptual
from srlib.measure.conditions import Case
from srlib.measure.lsd import HEADLINE_HZ, PLAIN, Convention, Spectra, lsd
from srlib.measure.metrics import ratio_db


@dataclass
class Trial:
    """The output of one system, by its name, for one case: [samples], or a `RestorationOutput`."""

    case: Case
    name: str
    output: Any

    @property
    def audio(self) -> np.ndarray:
        """The restored clip, [samples] at 48 kHz."""
        return getattr(self.output, "audio", self.output)

    @cached_property
    def spectra(self) -> Spectra:
        """Those of the restored clip."""
        return Spectra(self.audio[None])


Columns = dict[str, Any]
Change = Callable[[np.ndarray], np.ndarray]
Measure = Callable[[Trial], Columns | list[Columns]]


def scores(trial: Trial) -> Columns:
    """All of `metrics.evaluate`."""
    return metrics.evaluate(trial.case.truth, trial.spectra, degradation=trial.case.degradation)


def judged(
    trial: Trial,
    names: Collection[str] = ("zimtohrli",),
    systems: Collection[str] | None = None,
    conditions: Collection[str] | None = None,
) -> Columns:
    """The installed measures of `srlib.measure.perceptual`, a column each, for these systems and conditions only.

    None means all.
    """
    asked = (trial.name, systems), (trial.case.condition, conditions)
    wanted = all(chosen is None or name in chosen for name, chosen in asked)
    return perceptual.measure(trial.case.reference, trial.audio, names if wanted else ())


def distance_after(
    trial: Trial,
    name: str,
    convention: Convention = PLAIN,
    change_reference: Change | None = None,
    change_estimate: Change | None = None,
) -> Columns:
    """The LSD by a convention after changes of reference and estimate (None: no change), as the column `name`."""
    changes = (trial.case.truth, change_reference), (trial.spectra, change_estimate)
    truth, restored = (one if change is None else change(one.wav[0]) for one, change in changes)
    return {name: lsd(truth, restored, convention=convention)}


def edges(trial: Trial, detectors: Mapping[str, Callable[[torch.Tensor], Any]]) -> Columns:
    """True edges of the degraded clip's band, `low_hz` and `high_hz`, and the edge by each detector, `<name>_hz`."""
    wav = torch.from_numpy(trial.case.degraded)
    found = {f"{name}_hz": detect(wav) for name, detect in detectors.items()}
    found = {name: getattr(one, "passband_hz", one) for name, one in found.items()}
    return {"low_hz": trial.case.passband_hz, "high_hz": trial.case.stopband_hz} | found


def noise_found(trial: Trial) -> Columns:
    """Whether our model found stationary noise."""
    findings = getattr(trial.output, "findings", None)
    return {"noise_found": None if findings is None else findings.noise_db is not None}


def noise_left(trial: Trial, edges_hz: Sequence[float] = ()) -> list[Columns]:
    """Power of the error against the filtered reference over that of the added noise, dB; a row for each band.

    Bands lie between neighbouring edges; without edges there is one, the known band or, without a filter, 0 to 19 kHz.
    """
    waves = trial.audio, trial.case.degraded
    error, noise = (Spectra((wav - trial.case.filtered)[None]) for wav in waves)
    bands = pairwise(edges_hz or (0.0, trial.case.passband_hz or HEADLINE_HZ))
    return [
        {"low_hz": low, "high_hz": high, "noise_left_db": ratio_db(error.power(low, high), noise.power(low, high))}
        for low, high in bands
    ]


def upper_bands(trial: Trial) -> Columns:
    """Log-mels above the band, `real` and `restored`, for `perceptual.two_sample_accuracy`."""
    f_low = cast(float, trial.case.stopband_hz)  # asked only of cases with a filter
    waves = {"real": trial.case.reference, "restored": trial.audio}
    return {name: perceptual.upper_band(wav, f_low) for name, wav in waves.items()}


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
