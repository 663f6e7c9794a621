"""The restoration pipeline: log-mel, base mean, latent diffusion, vocoder, merge, in one diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput, logging
from safetensors import SafetensorError, safe_open
from torch import nn

from srlib import ldm, vae
from srlib.audio import resample
from srlib.checks import check_audio, check_edges, check_sampling
from srlib.config import HOP_LENGTH, LATENT_FACTOR, SAMPLE_RATE, SIZES
from srlib.cutoff import detect_band
from srlib.errors import SrlibError
from srlib.mel import log_mel
from srlib.merge import FULL_BAND, MERGES, Band, noise_gain, replace_mel
from srlib.merge import merge as join
from srlib.nvsr import MelRegressor, RegressorOutput
from srlib.tones import Tone, subtract_tones
from srlib.vocoder import build_vocoder, vocode

logging.disable_progress_bar()  # loading five small parts needs none

_FRAME_MULTIPLE = 8 * LATENT_FACTOR  # the U-Net halves the latent three times
_CHUNK_FRAMES, _CONTEXT_FRAMES = 1024, 64  # what the model sees at once (10.24 s), and drops at either end


@dataclass
class RestorationOutput(BaseOutput):
    """`audio` `[samples]` or `[channels, samples]` float32 at 48 kHz, and how it came about.

    `generated` is the vocoder's output before the merge, `log_mel` `[1, 1, frames, 256]` the restored log-mel (empty
    for silence),
    `cutoff_hz` the cutoff that was used (None: full band), `trajectory` the predicted log-mels of each step of the
    first chunk if they were asked for, `tones` the stationary tones that were subtracted before all else.
    """

    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor
    cutoff_hz: float | None
    trajectory: list[torch.Tensor] = field(default_factory=list)
    tones: list[Tone] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling:
    """How the diffusion model is sampled."""

    steps: int
    samples: int  # averaged: LSD prefers the mean, ears prefer one sample
    guidance_scale: float
    eta: float
    scheduler: SchedulerMixin
    generator: torch.Generator


class RestorationPipeline(DiffusionPipeline):
    """AudioSR's chain with a base mean. Without `base` the diffusion model generates the latent itself, as AudioSR.

    Args:
        vae, unet, vocoder, scheduler, base: the parts (`srlib.vae`, `srlib.ldm`, `srlib.vocoder`, `srlib.nvsr`).
        num_inference_steps, guidance_scale: what a call uses unless told otherwise.
    """

    _optional_components: ClassVar[list[str]] = ["base"]
    model_cpu_offload_seq = "base->vae->unet->vocoder"

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        vocoder: nn.Module,
        scheduler: SchedulerMixin,
        base: nn.Module | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, vocoder=vocoder, scheduler=scheduler, base=base)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "compact", **kwargs) -> RestorationPipeline:
        """Load a pipeline folder; `compact` is the one shipped with the package.

        `variant="lowpass"` takes the weights of the curriculum's first run, trained without noise.
        """
        path = Path(str(resources.files("srlib") / "assets" / "compact")) if name_or_path == "compact" else name_or_path
        if not (Path(path) / "model_index.json").is_file():
            raise SrlibError(f"There is no model in {name_or_path}: give a folder that srlib train wrote, or compact.")
        options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        options["low_cpu_mem_usage"] = False  # or a missing key ends in an error that does not name it
        try:
            pipeline = super().from_pretrained(str(path), **{**options, **kwargs})
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SrlibError(f"The model in {name_or_path} does not load ({reason}): write it again.") from error
        _check_weights(pipeline, Path(path), kwargs.get("variant"))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def modules(self) -> list[nn.Module]:
        """The parts that have weights."""
        return [part for part in (self.vae, self.unet, self.vocoder, self.base) if part is not None]

    # The latent side: what is generated is the residual to the base latent, in units of its spread.

    def residual_spread(self) -> torch.Tensor:
        """`[1, 16, 1, 1]`, by channel; one without a base."""
        if self.base is None:
            return torch.ones(1, self.vae.config.latent_channels, 1, 1, device=self.device)
        return self.base.residual_std[None, :, None, None]

    def encode_pair(
        self, degraded: torch.Tensor, base: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Condition and base latent of a degraded log-mel and its base mean, both `[batch, 1, frames, 256]`.

        The condition, concatenated to the noisy latent, is the degraded latent and, if there is one, the base
        latent; without a base the second result is zero.
        """
        cond_latent = vae.encode(self.vae, degraded)
        if base is None:
            return cond_latent, torch.zeros((), device=degraded.device)
        base_latent = vae.encode(self.vae, base)
        return torch.cat([cond_latent, base_latent], dim=1), base_latent

    def to_residual(self, latent: torch.Tensor, base_latent: torch.Tensor) -> torch.Tensor:
        """Latent to what the diffusion model generates."""
        return (latent - base_latent) / self.residual_spread()

    def from_residual(self, residual: torch.Tensor, base_latent: torch.Tensor) -> torch.Tensor:
        """What the diffusion model generates to a latent."""
        return residual * self.residual_spread() + base_latent

    def generate(
        self,
        degraded: torch.Tensor,
        base: torch.Tensor | None,
        noise: torch.Tensor,
        sampling: Sampling,
        trajectory: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Restored log-mel of a degraded one and its base, `[1, 1, frames, 256]`, frames a multiple of 64.

        `noise` `[samples, 16, frames / 8, 32]` starts the sampler; the samples are averaged.
        """
        condition, base_latent = self.encode_pair(degraded, base)

        def keep(residual: torch.Tensor) -> None:
            if trajectory is not None:
                trajectory.append(vae.decode(self.vae, self.from_residual(residual[:1], base_latent)))

        residual = ldm.denoise(
            self.unet,
            sampling.scheduler,
            noise.to(condition),
            condition.expand(len(noise), -1, -1, -1),
            sampling.steps,
            sampling.guidance_scale,
            self.vae.config.scaling_factor,
            sampling.eta,
            sampling.generator,
            keep,
        )
        return vae.decode(self.vae, self.from_residual(residual.mean(0, keepdim=True), base_latent))

    def restore_log_mel(
        self,
        degraded: torch.Tensor,
        base: torch.Tensor | None,
        sampling: Sampling,
        trajectory: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """As `generate`, for any number of frames that is a multiple of 64: chunks with context that is discarded.

        The sampler's noise belongs to positions in the file, so overlapping chunks start from the same noise.
        """
        frames = degraded.shape[2]
        shape = (sampling.samples, self.vae.config.latent_channels, frames // LATENT_FACTOR, 256 // LATENT_FACTOR)
        noise = torch.randn(shape, generator=sampling.generator)
        restored = torch.empty_like(degraded)
        for start, stop, keep_from in _chunks(frames):
            piece = slice(start, stop)
            generated = self.generate(
                degraded[:, :, piece],
                None if base is None else base[:, :, piece],
                noise[:, :, start // LATENT_FACTOR : stop // LATENT_FACTOR],
                sampling,
                trajectory if start == 0 else None,
            )
            restored[:, :, keep_from:stop] = generated[:, :, keep_from - start :]
        return restored

    @torch.no_grad()
    def __call__(
        self,
        wav: np.ndarray,
        sample_rate: int,
        num_inference_steps: int | None = None,
        num_samples: int = 1,
        generator: torch.Generator | int | None = None,
        guidance_scale: float | None = None,
        eta: float = 0.0,
        scheduler: str | None = None,
        cutoff_hz: float | str | None = "auto",
        f_20db: float | None = None,
        merge: str = "gain",
        gaps: Sequence[tuple[float, float]] = (),
        return_trajectory: bool = False,
    ) -> RestorationOutput:
        """Restore a recording.

        Args:
            wav: `[samples]` or `[1, samples]` float32, at most 60 s.
            sample_rate: of `wav`, Hz; the output has 48 kHz.
            num_inference_steps: steps of the sampler; None takes the model's default, 0 the base mean alone.
            num_samples: samples of the latent that are averaged.
            generator: or a seed; None is seed 0, so that a call can be repeated.
            guidance_scale: weight of the condition; 1 is no guidance, None the model's default.
            eta: 0 deterministic, 1 stochastic; with the `ddim` scheduler.
            scheduler: `ddim`, `dpm` or `unipc`; None takes the model's own.
            cutoff_hz: where the known band ends, Hz; `auto` detects it, None says the input is full band.
            f_20db: where the missing band starts, Hz, if that is known too.
            merge: `gain` (tones are subtracted, noise is removed from the known band), `replace` (the known band is
                kept, as in AudioSR) or `none`.
            gaps: (start, end) in seconds, to be filled.
            return_trajectory: keep the predicted log-mel of every step.

        Raises:
            SrlibError: for audio or options that cannot be used.
        """
        # 1. Check and prepare the input
        single = check_audio(wav, sample_rate)
        check_edges(cutoff_hz, f_20db, gaps, len(single), sample_rate)
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        check_sampling(steps, num_samples, eta, self.scheduler.config.num_train_timesteps, self.base is not None)
        if merge not in MERGES:
            raise SrlibError(f"There is no merge {merge!r}: choose one of {', '.join(MERGES)}.")
        audio = resample(single, sample_rate, SAMPLE_RATE).astype(np.float32)
        if not np.any(audio):  # silence stays silence
            return self._output(wav, audio, audio, torch.empty(0), None, [], [])
        audio, tones = subtract_tones(audio, SAMPLE_RATE) if merge == "gain" else (audio, [])
        level = float(np.clip(np.abs(audio).max(), 0.1, 1.0) / np.abs(audio).max())
        padded = torch.from_numpy(_pad_to_frames(audio * level)).to(self.device)
        sampling = Sampling(
            steps,
            num_samples,
            self.config.guidance_scale if guidance_scale is None else guidance_scale,
            eta,
            ldm.use_scheduler(self.scheduler, scheduler),
            generator if isinstance(generator, torch.Generator) else torch.Generator().manual_seed(generator or 0),
        )
        # 2. What was done to it: the regression says where the band ends and which bands are noisy
        degraded = log_mel(padded)
        regressed = self.base(degraded) if self.base is not None else None
        band = self._band(cutoff_hz, f_20db, padded[: len(audio)], regressed)
        # 3. Restore the log-mel
        trajectory: list[torch.Tensor] = []
        base = None if regressed is None else regressed.log_mel
        kept = trajectory if return_trajectory else None
        restored = self.restore_log_mel(degraded, base, sampling, kept) if sampling.steps else base
        # 4. Vocode, AudioSR's way of keeping the known band included
        voiced = replace_mel(restored, degraded, band) if merge == "replace" else restored
        generated = vocode(self.vocoder, voiced)[0, : len(audio)]
        # 5. Join with what was given
        gain = None
        if merge == "gain" and regressed is not None:
            noisy = torch.sigmoid(regressed.evidence[0, 2])
            gain = noise_gain(restored[0, 0], degraded[0, 0], torch.where(noisy > 0.5, noisy, 0.0))
        joined = join(generated, padded[: len(audio)], band, merge, gain, tuple(gaps))
        # 6. The level it came with
        cutoff = None if band == FULL_BAND else band.known_hz
        pair = [(x / level).float().cpu().numpy() for x in (joined, generated)]
        return self._output(wav, *pair, restored.cpu(), cutoff, trajectory, tones)

    @torch.no_grad()
    def vocode_truth(self, reference: np.ndarray) -> np.ndarray:
        """Autoencoder and vocoder on the true log-mel: a clean recording `[samples]` at 48 kHz, float32 `[samples]`."""
        true = log_mel(torch.from_numpy(_pad_to_frames(reference)).to(self.device))
        decoded = vae.decode(self.vae, vae.encode(self.vae, true))
        return vocode(self.vocoder, decoded)[0, : len(reference)].float().cpu().numpy()

    def _band(
        self, cutoff_hz: float | str | None, f_20db: float | None, wav: torch.Tensor, regressed: RegressorOutput | None
    ) -> Band:
        if cutoff_hz is None:
            return FULL_BAND
        if cutoff_hz != "auto":
            return Band(float(cutoff_hz), f_20db) if f_20db else Band.at(float(cutoff_hz))
        return detect_band(wav, None if regressed is None else regressed.evidence[0])

    @staticmethod
    def _output(
        wav: np.ndarray,
        audio: np.ndarray,
        generated: np.ndarray,
        mel: torch.Tensor,
        cutoff_hz: float | None,
        trajectory: list[torch.Tensor],
        tones: list[Tone],
    ) -> RestorationOutput:
        shape = (1, -1) if np.ndim(wav) == 2 else (-1,)
        return RestorationOutput(audio.reshape(shape), generated.reshape(shape), mel, cutoff_hz, trajectory, tones)


def build(size: str = "compact", seed: int = 0) -> RestorationPipeline:
    """An untrained pipeline of a model size: `tiny`, `compact` or `audiosr`."""
    if size not in SIZES:
        raise SrlibError(f"There is no model size {size!r}: choose one of {', '.join(SIZES)}.")
    torch.manual_seed(seed)
    model = SIZES[size]
    pipeline = RestorationPipeline(
        vae=vae.build_vae(model),
        unet=ldm.build_unet(model),
        vocoder=build_vocoder(model),
        scheduler=ldm.build_scheduler(model),
        base=MelRegressor(**model.base) if model.base else None,
        num_inference_steps=model.num_inference_steps,
        guidance_scale=model.guidance_scale,
    )
    for part in pipeline.modules():
        part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_weights(pipeline: RestorationPipeline, folder: Path, variant: str | None) -> None:
    """Raise SrlibError with the list of keys that a part misses or has too many: diffusers only warns of them."""
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        files = list((folder / name).glob(f"*.{variant}*.safetensors")) if variant else []
        stored: set[str] = set()
        for file in files or [f for f in (folder / name).glob("*.safetensors") if len(f.name.split(".")) == 2]:
            with safe_open(file, "pt") as weights:
                stored.update(weights.keys())
        wrong = sorted(stored ^ set(part.state_dict()))
        if wrong:
            raise SrlibError(f"The weights in {folder / name} miss or add {', '.join(wrong)}: write the model again.")


def _pad_to_frames(wav: np.ndarray) -> np.ndarray:
    """Reflect the end so that the U-Net can halve the frames three times; zeros would be an edge to restore."""
    unit = _FRAME_MULTIPLE * HOP_LENGTH
    return np.pad(wav, (0, -len(wav) % unit), mode="reflect" if len(wav) > 1 else "edge")


def _chunks(frames: int) -> list[tuple[int, int, int]]:
    """(start, stop, keep_from) of chunks that cover `frames`: from `keep_from` on a chunk overwrites the one before."""
    if frames <= _CHUNK_FRAMES:
        return [(0, frames, 0)]
    hop = _CHUNK_FRAMES - 2 * _CONTEXT_FRAMES
    starts = [*range(0, frames - _CHUNK_FRAMES, hop), frames - _CHUNK_FRAMES]
    return [(start, start + _CHUNK_FRAMES, start + _CONTEXT_FRAMES if start else 0) for start in starts]
