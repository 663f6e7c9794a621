"""Systems: what restores a degraded clip; our model's rows, baselines, limits, fillings of gaps, and any command.

A system is a callable of a `Case` and a seed that returns [samples] at 48 kHz, or a `RestorationOutput`.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from srlib.audio import files
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE, Profile
from srlib.degrade import Degradation, istft
from srlib.errors import SrlibError
from srlib.measure import baselines, limits
from srlib.measure.conditions import Case
from srlib.restore.pipeline import RestorationOutput, RestorationPipeline, build

System = Callable[[Case, int], np.ndarray | RestorationOutput]

_AUDIOSR = {"merge": "replace", "excitation": "vocoder"}  # AudioSR's own: the known band copied, a trained vocoder
MODELS = {  # row of the main table -> the weights it uses and how they are called
    "prior": (None, {"num_inference_steps": 0}),  # the simplest thing that could work
    "audiosr_lowpass": ("lowpass", {"denoise": False, **_AUDIOSR}),  # no noise in training
    "ours_replace": (None, _AUDIOSR),  # the source report: noise in training, replacement
    "ours_sample": (None, {"num_inference_steps": 8}),
    "ours": (None, {}),
}


@cache
def _load(model: str, variant: str | None, device: str) -> RestorationPipeline:
    pipe = build("tiny") if model == "tiny" else RestorationPipeline.from_pretrained(model, variant=variant)
    return pipe.to(device)


def load_pipeline(profile: Profile, variant: str | None = None, device: str = "cpu") -> RestorationPipeline:
    """The profile's model, loaded once in a process; `variant="lowpass"` is the one trained without noise."""
    return _load(profile.model, variant, device)


def restore(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation, seed: int = 0, **options
) -> RestorationOutput:
    """Restore `degraded` [samples] at 48 kHz, telling the pipeline from the record where the band ends.

    Args:
        options: what else the pipeline's call takes, e.g. `merge` or `num_inference_steps`.
    """
    known = {"cutoff_hz": degradation.passband_hz(SAMPLE_RATE), "stopband_hz": degradation.stopband_hz(SAMPLE_RATE)}
    return pipe(degraded, SAMPLE_RATE, generator=seed, gaps=degradation.gaps, **known, **options)


@dataclass(frozen=True)
class Model:
    """Our model with `options` of its call, told where the band ends."""

    model: str = "compact"
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    def __call__(self, case: Case, seed: int = 0) -> RestorationOutput:
        """Restore."""
        pipe = _load(self.model, self.variant, self.device)
        return restore(pipe, case.degraded, case.degradation, seed, **self.options)


def true_log_mel(model: str, device: str, case: Case, seed: int = 0) -> np.ndarray:
    """GT-Mel: the trained vocoder of a model on the log-mel of the reference."""
    return _vocoded(model, device, case.reference.tobytes())


@lru_cache(maxsize=2)  # one track comes with all of its conditions
def _vocoded(model: str, device: str, reference: bytes) -> np.ndarray:
    pipe = _load(model, None, device)
    return pipe.vocode_truth(np.frombuffer(reference, np.float32).copy(), through_autoencoder=False)


def blind(name: str, case: Case, seed: int = 0) -> np.ndarray:
    """A system of `baselines.BLIND`, which sees nothing but the degraded clip and its cutoff."""
    return baselines.BLIND[name](case.degraded, SAMPLE_RATE, case.passband_hz, seed)


def ridge(ridges: Mapping[str, baselines.Ridge], case: Case, seed: int = 0) -> np.ndarray:
    """The ridge regression of each condition, as `sweep.fit_ridges` gives them."""
    return ridges[case.condition].restore(case.degraded, case.degradation)


def command(template: str, case: Case, seed: int = 0) -> np.ndarray:
    """Any program: a command with `{in}` and `{out}`, for the degraded clip as wav at 48 kHz and for what it writes.

    Channels are averaged, any sample rate is resampled, and the length is that of the clip.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = {"in": f"{folder}/in.wav", "out": f"{folder}/out.wav"}
        files.write(paths["in"], case.degraded[None], SAMPLE_RATE, "FLOAT")
        words = [word.format(**paths) for word in shlex.split(template)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not Path(paths["out"]).is_file():
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise SrlibError(f"{template}: ended with code {done.returncode} and no output; it said: {said}")
        wav = files.resample(*files.read(paths["out"]), SAMPLE_RATE).mean(axis=0)
    samples = len(case.degraded)
    return np.pad(wav, (0, max(0, samples - len(wav))))[:samples]


def reference(case: Case, seed: int = 0) -> np.ndarray:
    """The reference itself."""
    return case.reference


def oracle(case: Case, seed: int = 0) -> np.ndarray:
    """`limits.oracle`."""
    return limits.oracle(case.reference, case.degraded, case.degradation)


def ideal_wiener(case: Case, seed: int = 0) -> np.ndarray:
    """`limits.ideal_wiener`, which knows what the filter left."""
    return limits.ideal_wiener(case.filtered, case.degraded)


def repetition(case: Case, seed: int = 0) -> np.ndarray:
    """Gaps filled with what came before them, as often as it takes."""
    filled = case.degraded.copy()
    for first, last in _gap_samples(case):
        filled[first:last] = np.resize(case.degraded[max(2 * first - last, 0) : first], last - first)
    return filled


def interpolation(case: Case, seed: int = 0) -> np.ndarray:
    """Gaps filled with noise whose magnitudes are interpolated in time from frame to frame beside the gap."""
    filled, magnitude = case.degraded.copy(), np.abs(limits.spectrum_of(case.degraded))
    for first, last in _gap_samples(case):
        left, right = (first - N_FFT // 2) // HOP_LENGTH, -(-(last + N_FFT // 2) // HOP_LENGTH)  # whole frames
        share = np.linspace(0, 1, right - left + 1)[:, None]
        magnitude[left : right + 1] = (1 - share) * magnitude[left] + share * magnitude[right]
    noise = limits.spectrum_of(np.random.default_rng(seed).standard_normal(len(filled)))
    generated = istft(magnitude * noise / np.abs(noise), len(filled), N_FFT, HOP_LENGTH)
    for first, last in _gap_samples(case):
        filled[first:last] = generated[first:last]
    return filled


def _gap_samples(case: Case) -> list[tuple[int, int]]:
    return [(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)) for start, end in case.degradation.gaps]


TABLE: dict[str, System] = {
    "reference": reference, "oracle": oracle, "ideal_wiener": ideal_wiener, "repetition": repetition,
    "interpolation": interpolation, **{name: partial(blind, name) for name in baselines.BLIND},
}  # fmt: skip


def named(names: Mapping[str, Any] | tuple | list, profile: Profile, device: str = "cpu") -> dict[str, System]:
    """{name: system} of names in `TABLE` or `MODELS`, `gt_mel`, command templates and options of our model.

    Args:
        names: such names, or {row: name, command template, options of the pipeline's call, or a system}.
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
        return partial(command, given)
    if given not in TABLE:
        known = ", ".join(("gt_mel", *TABLE, *MODELS))
        raise SrlibError(f"There is no system {given!r}: choose one of {known}, or a command with {{in}} and {{out}}.")
    return TABLE[given]
