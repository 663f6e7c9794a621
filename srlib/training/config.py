"""The settings of one training run, and their check; a recipe is a TOML file of those that differ from the defaults."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from srlib.config import SAMPLE_RATE
from srlib.degrade import NOISE_TYPES, DegradationConfig
from srlib.errors import SrlibError


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Neither NaN nor infinite, and a TOML integer may have any number of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_band(value: Any) -> bool:
    """A pair (low, high) of cutoffs in Hz."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and 0 < value[0] <= value[1] < SAMPLE_RATE / 2


def _is_range(value: Any) -> bool:
    """A pair (low, high) of amplitudes."""
    pair = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
    return pair and 0 <= value[0] <= value[1] <= 1


def _are_weights(value: Any) -> bool:
    """A table {noise: weight}."""
    known = isinstance(value, Mapping) and set(value) <= set(NOISE_TYPES) and all(map(_is_number, value.values()))
    return known and min(value.values(), default=0) >= 0 and sum(value.values()) > 0


# Names of settings, what each of them has to be, and whether a value is that; TOML has lists where these are tuples.
_RULES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("size", "a name", lambda v: isinstance(v, str)),
    ("precision", "no or bf16", lambda v: v in ("no", "bf16")),
    ("one_crop_a_track augment constant_rate", "true or false", lambda v: isinstance(v, bool)),
    ("seed", "a whole number from 0 to 4294967295", lambda v: _is_whole(v) and 0 <= v < 2**32),
    ("frames", "a multiple of 64", lambda v: _is_whole(v) and v > 0 and v % 64 == 0),
    (
        "batch_size max_steps log_every validate_every fit_batches",
        "a whole number above zero",
        lambda v: _is_whole(v) and v > 0,
    ),
    (
        "epochs warmup_steps prefetch fresh_examples pool_steps",
        "a whole number, zero or more",
        lambda v: _is_whole(v) and v >= 0,
    ),
    (
        "snapshot_steps",
        "a list of whole numbers above zero",
        lambda v: isinstance(v, list | tuple) and all(_is_whole(step) and step > 0 for step in v),
    ),
    ("learning_rate clip_norm", "a number above zero", lambda v: _is_number(v) and v > 0),
    ("weight_decay min_snr_gamma hours level_weight", "a number, zero or more", lambda v: _is_number(v) and v >= 0),
    (
        "ema_decay gap_probability condition_dropout last_step_share",
        "a number from 0 to 1",
        lambda v: _is_number(v) and 0 <= v <= 1,
    ),
    ("noise_weights", f"weights for {', '.join(NOISE_TYPES)}, not all zero", _are_weights),
    ("white_amplitude", "two amplitudes, the lower first, from 0 to 1", _is_range),
    ("cutoff_hz", f"two frequencies, the lower first, below {SAMPLE_RATE // 2} Hz", _is_band),
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; a recipe file (TOML) holds the ones that differ from these."""

    size: str = "compact"  # model size, unless the run starts from a folder
    seed: int = 0
    batch_size: int = 16  # of all processes together
    fresh_examples: int = 0  # of a batch; the others come from the steps before it. 0: all of them
    pool_steps: int = 256  # how long an example can be drawn again
    frames: int = 256  # mel frames of a crop, 10 ms each
    max_steps: int = 2000
    epochs: int = 0  # if not 0: the length of the run instead of max_steps, one crop of each track an epoch
    one_crop_a_track: bool = False  # each epoch visits every track once; else long tracks are drawn more often
    hours: float = 0.0  # of music that are drawn from, some of the tracks; 0: all of them
    augment: bool = True  # mixing, level, polarity and tilt of the reference
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    constant_rate: bool = False  # after the warm-up; else a cosine to zero
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    fit_batches: int = 100  # batches for what is fitted before the first step (vae: 8 at most)
    precision: str = "no"  # or bf16
    prefetch: int = 0  # threads that draw the batches of the next steps
    log_every: int = 20  # steps
    validate_every: int = 200  # steps; also writes a checkpoint
    snapshot_steps: tuple[int, ...] = ()  # steps whose restorations are kept, to show early and late training
    noise_weights: Mapping[str, float] = field(default_factory=lambda: {"none": 1.0, "tone": 1.0, "white": 1.0})
    gap_probability: float = 0.0
    cutoff_hz: tuple[float, float] = (1800.0, 18000.0)  # a little beyond the 2 to 16 kHz that are restored
    white_amplitude: tuple[float, float] = (0.0005, 0.022)  # a little beyond the report's 0.001 to 0.02
    condition_dropout: float = 0.1  # ldm: share of samples trained without their condition
    min_snr_gamma: float = 5.0  # ldm: clip of the weighting by signal-to-noise ratio; 0 weights velocities equally
    level_weight: float = 1.0  # ldm: of errors that last for a whole crop, which are soon learnt by heart
    last_step_share: float = 0.5  # ldm: share of samples trained at the last timestep without noise: one step sampling

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
        rules = [(name, wanted, fits) for names, wanted, fits in _RULES for name in names.split()]
        wrong = [f"{name} ({wanted})" for name, wanted, fits in rules if not fits(getattr(self, name))]
        if wrong:
            raise SrlibError(f"Unusable values of training settings {', '.join(wrong)}: see srlib.recipe.TrainConfig.")

    def degradation(self) -> DegradationConfig:
        """What the crops of this run suffer."""
        low, high = self.cutoff_hz
        return DegradationConfig(
            cutoff_hz=(low, high),
            white_amplitude=tuple(self.white_amplitude),
            noise_weights=self.noise_weights,
            gap_probability=self.gap_probability,
        )


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file."""
    path = Path(path)
    if not path.is_file():
        raise SrlibError(f"There is no configuration file {path}: give a recipe, recipes/compact/*.toml.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SrlibError(f"{path} is not TOML ({error}): correct it.") from error
