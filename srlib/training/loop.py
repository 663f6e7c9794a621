"""One training loop for every part: accelerate, EMA, resumable checkpoints, a CSV log.

Step `n` draws its data and its noise from (seed, n) alone, so that a run that was killed continues bit for bit on a
CPU. A run folder holds `config.json`, `log.csv`, `checkpoint.pt` (model, optimiser, EMA, step) and, whenever it
validates, `pipeline/` with the EMA weights, which is what gets published.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

from srlib.audio.files import write, write_atomically, write_text
from srlib.config import SAMPLE_RATE
from srlib.data.batches import Batch, Corpus, ExamplePool, Prefetcher, draw
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import perceptual
from srlib.measure.metrics import HEADLINE_HZ, lsd, texture_high
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training.config import TrainConfig
from srlib.training.logs import TrainingLog
from srlib.training.objectives import STAGES, Objective
from srlib.training.processes import Processes

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
_SNAPSHOT_MERGE = "none"  # what the model makes of a clip, with nothing taken from the input
_LENGTH = ("max_steps", "epochs")  # settings that may change when a run is resumed
_VALIDATION_SEED = 1_000_003  # validation draws nothing that training draws
_APART = 7_000_000_007  # between the random numbers of two processes
# What validation restores of every clip: (cutoff in Hz, noise, amplitude, tone in Hz).
_VALIDATION_CONDITIONS = (
    (4000, "none", 0.0, None),
    (8000, "none", 0.0, None),
    (8000, "tone", 0.1, 3000.0),
    (8000, "white", 0.02, None),
)
_MOST_CLIPS, _CLIP_SECONDS = 6, 5.12


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
        stage: `vae`, `vocoder` or `ldm`.
        config: settings that differ from `TrainConfig`, or a TOML file of them.
        data: a folder of audio, or the name of a data set (`demo`, `musdb`).
        out: the run folder; its name is the run's id.
        init: pipeline folder to start from; None starts from random weights.
        max_steps: overrides the configuration's, and its epochs.
        resume: continue from the folder's checkpoint; a folder with one is refused otherwise.
        time_budget: seconds after which the run ends; the learning rate then follows the clock.

    Raises:
        SrlibError: for unknown stages or settings, missing data, or a folder that holds another run.
    """
    if stage not in STAGES:
        raise SrlibError(f"There is no stage {stage!r}: choose one of {', '.join(STAGES)}.")
    settings = TrainConfig.load(config)
    settings = settings if max_steps is None else replace(settings, max_steps=max_steps, epochs=0)
    run = Run(stage, settings, Path(out), time_budget)
    run.open(init, data, resume)
    run.fit()
    return run.folder


class Run:
    """One run: its folder, model, optimiser and progress."""

    def __init__(self, stage: str, config: TrainConfig, folder: Path, time_budget: float | None) -> None:
        self.stage, self.config, self.folder, self.time_budget = stage, config, folder, time_budget
        self.step, self.elapsed, self.waited, self.spent_before = 0, 0.0, 0.0, 0.0
        self.best = math.inf  # validation score of the pipeline that is kept

    def open(self, init: str | Path | None, data: str | Path, resume: bool) -> None:
        """Load data and model, and the checkpoint if there is one."""
        checkpoint = self.folder / CHECKPOINT
        if checkpoint.exists() and not resume:
            raise SrlibError(f"{self.folder} already holds a run: pass --resume to continue it, or give a new folder.")
        if self.folder.is_file():
            raise SrlibError(f"{self.folder} is a file: give a folder for the run.")
        AcceleratorState._reset_state(True)  # a process may train several runs, each with its own precision
        self.accelerator = Accelerator(mixed_precision=self.config.precision)
        self.processes = Processes(self.accelerator)
        self.processes.check(self.config.batch_size)
        settings = asdict(self.config) | {"stage": self.stage, "data": str(data), "init": str(init)}
        settings = json.loads(json.dumps(settings))
        if checkpoint.exists():
            self._check_same(settings)
        with self.accelerator.main_process_first():
            self.corpus, self.validation = (_corpus(data, split, self.folder.parent) for split in ("train", "valid"))
        if self.config.hours:
            self.corpus = self.corpus.limited_to(self.config.hours, self.config.seed)
        if self.config.epochs:
            steps = self.config.epochs * self.corpus.steps_an_epoch(self.config.batch_size)
            self.config = replace(self.config, max_steps=steps)
        torch.manual_seed(self.config.seed)
        self.pipeline = (
            RestorationPipeline.from_pretrained(init, dtype=torch.float32)  # autocast makes bfloat16 of what can be
            if init
            else build(self.config.size, self.config.seed)
        )
        self.pipeline.to(self.accelerator.device)
        self.objective: Objective = STAGES[self.stage](self.pipeline, self.config)
        optimizer = torch.optim.AdamW(
            [{"params": list(self.objective.module.parameters())}],  # none where all has a closed form
            lr=self.config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay,
        )
        if not checkpoint.exists():
            started = time.monotonic()
            if self.processes.first:
                self.objective.prepare(self._batches_to_fit())
            self.processes.take_from_first(self.pipeline.modules())
            if self.time_budget is not None:
                self.time_budget = max(1e-3, self.time_budget - self.processes.agreed(time.monotonic() - started))
        self.accelerator.prepare_model(self.objective.module, evaluation_mode=True)  # mixed precision alone
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.ema = EMAModel(self.objective.module.parameters(), self.config.ema_decay, use_ema_warmup=True, power=0.75)
        if checkpoint.exists():
            self._restore(checkpoint)
        self.log = None
        if self.processes.first:  # last, so that a call that is refused leaves no run behind
            write_text(self.folder / "config.json", json.dumps(settings, indent=1) + "\n")
            self.log = TrainingLog(self.folder, self.step if checkpoint.exists() else -1)

    def _check_same(self, settings: dict[str, Any]) -> None:
        """Refuse to resume a run as another one; only its length may change."""
        before = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        changed = sorted(key for key in settings if key not in _LENGTH and settings[key] != before.get(key))
        if changed:
            names = ", ".join(changed)
            raise SrlibError(f"{self.folder} holds a run with other {names}: resume it as it was begun.")

    def fit(self) -> None:
        """Step until the steps or the time are used up; losses stay on the device until they are logged."""
        started = time.monotonic()
        losses: list[torch.Tensor] = []
        fresh = Prefetcher(self._share, self.config.prefetch)
        steps_again = self.config.pool_steps if self.config.fresh_examples else 0
        batches = ExamplePool(self._share, fresh, self._share_size(), steps_again, self.config.seed)
        while not self._finished():
            step_started = time.monotonic()
            examples = batches(self.step)
            self.waited += time.monotonic() - step_started
            losses.append(self._update(examples))
            self.step += 1
            self.elapsed = self.processes.agreed(self.spent_before + time.monotonic() - started)
            validate = self.step % self.config.validate_every == 0 or self._finished()
            if validate or self.step % self.config.log_every == 0:
                loss = self.processes.mean(torch.stack(losses).mean()).item()
                losses = []
                if self.processes.first:
                    scores = self._validate() if validate else {}
                    self._write_log({"train/loss": loss} | scores)
            steps = self.config.snapshot_steps
            snapshot = self.step in steps or (steps and self.step < min(steps) and self._finished())  # or the clock
            if snapshot and self.processes.first:
                self._snapshot()
            if validate and self.processes.first:
                self._save(scores)
            if validate:
                self.processes.wait()
        if not self.step and math.isinf(self.best) and self.processes.first:  # all was fitted in closed form, just now
            scores = self._validate()
            self._write_log(scores)
            self._save(scores)
        fresh.close()

    def _finished(self) -> bool:
        nothing_to_train = not any(True for _ in self.objective.module.parameters())
        out_of_time = self.time_budget is not None and self.elapsed >= self.time_budget
        return nothing_to_train or self.step >= self.config.max_steps or out_of_time

    def _update(self, examples: Mapping[str, torch.Tensor]) -> torch.Tensor:
        torch.manual_seed(self.config.seed * 1_000_003 + self.step + _APART * self.processes.index)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with self.accelerator.autocast():
            loss = self.objective.loss(examples)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        self.processes.average_gradients(self.objective.module)
        self.accelerator.clip_grad_norm_(self.objective.module.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.ema.step(self.objective.module.parameters())
        return loss.detach()

    def _learning_rate(self) -> float:
        """Linear warm-up, then constant or a cosine to zero over the steps or, with a budget, over the time."""
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        if self.config.constant_rate:
            return self.config.learning_rate * warmup
        progress = self.step / self.config.max_steps
        if self.time_budget is not None:
            progress = max(progress, self.elapsed / self.time_budget)
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _batches_to_fit(self) -> Iterator[Batch]:
        """What is fitted before the first step sees so many batches, or what a quarter of the time allows."""
        started, config = time.monotonic(), self.config
        for index in range(config.fit_batches):
            yield self._batch((_VALIDATION_SEED + 1000 + index,), self.corpus)
            if self.time_budget is not None and time.monotonic() - started > self.time_budget / 4:
                break

    def _share_size(self) -> int:
        """Examples of this process in a step."""
        return self.config.batch_size // self.processes.count

    def _share(self, step: int) -> dict[str, torch.Tensor]:
        """This process's fresh examples of a step."""
        config, index, count = self.config, self.processes.index, self.processes.count
        tracks, size = None, min(config.fresh_examples or self._share_size(), self._share_size())
        if config.one_crop_a_track:
            tracks = self.corpus.tracks_of_step(config.seed, step, config.batch_size)
            tracks = tracks[index::count] or tracks[:1]  # an epoch may end with fewer tracks than processes
        own = (index,) if index else ()
        return self.objective.examples(self._batch((step, *own), self.corpus, tracks=tracks, size=size))

    def _batch(
        self,
        draw_id: tuple[int, ...],
        corpus: Corpus,
        augment: bool = True,
        tracks: Sequence[int] | None = None,
        size: int | None = None,
    ) -> Batch:
        config, rng = self.config, np.random.default_rng([self.config.seed, *draw_id])
        size, augment = size or config.batch_size, augment and config.augment
        return draw(corpus, config.degradation(), rng, size, config.frames, self.accelerator.device, augment, tracks)

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

    def _validate(self) -> dict[str, float]:
        """Scores of the EMA's weights, which are published, and the loss of the raw ones beside them."""
        self.objective.module.eval()
        raw = self._validation_loss()
        self.objective.module.train()
        with self._ema_weights():
            return {"val/loss": self._validation_loss(), "val/loss_raw": raw} | self._scores()

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean loss of fixed validation crops."""
        torch.manual_seed(_VALIDATION_SEED)
        batches = (self._batch((_VALIDATION_SEED + 2 + i,), self.validation, augment=False) for i in range(2))
        return float(np.mean([self.objective.loss(self.objective.examples(batch)).item() for batch in batches]))

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        """Distances (LSD to 19 kHz, Zimtohrli) and texture of fixed restorations."""
        values: dict[str, list[float]] = {}
        for reference, degraded, degradation in self._examples():
            restored = self._restore_example(reference, degraded, degradation)
            scores = {
                "val/lsd": lsd(reference, restored, convention="plain", f_high=HEADLINE_HZ),
                "val/texture_high": texture_high(reference, restored, degradation.stopband_hz(SAMPLE_RATE)),
            }
            if perceptual.is_installed("zimtohrli"):
                scores["val/zimtohrli"] = perceptual.zimtohrli(reference, restored)
            for name, value in scores.items():
                values.setdefault(name, []).append(value)
        return {name: float(np.mean(value)) for name, value in values.items()}

    def _examples(self, clips: int = _MOST_CLIPS) -> Iterator[tuple[np.ndarray, np.ndarray, Degradation]]:
        """Fixed validation clips: reference, degraded, and what was done to them; each under every condition."""
        for track in range(min(clips, len(self.validation.names))):
            reference = self.validation.middle(track, round(_CLIP_SECONDS * SAMPLE_RATE))
            for cutoff, noise, amplitude, tone in _VALIDATION_CONDITIONS:
                if noise == "none" or self.config.noise_weights.get(noise, 0):  # judge a run by what it trains for
                    degradation = Degradation(cutoff, noise_type=noise, noise_amplitude=amplitude, tone_hz=tone)
                    yield reference, degradation.apply(reference, SAMPLE_RATE), degradation

    def _restore_example(
        self, reference: np.ndarray, degraded: np.ndarray, degradation: Degradation, merge: str = "gain"
    ) -> np.ndarray:
        if self.stage in ("vae", "vocoder"):  # judged on the true log-mel, decoded and vocoded
            return self.pipeline.vocode_truth(reference)
        edges = {"cutoff_hz": degradation.passband_hz(SAMPLE_RATE), "stopband_hz": degradation.stopband_hz(SAMPLE_RATE)}
        return self.pipeline(degraded, SAMPLE_RATE, **edges, merge=merge).audio

    def _snapshot(self) -> None:
        """Keep what the model makes of the validation clips at this step, with their records."""
        folder = self.folder / "snapshots"
        folder.mkdir(exist_ok=True)
        with self._ema_weights():
            for reference, degraded, degradation in self._examples(clips=1):
                stem = f"{degradation.noise_type}-{self.step:06d}"
                write(folder / f"{stem}-reference.flac", reference, SAMPLE_RATE, "PCM_16")
                restored = self._restore_example(reference, degraded, degradation, _SNAPSHOT_MERGE)
                write(folder / f"{stem}-restored.flac", restored, SAMPLE_RATE, "PCM_16")
                record = {
                    "track": self.validation.names[0],
                    "run_id": self.folder.name,
                    "global_step": self.step,
                    "merge": _SNAPSHOT_MERGE,
                    "degradation": degradation.record(SAMPLE_RATE),
                }
                write_text(folder / f"{stem}.json", json.dumps(record, indent=1) + "\n")

    def _write_log(self, values: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"run_id": self.folder.name, "stage": self.stage, "global_step": self.step} | values
        elapsed = max(self.elapsed, 1e-9)
        rate = self.step * self.config.batch_size / elapsed
        row |= {"wall_time": self.elapsed, "learning_rate": self._learning_rate(), "samples_per_second": rate}
        self.log.write(row | {"data_wait_share": self.waited / elapsed})

    def _save(self, scores: Mapping[str, float]) -> None:
        """The EMA weights as a pipeline folder, if none scored better, and then the checkpoint by write and rename.

        A run is where its checkpoint says: were that written first, a run killed in between would count as finished
        with the pipeline of an earlier step, or without one.
        """
        score = scores["val/loss"]
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
        self.spent_before = self.elapsed
        self.best = state["best"]
        if self.pipeline.prior is not None:
            self.pipeline.prior.load_state_dict(state["prior"])


def _corpus(data: str | Path, split: str, folder: Path) -> Corpus:
    return Corpus.build(load_dataset(str(data), split), folder)
