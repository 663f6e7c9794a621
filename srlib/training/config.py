"""The settings of one training run, with their limits, and how they are read from TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srlib.config import SAMPLE_RATE, UNIT_FRAMES, NoiseType
from srlib.degrade import DegradationConfig
from srlib.errors import SrlibError
from srlib.settings import as_srlib_error

_WHITE_AMPLITUDE = (0.0005, 0.022)  # standard deviation, linear; a little beyond the source report's 0.001 to 0.02

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Cutoff = Annotated[float, Field(gt=0, lt=SAMPLE_RATE / 2)]


class TrainConfig(BaseModel):
    """Settings of one run; its TOML file holds those that differ from these defaults."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    size: str = "compact"  # model size, unless the run starts from a folder
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch_size: Positive = 16  # of all processes together
    fresh_examples: Count = 0  # of a batch in each process; the others come from earlier steps. 0: all are fresh
    frames: Annotated[Positive, Field(multiple_of=UNIT_FRAMES)] = 256  # mel frames of a crop, 10 ms each
    max_steps: Positive = 2000
    augment: bool = True  # as `srlib.training.pairs.draw` says
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Count = 100
    constant_rate: bool = False  # after the warm-up; else a cosine to zero
    weight_decay: Amount = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Share = 0.999
    fit_batches: Positive = 100  # batches for the closed-form fits before the first step (vae: 8 at most)
    precision: Literal["no", "bf16"] = "no"
    prefetch: Count = 0  # threads that draw the batches of the next steps
    log_every: Positive = 20  # steps
    validate_every: Positive = 200  # steps; each validation also writes a checkpoint
    snapshot_step: Count = 0  # after which restorations are kept; 0: none are
    noise_weights: dict[NoiseType, Amount] = {"none": 1.0, "tone": 1.0, "white": 1.0}
    gap_probability: Share = 0.0
    # Hz; a little beyond the 2 to 16 kHz of the evaluation.
    cutoff_hz: Annotated[tuple[Cutoff, Cutoff], Field(strict=False)] = (1800.0, 18000.0)  # TOML has lists
    condition_dropout: Share = 0.1  # ldm: share of samples trained without their condition
    min_snr_gamma: Amount = 5.0  # ldm: clip of the weighting by signal-to-noise ratio; 0 weights velocities equally
    level_weight: Amount = 1.0  # ldm: weight of the error that is constant over a crop, which overfits first
    last_step_share: Share = 0.5  # ldm: share of samples trained at the last timestep without noise, for one-step use

    @classmethod
    def load(cls, config: Mapping[str, Any] | str | Path, **changes: Any) -> Self:
        """From a mapping or a TOML file, with some settings changed.

        Raises:
            SrlibError: naming all settings that are unknown or have values that cannot be used.
        """
        if not isinstance(config, Mapping):
            config = read_toml(config)
        try:
            settings = cls.model_validate(dict(config) | changes)
        except ValidationError as error:
            raise as_srlib_error(error) from error
        settings.degradation()  # checks its ranges
        return settings

    def degradation(self) -> DegradationConfig:
        """Ranges of the degradations of this run."""
        same = {name: getattr(self, name) for name in ("cutoff_hz", "noise_weights", "gap_probability")}
        return DegradationConfig(white_amplitude=_WHITE_AMPLITUDE, **same)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a TOML file."""
    path = Path(path)
    if not path.is_file():
        raise SrlibError(f"There is no configuration file {path}: give a recipe, recipes/compact/*.toml.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SrlibError(f"{path} is not TOML ({error}): correct it.") from error


def check_same(path: Path, now: Mapping[str, Any]) -> None:
    """Refuse to resume the run whose settings lie in `path` if others than its length and paths have changed."""
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SrlibError(f"{path} is damaged: begin the run again in a new folder.") from error
    free = {"max_steps", "data", "init"}  # the tracks in `corpus` are compared, not paths
    if changed := sorted(key for key in now.keys() & before.keys() - free if now[key] != before[key]):
        raise SrlibError(f"{path.parent} was begun with other {', '.join(changed)}: resume it with the same.")
