"""The settings of one training run, and their check; a recipe is a TOML file of those that differ from the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from srlib.degrade import DegradationConfig
from srlib.errors import SrlibError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; a recipe file (TOML) holds the ones that differ from these."""

    size: str = "compact"  # model size, unless the run starts from a folder
    base: str = "regressor"  # what the stage nvsr trains: regressor, or resunet (the baseline NVSR-ResUNet)
    seed: int = 0
    batch_size: int = 16  # of all processes together
    frames: int = 256  # mel frames of a crop, 10 ms each
    max_steps: int = 2000
    epochs: int = 0  # if not 0: the length of the run instead of max_steps, one crop of each track an epoch
    one_crop_a_track: bool = False  # each epoch visits every track once; else long tracks are drawn more often
    augment: bool = True  # mixing, level, polarity and tilt of the reference
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    constant_rate: bool = False  # after the warm-up; else a cosine to zero
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    fit_batches: int = 100  # batches for what is fitted or stored before the first step (vae, ldm: 8 at most)
    precision: str = "no"  # or bf16
    prefetch: int = 0  # threads that draw the batches of the next steps
    log_every: int = 20  # steps
    validate_every: int = 200  # steps; also writes a checkpoint
    snapshot_steps: tuple[int, ...] = ()  # steps whose restorations are kept, to show early and late training
    noise_weights: Mapping[str, float] = field(default_factory=lambda: {"none": 1.0, "tone": 1.0, "white": 1.0})
    gap_probability: float = 0.0
    cutoff_hz: tuple[float, float] = (1800.0, 18000.0)  # a little beyond the 2 to 16 kHz that are restored
    condition_dropout: float = 0.1  # ldm: share of samples trained without their condition
    min_snr_gamma: float = 5.0  # ldm: clip of the weighting by signal-to-noise ratio; 0 weights velocities equally
    last_step_share: float = 0.1  # ldm: share of samples trained at the last timestep, where one step sampling starts
    estimated_share: float = 0.0  # vocoder: share of samples whose log-mel is what the base estimates of a degraded one
    adversarial_weight: float = 0.0  # vocoder: of the loss against discriminators of spectra; 0 has none
    adversarial_start: int = 0  # step from which they take part
    adversarial_frames: int = 64  # length of the crop that they see of each sample, 10 ms each

    @classmethod
    def load(cls, config: Mapping[str, Any] | str | Path) -> TrainConfig:
        """From a mapping or a TOML file; an unknown setting is an error."""
        if not isinstance(config, Mapping):
            config = read_toml(config)
        unknown = sorted(set(config) - {f.name for f in fields(cls)})
        if unknown:
            raise SrlibError(f"Unknown training settings {', '.join(unknown)}: see srlib.recipe.TrainConfig.")
        return cls(**config)

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if f.type == "int" and not (isinstance(getattr(self, f.name), int))]
        counts = ("batch_size", "frames", "max_steps", "log_every", "validate_every", "fit_batches")
        wrong += [name for name in counts if name not in wrong and getattr(self, name) < 1]
        if self.frames % 64:
            wrong.append("frames (a multiple of 64)")
        if self.precision not in ("no", "bf16"):
            wrong.append("precision (no or bf16)")
        if self.base not in ("regressor", "resunet"):
            wrong.append("base (regressor or resunet)")
        if wrong:
            raise SrlibError(f"Unusable values of training settings {', '.join(wrong)}: see srlib.recipe.TrainConfig.")

    def degradation(self) -> DegradationConfig:
        """What the crops of this run suffer."""
        low, high = self.cutoff_hz
        return DegradationConfig(
            cutoff_hz=(low, high), noise_weights=self.noise_weights, gap_probability=self.gap_probability
        )


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file."""
    path = Path(path)
    if not path.is_file():
        raise SrlibError(f"There is no configuration file {path}: give a recipe, recipes/compact/*.toml.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SrlibError(f"{path} is not TOML ({error}): correct it.") from error
