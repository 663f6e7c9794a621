"""One training loop for every part: accelerate, EMA, resumable checkpoints, a CSV log.

Step `n` draws its data and its noise from (seed, n) alone, so that a killed run continues bit for bit on a CPU. A run
folder holds `config.json`, `log.csv`, `checkpoint.pt` (model, optimiser, EMA, step), `lock` while a process trains in
it, and `pipeline/` with the EMA weights of the best validation, which are published.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from filelock import FileLock, Timeout
from tqdm import tqdm

from srlib.audio.files import write_atomically, write_text
from srlib.data.batches import POOL_STEPS, Corpus, Examples, ahead, pooled
from srlib.data.tracks import load_dataset, noted, refuse
from srlib.errors import SrlibError, one_line
from srlib.restore.pipeline import RestorationPipeline, build
from srlib.training.config import TrainConfig, check_same
from srlib.training.objectives import OBJECTIVES, Objective
from srlib.training.pairs import Batch, draw
from srlib.training.validation import Clips

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
_SCORES = ("val/loss", "val/lsd", "val/zimtohrli", "val/texture_high")
LOG_COLUMNS = ("run_id", "stage", "global_step", "wall_time", "train/loss", *_SCORES, "learning_rate")
_PAIRS, _VALIDATION, _FIT = 4, 5, 6  # purposes of a pair, the second part of its seed (`data.batches.pooled` has 2)
_VALIDATION_BATCHES = 2  # fixed batches for val/loss
_STEPS_APART, _PROCESSES_APART = 1_000_003, 7_000_000_007  # distance of torch seeds for two seeds, two processes


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
        init: pipeline folder to start from; None starts from random weights. A resumed run goes on from its own.
        max_steps: overrides the configuration's.
        resume: continue from the folder's checkpoint; a folder with one is refused otherwise.

    Raises:
        SrlibError: before the work starts, with all errors in stage, settings, data, folder and `init`; for a folder
            in which another process trains; for music that cannot be decoded; for a loss that is not finite.
    """
    run = Run(stage, Path(out))
    run.check(config, str(data), init, max_steps, resume)
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run.folder / "lock", timeout=0) if run.first else contextlib.nullcontext():
            run.open()
            run.fit()
    except Timeout as error:
        raise SrlibError(f"Another process trains in {run.folder}: wait for it, or give a new folder.") from error
    return run.folder


class Run:
    """One run: its folder, model, optimiser and progress."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage, self.folder, self.config = stage, folder, TrainConfig()
        self.resumes = (folder / CHECKPOINT).exists()
        self.step, self.spent, self.started = 0, 0.0, 0.0  # spent: seconds before the run was resumed
        self.best = math.inf  # validation loss of the pipeline that is kept

    def check(self, config: Any, data: str, init: str | Path | None, max_steps: int | None, resume: bool) -> None:
        """Load settings, list of tracks, model and checkpoint; one error names all faults."""
        faults: list[str] = []
        if self.stage not in OBJECTIVES:
            faults.append(f"There is no stage {self.stage!r}: choose one of {', '.join(OBJECTIVES)}")
        if self.resumes and not resume:
            faults.append(f"{self.folder} already holds a run: pass --resume to continue it, or give a new folder")
        with noted(faults):
            self.config = TrainConfig.load(config, **({} if max_steps is None else {"max_steps": max_steps}))
        with noted(faults):
            self._start_processes()
        with noted(faults):
            self._open_data(data)
        with noted(faults):
            if start := self.folder / "pipeline" if self.resumes else init:  # in float32; autocast then uses bfloat16
                self.pipeline = RestorationPipeline.from_pretrained(start, dtype=torch.float32)
            else:
                self.pipeline = build(self.config.size, self.config.seed)
        if not faults:
            self.settings = self.config.model_dump(mode="json") | {"stage": self.stage, "corpus": self.music}
            self.settings |= {"data": data, "init": str(init)}
            with noted(faults):
                self._open_model()
                if self.resumes:
                    check_same(self.folder / "config.json", self.settings)
                    self._restore(self.folder / CHECKPOINT)
        refuse(faults, "Training cannot start")

    def _start_processes(self) -> None:
        AcceleratorState._reset_state(True)  # a process may train several runs, each with its own precision
        self.accelerator = Accelerator(mixed_precision=self.config.precision)
        self.first = self.accelerator.is_main_process  # validates, logs and saves for all
        processes, size = self.accelerator.num_processes, self.config.batch_size
        # `accelerate launch` for several processes on a CPU sets these two alone, and starts one.
        if "WORLD_SIZE" not in os.environ and processes == 1 and {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= {*os.environ}:
            hint = "on a CPU use torchrun --nproc_per_node N -m srlib train ..."
            warnings.warn(f"One process trains, although several were asked for: {hint}.", stacklevel=2)
        if size % processes:
            hint = "choose a batch_size that is a multiple of their number"
            raise SrlibError(f"A batch of {size} cannot be shared among {processes} processes: {hint}.")
        self.share = size // processes  # examples of this process in a step

    def _open_data(self, data: str) -> None:
        """List the tracks, and describe them by names and a hash that changes with any of them."""
        tracks = [track for track in load_dataset(data) if track.split != "test"]
        self.tracks = {split: [track for track in tracks if track.split == split] for split in ("train", "valid")}
        if missing := " and ".join(split for split, found in self.tracks.items() if not found):
            hint = "add files, or give some of them that split in manifest.csv"
            raise SrlibError(f"{data} has no file in its split {missing}: {hint}.")
        used = [(t.split, t.name, round(t.seconds, 3), t.bandwidth_hz, t.collection, t.weight) for t in tracks]
        self.music: dict[str, Any] = {"sha256": hashlib.sha256(ascii(used).encode()).hexdigest()}
        for split, found in self.tracks.items():
            self.music[split] = [track.name for track in found]
            self.music[f"{split}_minutes"] = round(sum(track.seconds for track in found) / 60, 1)

    def _open_model(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.pipeline.to(self.accelerator.device)
        self.objective: Objective = OBJECTIVES[self.stage](self.pipeline, config)
        optimizer = torch.optim.AdamW(
            [{"params": list(self.objective.parameters())}],  # none if all is fitted in closed form
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        # `shared` averages gradients over processes; validation in the first process calls the objective itself.
        self.shared, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.ema = EMAModel(self.objective.parameters(), config.ema_decay, use_ema_warmup=True, power=0.75)

    def open(self) -> None:
        """Decode the music, fit the parts with a closed form, and start the files of the run."""
        config, log = self.config, self.folder / "log.csv"
        with self.accelerator.main_process_first():
            self.corpus, validation = (Corpus.build(tracks, self.folder.parent) for tracks in self.tracks.values())
        self.clips = Clips(validation, self.stage, [name for name, weight in config.noise_weights.items() if weight])
        if not self.resumes:  # each process for itself, on the same crops
            self.objective.prepare(self._batch(_FIT, index, config.batch_size) for index in range(config.fit_batches))
        if self.first:
            write_text(self.folder / "config.json", json.dumps(self.settings, indent=1) + "\n")
        if self.first and log.exists():  # drop rows after the checkpoint
            rows = pd.read_csv(log, dtype=str, keep_default_na=False)
            kept = rows[rows["global_step"].astype(int) <= (self.step if self.resumes else -1)]
            write_text(log, kept.to_csv(index=False, lineterminator="\n"))

    def fit(self) -> None:
        """Train to the last step; losses stay on the device until they are logged."""
        config, batches = self.config, self._batches()
        losses: list[torch.Tensor] = []
        self.started = time.monotonic() - self.spent
        shown = {"desc": self.folder.name, "unit": " steps", "disable": None if self.first else True}  # on terminals
        with tqdm(total=config.max_steps, initial=self.step, **shown) as progress:
            while not self._finished():
                losses.append(self._update(next(batches)))
                self.step += 1
                progress.update()
                if self.first and self.step == config.snapshot_step:
                    with self._ema_weights():
                        self.clips.snapshot(self.pipeline, self.folder, self.step)
                validate = self.step % config.validate_every == 0 or self._finished()
                if validate or self.step % config.log_every == 0:
                    loss = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean").item()
                    losses = []
                    progress.set_postfix(loss=f"{loss:.4f}")
                    if self.first:
                        self._record({"train/loss": loss}, validate)
                if validate:
                    self.accelerator.wait_for_everyone()
        if self.first and not self.step and math.isinf(self.best):  # all was fitted in closed form
            self._record({}, True)

    def _finished(self) -> bool:
        nothing_to_train = not any(True for _ in self.objective.parameters())
        return nothing_to_train or self.step >= self.config.max_steps

    def _update(self, examples: Examples) -> torch.Tensor:
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
        progress = 0.0 if self.config.constant_rate else min(1.0, self.step / self.config.max_steps)
        return self.config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))

    def _batches(self) -> Iterator[Examples]:
        """This process's examples of the steps to come."""
        config, process = self.config, self.accelerator.process_index
        size = min(config.fresh_examples or self.share, self.share)
        reach = POOL_STEPS if size < self.share else 0
        begin = max(0, self.step - reach)

        def fresh(step: int) -> Examples:
            return self.objective.examples(self._batch(_PAIRS, step, size, process * size))

        batches = ahead(fresh, range(begin, config.max_steps), config.prefetch)
        if reach:
            batches = pooled(batches, begin, self.share, config.seed)
        return islice(batches, self.step - begin, None)

    def _batch(self, purpose: int, index: int, size: int, first: int = 0) -> Batch:
        """Pairs `first` to `first + size` of a batch; several processes together draw the batch of one."""
        config, validate = self.config, purpose == _VALIDATION
        seeds = [(config.seed, purpose, index, first + row) for row in range(size)]
        corpus, augment = self.clips.corpus if validate else self.corpus, config.augment and not validate
        batch = draw(corpus, config.degradation(), seeds, config.frames, augment)
        return batch.to(self.accelerator.device)

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

    def _record(self, values: dict[str, float], validate: bool) -> None:
        """Log `values` and, if asked to, validate and save."""
        scores, log = self._validate() if validate else {}, self.folder / "log.csv"
        row: dict[str, Any] = {"run_id": self.folder.name, "stage": self.stage, "global_step": self.step}
        row |= {"wall_time": time.monotonic() - self.started, "learning_rate": self._learning_rate()}
        table = pd.DataFrame([row | values | scores], columns=LOG_COLUMNS)
        table.to_csv(log, mode="a", header=not log.exists(), index=False, float_format="%.6g", lineterminator="\n")
        if validate:
            self._save(scores["val/loss"])

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean loss on fixed crops and scores of the clips, with the EMA's weights, which are published."""
        torch.manual_seed(_STEPS_APART)
        batches = (self._batch(_VALIDATION, index, self.config.batch_size) for index in range(_VALIDATION_BATCHES))
        with self._ema_weights():
            loss = np.mean([self.objective(self.objective.examples(batch)).item() for batch in batches])
            return {"val/loss": float(loss)} | self.clips.scores(self.pipeline)

    def _parts(self) -> dict[str, Any]:
        """{name: part} whose states a checkpoint holds; the folder `pipeline` holds all that does not change."""
        return {"module": self.objective.module, "optimizer": self.optimizer, "ema": self.ema}

    def _save(self, score: float) -> None:
        """Save the EMA weights as a pipeline folder if they score best, and then the checkpoint.

        In the other order, a run killed between the two would count as finished with an older pipeline, or none.
        """
        if not math.isfinite(score):
            hint = "start it again in a new folder with a lower learning_rate"
            raise SrlibError(f"The validation loss of {self.folder} is {score} at step {self.step}: {hint}.")
        if score < self.best:
            self.best = score
            with self._ema_weights():
                write_atomically(self.folder / "pipeline", self.pipeline.save_pretrained)
        state = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"step": self.step, "elapsed": time.monotonic() - self.started, "best": self.best}
        write_atomically(self.folder / CHECKPOINT, lambda partial: torch.save(state, partial))

    def _restore(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step, self.best, self.spent = state["step"], state["best"], state["elapsed"]
        except (OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, UnpicklingError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else one_line(error)[:200]
            raise SrlibError(f"{checkpoint} is damaged ({what}): begin the run again in a new folder.") from error
        self.ema.to(self.accelerator.device)
