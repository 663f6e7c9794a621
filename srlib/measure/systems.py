"""Systems that restore a degraded clip: variations of our model, baselines, limits, fillings of gaps, any command.

A system is a callable of a `Case` and a seed that returns [samples] at 48 kHz, or a `RestorationOutput`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from srlib.config import SAMPLE_RATE, Profile
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import baselines, limits
from srlib.measure.conditions import Case, Command
from srlib.restore.pipeline import RestorationOutput, RestorationPipeline, build

System = Callable[[Case, int], np.ndarray | RestorationOutput]

_AUDIOSR = {"merge": "replace", "excitation": "vocoder"}  # AudioSR's own: the known band copied, a trained vocoder
# Row of the main table -> variant of the weights, and options of the call.
MODELS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "prior": (None, {"num_inference_steps": 0}),  # the simplest thing that could work
    "audiosr_lowpass": ("lowpass", {"denoise": "off", **_AUDIOSR}),  # no noise in training
    "ours_replace": (None, _AUDIOSR),  # the source report: noise in training, replacement
    "ours_sample": (None, {"num_inference_steps": 8}),
    "ours": (None, {}),
}


@cache
def load_pipeline(model: str, variant: str | None, device: str) -> RestorationPipeline:
    """A model, loaded once in a process; `variant="lowpass"` is the one trained without noise."""
    pipe = build("tiny") if model == "tiny" else RestorationPipeline.from_pretrained(model, variant=variant)
    return pipe.to(device)


def restore(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation, seed: int = 0, **options
) -> RestorationOutput:
    """Restore `degraded` [samples] at 48 kHz with the edges of the band from the record.

    Options are those of the pipeline's call; with `cutoff_hz="auto"` among them it detects the edges.
    """
    known = {"cutoff_hz": degradation.passband_hz(SAMPLE_RATE), "stopband_hz": degradation.stopband_hz(SAMPLE_RATE)}
    options = options if "cutoff_hz" in options else known | options
    return pipe(degraded, SAMPLE_RATE, generator=seed, gaps=degradation.gaps, **options)


@dataclass(frozen=True)
class Model:
    """A model (name, folder or hub id) with `options` of its call; without `cutoff_hz` it gets the true edges."""

    model: str = "compact"
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    def __call__(self, case: Case, seed: int = 0) -> RestorationOutput:
        """Restore."""
        pipe = load_pipeline(self.model, self.variant, self.device)
        return restore(pipe, case.degraded, case.degradation, seed, **self.options)


def true_log_mel(model: str, device: str, case: Case, seed: int = 0) -> np.ndarray:
    """GT-Mel: the trained vocoder of a model on the log-mel of the reference."""
    return load_pipeline(model, None, device).vocode_truth(case.reference, through_autoencoder=False)


def _of(function: Callable, attributes: Sequence[str], case: Case, seed: int = 0) -> np.ndarray:
    """A function of some attributes of the case."""
    return function(*(getattr(case, name) for name in attributes))


TABLE: dict[str, System] = {
    name: partial(_of, function, attributes)
    for name, function, *attributes in (
        ("reference", np.copy, "reference"),
        ("unprocessed", np.copy, "degraded"),
        ("oracle", limits.oracle, "reference", "degraded", "degradation"),
        ("ideal_wiener", limits.ideal_wiener, "filtered", "degraded"),
        ("band_replication", baselines.band_replication, "degraded", "passband_hz"),
        ("wiener", baselines.wiener, "degraded"),
        ("notch", baselines.notch, "degraded"),
        ("repetition", baselines.repetition, "degraded", "degradation"),
        ("interpolation", baselines.interpolation, "degraded", "degradation"),
    )
}


def named(names: Mapping[str, Any] | tuple | list, profile: Profile, device: str = "cpu") -> dict[str, System]:
    """{name: system} from names in `TABLE` or `MODELS`, `gt_mel`, commands, model folders and options of our model.

    A mapping gives each row a name of its own: {row: one of those, options of the pipeline's call, or a system}.
    """
    rows = names if isinstance(names, Mapping) else {name: name for name in names}
    return {row: _system(given, profile, device) for row, given in rows.items()}


def _system(given: Any, profile: Profile, device: str) -> System:
    if callable(given):
        return given
    variant, options = MODELS.get(given, (None, None)) if isinstance(given, str) else (None, given)
    if options is not None:
        steps = {"num_inference_steps": profile.num_inference_steps}
        return Model(profile.model, device, {**steps, **options}, variant)
    if given == "gt_mel":
        return partial(true_log_mel, profile.model, device)
    if "{in}" in given and "{out}" in given:
        return partial(_of, partial(Command(given).apply, sample_rate=SAMPLE_RATE), ("degraded",))
    if Path(given).is_dir():
        return Model(given, device)
    if given not in TABLE:
        known = ", ".join(("gt_mel", *TABLE, *MODELS))
        kinds = f"choose one of {known}, a command with {{in}} and {{out}}, or a model folder"
        raise SrlibError(f"There is no system {given!r}: {kinds}.")
    return TABLE[given]
