"""One training loop for every part: accelerate, EMA, resumable checkpoints, a CSV log.

Step `n` draws its data and its noise from (seed, n) alone, so that a run that was killed continues bit for bit on a
CPU. A run folder holds `config.json`, `log.csv`, `checkpoint.pt` (model, optimiser, EMA, step) and, whenever it
validates, `pipeline/` with the EMA weights, which is what gets published.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

from srlib.artifacts import write_atomically, write_text
from srlib.audio import write
from srlib.config import SAMPLE_RATE
from srlib.corpus import Batch, Corpus, draw
from srlib.data import load_dataset
from srlib.degrade import Degradation, DegradationConfig
from srlib.errors import SrlibError
from srlib.metrics import lsd
from srlib.objectives import STAGES, Objective
from srlib.pipeline import RestorationPipeline, build

LOG_COLUMNS = (
    "run_id", "stage", "global_step", "wall_time", "train/loss", "val/loss", "val/lsd",
    "learning_rate", "samples_per_second", "data_wait_share",
)  # fmt: skip
_SNAPSHOT_MERGE = "none"  # what the model makes of a clip, with nothing taken from the input
_VALIDATION_SEED = 1_000_003  # validation draws nothing that training draws
# What validation restores: (cutoff in Hz, noise, amplitude, tone in Hz), one a clip in turn.
_VALIDATION_CONDITIONS = ((4000, "none", 0.0, None), (8000, "tone", 0.1, 3000.0), (8000, "white", 0.02, None))


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; a recipe file (TOML) holds the ones that differ from these."""

    size: str = "compact"  # model size, unless the run starts from a folder
    seed: int = 0
    batch_size: int = 16
    frames: int = 256  # mel frames of a crop, 10 ms each
    max_steps: int = 2000
    learning_rate: float = 5e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    fit_batches: int = 100  # batches from which closed forms are fitted before the first step (vae, ldm: 8 at most)
    precision: str = "no"  # or bf16
    log_every: int = 20  # steps
    validate_every: int = 200  # steps; also writes a checkpoint
    snapshot_steps: tuple[int, ...] = ()  # steps whose restorations are kept, to show early and late training
    noise_weights: Mapping[str, float] = field(default_factory=lambda: {"none": 1.0, "tone": 1.0, "white": 1.0})
    gap_probability: float = 0.0

    @classmethod
    def load(cls, config: Mapping[str, Any] | str | Path) -> TrainConfig:
        """From a mapping or a TOML file; an unknown setting is an error."""
        if not isinstance(config, Mapping):
            path = Path(config)
            if not path.is_file():
                raise SrlibError(f"There is no configuration file {path}: give a recipe, recipes/compact/*.toml.")
            try:
                config = tomllib.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise SrlibError(f"{path} is not TOML ({error}): correct it.") from error
        unknown = sorted(set(config) - {f.name for f in fields(cls)})
        if unknown:
            raise SrlibError(f"Unknown training settings {', '.join(unknown)}: see srlib.train.TrainConfig.")
        return cls(**config)

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if f.type == "int" and not (isinstance(getattr(self, f.name), int))]
        counts = ("batch_size", "frames", "max_steps", "log_every", "validate_every", "fit_batches")
        wrong += [name for name in counts if name not in wrong and getattr(self, name) < 1]
        if self.frames % 64:
            wrong.append("frames (a multiple of 64)")
        if self.precision not in ("no", "bf16"):
            wrong.append("precision (no or bf16)")
        if wrong:
            raise SrlibError(f"Unusable values of training settings {', '.join(wrong)}: see srlib.train.TrainConfig.")

    def degradation(self) -> DegradationConfig:
        """What the crops of this run suffer."""
        return DegradationConfig(noise_weights=self.noise_weights, gap_probability=self.gap_probability)


def train(
    stage: str,
    config: Mapping[str, Any] | str | Path,
    data: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    max_steps: int | None = None,
    resume: bool = False,
    time_budget: float | None = None,
) -> Path:
    """Train one part of the pipeline and return the run folder.

    Args:
        stage: `vae`, `vocoder`, `nvsr` (the base mean) or `ldm`.
        config: settings that differ from `TrainConfig`, or a TOML file of them.
        data: a folder of audio, or the name of a data set (`demo`, `musdb`).
        out: the run folder; its name is the run's id.
        init: pipeline folder to start from; None starts from random weights.
        max_steps: overrides the configuration's.
        resume: continue from the folder's checkpoint; a folder with one is refused otherwise.
        time_budget: seconds after which the run ends; the learning rate then follows the clock.

    Raises:
        SrlibError: for unknown stages or settings, missing data, or a folder that holds another run.
    """
    if stage not in STAGES:
        raise SrlibError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    settings = TrainConfig.load(config)
    run = Run(stage, settings if max_steps is None else replace(settings, max_steps=max_steps), Path(out), time_budget)
    run.open(init, data, resume)
    run.fit()
    return run.folder


class Run:
    """One run: its folder, model, optimiser and progress."""

    def __init__(self, stage: str, config: TrainConfig, folder: Path, time_budget: float | None) -> None:
        self.stage, self.config, self.folder, self.time_budget = stage, config, folder, time_budget
        self.step, self.elapsed, self.waited, self.spent_before = 0, 0.0, 0.0, 0.0

    def open(self, init: str | Path | None, data: str | Path, resume: bool) -> None:
        """Load data and model, and the checkpoint if there is one."""
        checkpoint = self.folder / "checkpoint.pt"
        if checkpoint.exists() and not resume:
            raise SrlibError(f"{self.folder} already holds a run: pass --resume to continue it, or give a new folder.")
        if self.folder.is_file():
            raise SrlibError(f"{self.folder} is a file: give a folder for the run.")
        settings = asdict(self.config) | {"stage": self.stage, "data": str(data), "init": str(init)}
        self._record(settings, resumed=checkpoint.exists())
        self.corpus, self.validation = (_corpus(data, split, self.folder.parent) for split in ("train", "valid"))
        AcceleratorState._reset_state(True)  # a process may train several runs, each with its own precision
        self.accelerator = Accelerator(mixed_precision=self.config.precision)
        torch.manual_seed(self.config.seed)
        self.pipeline = RestorationPipeline.from_pretrained(init) if init else build(self.config.size, self.config.seed)
        self.pipeline.to(self.accelerator.device)
        self.objective: Objective = STAGES[self.stage](self.pipeline, self.config.fit_batches)
        optimizer = torch.optim.AdamW(
            self.objective.module.parameters(),
            lr=self.config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay,
        )
        if not checkpoint.exists():
            self.objective.prepare(lambda index: self._batch(_VALIDATION_SEED + 1000 + index, self.corpus))
        self.module, self.optimizer = self.accelerator.prepare(self.objective.module, optimizer)
        self.ema = EMAModel(self.objective.module.parameters(), self.config.ema_decay, use_ema_warmup=True, power=0.75)
        if checkpoint.exists():
            self._restore(checkpoint)

    def _record(self, settings: dict[str, Any], resumed: bool) -> None:
        """Write the settings beside the run, or check that a resumed run is the same one; only its length may grow."""
        path = self.folder / "config.json"
        settings = json.loads(json.dumps(settings))
        if resumed:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = sorted(key for key in settings if key != "max_steps" and settings[key] != before.get(key))
            if changed:
                names = ", ".join(changed)
                raise SrlibError(f"{self.folder} holds a run with other {names}: resume it as it was begun.")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1) + "\n")

    def fit(self) -> None:
        """Step until the steps or the time are used up."""
        started = time.monotonic()
        losses: list[float] = []
        while not self._finished():
            step_started = time.monotonic()
            batch = self._batch(self.step, self.corpus)
            self.waited += time.monotonic() - step_started
            losses.append(self._update(batch))
            self.step += 1
            self.elapsed = self.spent_before + time.monotonic() - started
            validate = self.step % self.config.validate_every == 0 or self._finished()
            if validate or self.step % self.config.log_every == 0:
                self._log(float(np.mean(losses)), self._validate() if validate else ("", ""))
                losses = []
            if self.step in self.config.snapshot_steps:
                self._snapshot()
            if validate:
                self._save()

    def _finished(self) -> bool:
        return self.step >= self.config.max_steps or (self.time_budget is not None and self.elapsed >= self.time_budget)

    def _update(self, batch: Batch) -> float:
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with self.accelerator.autocast():
            loss = self.objective.loss(batch)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.ema.step(self.objective.module.parameters())
        return loss.item()

    def _learning_rate(self) -> float:
        """Linear warm-up, then a cosine to zero over the steps or, with a budget, over the time."""
        progress = self.step / self.config.max_steps
        if self.time_budget is not None:
            progress = max(progress, self.elapsed / self.time_budget)
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _batch(self, draw_id: int, corpus: Corpus, augment: bool = True) -> Batch:
        config, rng = self.config, np.random.default_rng([self.config.seed, draw_id])
        device = self.accelerator.device
        return draw(corpus, config.degradation(), rng, config.batch_size, config.frames, device, augment)

    @contextlib.contextmanager
    def _ema_weights(self) -> Iterator[None]:
        """Evaluate with the EMA's weights, then put the trained ones back."""
        parameters = list(self.objective.module.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.objective.module.eval()
        try:
            yield
        finally:
            self.ema.restore(parameters)
            self.objective.module.train()

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Loss on fixed validation crops, and LSD (plain, to 19 kHz) of fixed restorations."""
        with self._ema_weights():
            torch.manual_seed(_VALIDATION_SEED)
            losses = [
                self.objective.loss(self._batch(_VALIDATION_SEED + 2 + i, self.validation, augment=False)).item()
                for i in range(2)
            ]
            distances = [
                lsd(example[0], self._restore_example(*example), convention="plain", f_high=19_000)
                for example in self._examples()
            ]
        return float(np.mean(losses)), float(np.mean(distances))

    def _examples(self, seconds: float = 2.56) -> Iterator[tuple[np.ndarray, np.ndarray, Degradation]]:
        """Fixed validation clips: reference, degraded, and what was done to them."""
        for index, (cutoff, noise, amplitude, tone) in enumerate(_VALIDATION_CONDITIONS):
            reference = self.validation.middle(index % len(self.validation.names), round(seconds * SAMPLE_RATE))
            degradation = Degradation(cutoff, noise_type=noise, noise_amplitude=amplitude, tone_hz=tone)
            if not self.config.noise_weights.get(noise, 0):  # judge a run by what it is trained for
                degradation = Degradation(cutoff)
            yield reference, degradation.apply(reference, SAMPLE_RATE), degradation

    def _restore_example(
        self, reference: np.ndarray, degraded: np.ndarray, degradation: Degradation, merge: str = "gain"
    ) -> np.ndarray:
        if self.stage in ("vae", "vocoder"):  # judged on the true log-mel, decoded and vocoded
            return self.pipeline.vocode_truth(reference)
        f_3db, f_20db = degradation.f_3db(SAMPLE_RATE), degradation.f_20db(SAMPLE_RATE)
        steps = None if self.stage == "ldm" else 0
        return self.pipeline(degraded, SAMPLE_RATE, steps, cutoff_hz=f_3db, f_20db=f_20db, merge=merge).audio

    def _snapshot(self) -> None:
        """Keep what the model makes of the validation clips at this step, with their records."""
        folder = self.folder / "snapshots"
        folder.mkdir(exist_ok=True)
        with self._ema_weights():
            for index, (reference, degraded, degradation) in enumerate(self._examples(5.12)):
                stem = f"{degradation.noise_type}-{self.step:06d}"
                write(folder / f"{stem}-reference.flac", reference, SAMPLE_RATE, "PCM_16")
                restored = self._restore_example(reference, degraded, degradation, _SNAPSHOT_MERGE)
                write(folder / f"{stem}-restored.flac", restored, SAMPLE_RATE, "PCM_16")
                record = {
                    "track": self.validation.names[index % len(self.validation.names)],
                    "run_id": self.folder.name,
                    "global_step": self.step,
                    "merge": _SNAPSHOT_MERGE,
                    "degradation": degradation.record(SAMPLE_RATE),
                }
                write_text(folder / f"{stem}.json", json.dumps(record, indent=1) + "\n")

    def _log(self, train_loss: float, validation: tuple) -> None:
        path = self.folder / "log.csv"
        fresh = not path.exists()
        rate = self.step * self.config.batch_size / max(self.elapsed, 1e-9)
        row = (
            self.folder.name, self.stage, self.step, f"{self.elapsed:.1f}", f"{train_loss:.5f}",
            *(f"{value:.5f}" if value != "" else "" for value in validation),
            f"{self._learning_rate():.3g}", f"{rate:.2f}", f"{self.waited / max(self.elapsed, 1e-9):.3f}",
        )  # fmt: skip
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(LOG_COLUMNS)
            writer.writerow(row)

    def _save(self) -> None:
        """Checkpoint by write and rename, and the EMA weights as a pipeline folder."""
        state = {
            "module": self.objective.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "waited": self.waited,
            "residual_std": self.pipeline.residual_spread().flatten(),
        }
        write_atomically(self.folder / "checkpoint.pt", lambda partial: torch.save(state, partial))
        with self._ema_weights():
            self.pipeline.save_pretrained(self.folder / "pipeline")

    def _restore(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint, weights_only=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise SrlibError(f"{checkpoint} is damaged: delete it and start the run again.") from error
        self.objective.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.step, self.elapsed, self.waited = state["step"], state["elapsed"], state["waited"]
        self.spent_before = self.elapsed
        if self.pipeline.base is not None:
            self.pipeline.base.residual_std.copy_(state["residual_std"])
        self._forget_rows_after(self.step)

    def _forget_rows_after(self, step: int) -> None:
        """Drop what was logged between the checkpoint and the interruption: it is about to be trained again."""
        path = self.folder / "log.csv"
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        kept = [row for row in rows if int(row[LOG_COLUMNS.index("global_step")]) <= step]

        def write_rows(partial: Path) -> None:
            with partial.open("w", newline="") as file:
                csv.writer(file).writerows([header, *kept])

        write_atomically(path, write_rows)


def _corpus(data: str | Path, split: str, folder: Path) -> Corpus:
    name = str(data) if str(data) in ("demo", "musdb") else f"folder:{data}"
    return Corpus.build(load_dataset(name, split), folder)
