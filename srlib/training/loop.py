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
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

from srlib.audio.files import write_atomically, write_text
from srlib.data.batches import Corpus, ExamplePool, Prefetcher, draw
from srlib.data.tracks import load_dataset
from srlib.errors import SrlibError
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training.config import TrainConfig
from srlib.training.objectives import STAGES, Objective
from srlib.training.told import ToldBatch, tell
from srlib.training.validation import Clips

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
LOG_COLUMNS = (
    "run_id", "stage", "global_step", "wall_time", "train/loss", "val/loss", "val/lsd",
    "val/zimtohrli", "val/texture_high", "val/loss_raw", "learning_rate", "samples_per_second", "data_wait_share",
)  # fmt: skip
_FORMATS = {"wall_time": ".1f", "learning_rate": ".3g", "samples_per_second": ".2f", "data_wait_share": ".3f"}
_LENGTH = ("max_steps", "epochs")  # settings that may change when a run is resumed
_PAIRS, _VALIDATION, _FIT = 4, 5, 6  # what a pair is drawn for: second part of its seed (data.batches has 1 to 3)
_VALIDATION_BATCHES = 2
_STEPS_APART = 1_000_003  # between the random numbers of two seeds
_PROCESSES_APART = 7_000_000_007  # ... and of two processes


def train(
    stage: str,
    config: Mapping[str, Any] | str | Path,
    data: str | Path,
    out: str | Path,
    init: str | Path | None = None,
    max_steps: int | None = None,
    resume: bool = False,
) -> Path:
    """Train one part of the pipeline and return the run folder.

    Args:
        stage: `vae`, `vocoder` or `ldm`.
        config: settings that differ from `TrainConfig`, or a TOML file of them.
        data: a folder of audio, or the name of a data set (`demo`, `musdb`).
        out: the run folder; its name is the run's id.
        init: pipeline folder to start from; None starts from random weights.
        max_steps: overrides the configuration's, and its epochs.
        resume: continue from the folder's checkpoint; a folder with one is refused otherwise.

    Raises:
        SrlibError: for unknown stages or settings, missing data, a folder that holds another run, or a loss that is no
            number.
    """
    if stage not in STAGES:
        raise SrlibError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    settings = TrainConfig.load(config)
    if max_steps is not None:
        settings = TrainConfig.load(settings.model_dump() | {"max_steps": max_steps, "epochs": 0})
    run = Run(stage, settings, Path(out))
    run.open(init, data, resume)
    run.fit()
    return run.folder


class Run:
    """One run: its folder, model, optimiser and progress."""

    def __init__(self, stage: str, config: TrainConfig, folder: Path) -> None:
        self.stage, self.config, self.folder = stage, config, folder
        self.step, self.elapsed, self.waited, self.spent_before = 0, 0.0, 0.0, 0.0
        self.best = math.inf  # validation loss of the pipeline that is kept

    def open(self, init: str | Path | None, data: str | Path, resume: bool) -> None:
        """Load data and model, and the checkpoint if there is one."""
        checkpoint = self.folder / CHECKPOINT
        if checkpoint.exists() and not resume:
            raise SrlibError(f"{self.folder} already holds a run: pass --resume to continue it, or give a new folder.")
        if self.folder.is_file():
            raise SrlibError(f"{self.folder} is a file: give a folder for the run.")
        AcceleratorState._reset_state(True)  # a process may train several runs, each with its own precision
        self.accelerator = Accelerator(mixed_precision=self.config.precision)
        self.first = self.accelerator.is_main_process  # validates, logs and saves for all
        share, rest = divmod(self.config.batch_size, self.accelerator.num_processes)
        if rest:
            raise SrlibError(
                f"A batch of {self.config.batch_size} cannot be shared among {self.accelerator.num_processes}"
                " processes: choose a batch_size that is a multiple of their number."
            )
        self.share = share  # examples of this process in a step
        settings = self.config.model_dump(mode="json") | {"stage": self.stage, "data": str(data), "init": str(init)}
        if checkpoint.exists():
            self._check_same(settings)
        self._open_data(data)
        self._open_model(init)
        if checkpoint.exists():
            self._restore(checkpoint)
        if self.first:  # last, so that a call that is refused leaves no run behind
            write_text(self.folder / "config.json", json.dumps(settings, indent=1) + "\n")
            self.log = TrainingLog(self.folder, self.step if checkpoint.exists() else -1)

    def _check_same(self, settings: dict[str, Any]) -> None:
        """Refuse to resume a run as another one; only its length may change."""
        before = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        changed = sorted(key for key in settings if key not in _LENGTH and settings[key] != before.get(key))
        if changed:
            names = ", ".join(changed)
            raise SrlibError(f"{self.folder} holds a run with other {names}: resume it as it was begun.")

    def _open_data(self, data: str | Path) -> None:
        config, folder = self.config, self.folder.parent
        with self.accelerator.main_process_first():
            self.corpus, self.validation = (
                Corpus.build(load_dataset(str(data), split), folder) for split in ("train", "valid")
            )
        if config.hours:
            self.corpus = self.corpus.limited_to(config.hours, config.seed)
        self.clips = Clips(
            self.validation, self.stage, [name for name, weight in config.noise_weights.items() if weight]
        )
        epochs, steps = config.epochs, self.corpus.steps_an_epoch(config.batch_size)
        self.max_steps = epochs * steps if epochs else config.max_steps

    def _open_model(self, init: str | Path | None) -> None:
        """Model, objective and optimiser; every process fits by itself what has a closed form, to the same crops."""
        config = self.config
        torch.manual_seed(config.seed)
        self.pipeline = (
            RestorationPipeline.from_pretrained(init, dtype=torch.float32)  # autocast makes bfloat16 of what can be
            if init
            else build(config.size, config.seed)
        )
        self.pipeline.to(self.accelerator.device)
        self.objective: Objective = STAGES[self.stage](self.pipeline, config)
        if not (self.folder / CHECKPOINT).exists():
            self.objective.prepare(self._batch(_FIT, index, config.batch_size) for index in range(config.fit_batches))
        optimizer = torch.optim.AdamW(
            [{"params": list(self.objective.parameters())}],  # none where all has a closed form
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        # What is shared averages gradients; a process that validates alone calls the objective itself.
        self.shared, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.ema = EMAModel(self.objective.parameters(), config.ema_decay, use_ema_warmup=True, power=0.75)

    def fit(self) -> None:
        """Step until the steps are used up; losses stay on the device until they are logged."""
        config, started = self.config, time.monotonic()
        steps_again = config.pool_steps if config.fresh_examples else 0
        losses: list[torch.Tensor] = []
        with contextlib.closing(Prefetcher(self._examples, config.prefetch)) as fresh:
            batches = ExamplePool(self._examples, fresh, self.share, steps_again, config.seed)
            while not self._finished():
                step_started = time.monotonic()
                examples = batches(self.step)
                self.waited += time.monotonic() - step_started
                losses.append(self._update(examples))
                self.step += 1
                self.elapsed = self.spent_before + time.monotonic() - started
                if self.first and self.step in config.snapshot_steps:
                    with self._ema_weights():
                        self.clips.snapshot(self.pipeline, self.folder, self.step)
                validate = self.step % config.validate_every == 0 or self._finished()
                if validate or self.step % config.log_every == 0:
                    loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
                    losses = []
                    self._record({"train/loss": loss}, validate)
                if validate:
                    self.accelerator.wait_for_everyone()
        if not self.step and math.isinf(self.best):  # all was fitted in closed form, just now
            self._record({}, True)

    def _finished(self) -> bool:
        nothing_to_train = not any(True for _ in self.objective.parameters())
        return nothing_to_train or self.step >= self.max_steps

    def _update(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        apart = _PROCESSES_APART * self.accelerator.process_index
        torch.manual_seed(self.config.seed * _STEPS_APART + self.step + apart)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        loss = self.shared(examples)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.ema.step(self.objective.parameters())
        return loss.detach()

    def _learning_rate(self) -> float:
        """Linear warm-up, then constant or a cosine to zero."""
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        if self.config.constant_rate:
            return self.config.learning_rate * warmup
        progress = min(1.0, self.step / self.max_steps)
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))

    def _examples(self, step: int) -> dict[str, torch.Tensor]:
        """This process's fresh examples of a step."""
        config, first = self.config, self.accelerator.process_index
        if config.one_crop_a_track:
            tracks = self.corpus.tracks_of_step(config.seed, step, config.batch_size)
            own = tracks[first * self.share : (first + 1) * self.share] or tracks[:1]  # an epoch may end with few
            return self.objective.examples(self._batch(_PAIRS, step, len(own), first * self.share, own))
        size = min(config.fresh_examples or self.share, self.share)
        return self.objective.examples(self._batch(_PAIRS, step, size, first * size))

    def _batch(self, purpose: int, index: int, size: int, first: int = 0, tracks: list[int] | None = None) -> ToldBatch:
        """Pairs `first` to `first + size` of a batch; several processes together draw what one would draw alone."""
        config, validate = self.config, purpose == _VALIDATION
        seeds = [(config.seed, purpose, index, first + row) for row in range(size)]
        corpus, augment = self.validation if validate else self.corpus, config.augment and not validate
        device = self.accelerator.device
        batch = draw(corpus, config.degradation(), seeds, config.frames, device, augment, tracks)
        return tell(batch, seeds, unsure=augment)

    @contextlib.contextmanager
    def _ema_weights(self) -> Iterator[None]:
        """Evaluate with the EMA's weights, then put the trained ones back."""
        parameters = list(self.objective.parameters())
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        self.objective.eval()
        try:
            yield
        finally:
            self.ema.restore(parameters)
            self.objective.train()

    def _record(self, values: Mapping[str, float], validate: bool) -> None:
        """Log the first process's `values` and, if asked to, validate and save."""
        if not self.first:
            return
        scores = self._validate() if validate else {}
        elapsed = max(self.elapsed, 1e-9)
        row = {"run_id": self.folder.name, "stage": self.stage, "global_step": self.step, "wall_time": self.elapsed}
        row |= {"learning_rate": self._learning_rate(), "data_wait_share": self.waited / elapsed}
        self.log.write(row | {"samples_per_second": self.step * self.config.batch_size / elapsed} | values | scores)
        if validate:
            self._save(scores["val/loss"])

    def _validate(self) -> dict[str, float]:
        """Scores of the EMA's weights, which are published, and the loss of the raw ones beside them."""
        self.objective.eval()
        raw = self._validation_loss()
        self.objective.train()
        with self._ema_weights():
            return {"val/loss": self._validation_loss(), "val/loss_raw": raw} | self.clips.scores(self.pipeline)

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean loss of fixed validation crops."""
        torch.manual_seed(_STEPS_APART)
        batches = (self._batch(_VALIDATION, i, self.config.batch_size) for i in range(_VALIDATION_BATCHES))
        return float(np.mean([self.objective(self.objective.examples(batch)).item() for batch in batches]))

    def _save(self, score: float) -> None:
        """The EMA weights as a pipeline folder, if none scored better, and then the checkpoint by write and rename.

        A run is where its checkpoint says: were that written first, a run killed in between would count as finished
        with the pipeline of an earlier step, or without one.
        """
        if not math.isfinite(score):
            hint = "start it again in a new folder with a lower learning_rate"
            raise SrlibError(f"The validation loss of {self.folder} is {score} at step {self.step}: {hint}.")
        if score < self.best:
            self.best = score
            with self._ema_weights():
                self.pipeline.save_pretrained(self.folder / "pipeline")
        state = {
            "module": self.objective.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "waited": self.waited,
            "best": self.best,
            "prior": None if self.pipeline.prior is None else self.pipeline.prior.state_dict(),
        }
        write_atomically(self.folder / CHECKPOINT, lambda partial: torch.save(state, partial))

    def _restore(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise SrlibError(f"{checkpoint} is damaged: delete it and start the run again.") from error
        self.objective.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)
        self.step, self.elapsed, self.waited = state["step"], state["elapsed"], state["waited"]
        self.spent_before, self.best = self.elapsed, state["best"]
        if self.pipeline.prior is not None:
            self.pipeline.prior.load_state_dict(state["prior"])


class TrainingLog:
    """Appends rows to `log.csv` of a run's folder; a run that resumes first drops the rows it will write again."""

    def __init__(self, folder: Path, resumed_at: int = 0) -> None:
        self.path = folder / "log.csv"
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["global_step"]) <= resumed_at]
            write_atomically(self.path, lambda partial: self._append(partial, kept))
        try:
            from torch.utils.tensorboard import SummaryWriter  # where it is installed
        except ImportError:
            self._board = None
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def write(self, row: Mapping[str, str | int | float]) -> None:
        """One row of some of LOG_COLUMNS; the others stay empty."""
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        self._append(self.path, [row | {name: f"{v:{_FORMATS.get(name, '.5f')}}" for name, v in numbers.items()}])
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, row["global_step"])
            self._board.flush()

    @staticmethod
    def _append(path: Path, rows: list[dict[str, Any]]) -> None:
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, LOG_COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerows(rows)
