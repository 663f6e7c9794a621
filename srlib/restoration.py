"""One restoration: what was asked for, and the pass over a recording that does it, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import SchedulerMixin

from srlib.analysis import Measured, Prepared, measure, prepare, survey, with_component
from srlib.channels import spread
from srlib.checks import check_edges, check_recording
from srlib.chunks import UNIT_FRAMES, Chunk, PositionalNoise
from srlib.config import HOP_LENGTH, SAMPLE_RATE
from srlib.gaps import Gap, interpolate_gaps
from srlib.loudness import lift
from srlib.mel import band_of_hz, log_mel
from srlib.merge import FULL_BAND, Band, merge, replace_mel
from srlib.noise import noise_gain
from srlib.nvsr import RegressorOutput
from srlib.recording import Recording
from srlib.tones import Tone
from srlib.vocoder import vocode

if TYPE_CHECKING:
    from srlib.pipeline import RestorationPipeline


@dataclass(frozen=True)
class Options:
    """The arguments of `RestorationPipeline.__call__`, which explains them."""

    num_inference_steps: int | None = None
    num_samples: int = 1
    generator: torch.Generator | int | None = None
    guidance_scale: float | None = None
    eta: float = 0.0
    scheduler: str | None = None
    cutoff_hz: float | str | None = "auto"
    f_20db: float | None = None
    merge: str = "gain"
    gaps: Sequence[Gap] | str = ()
    lift: bool = True


@dataclass(frozen=True)
class Sampling:
    """How the diffusion model is sampled."""

    steps: int
    samples: int  # averaged: LSD prefers the mean, ears prefer one sample
    guidance_scale: float
    eta: float
    scheduler: SchedulerMixin
    generator: torch.Generator

    def step_generators(self) -> list[torch.Generator]:
        """One for what each step adds, if the sampler is stochastic; `generator` stays as it is.

        Of their own: in a shared one, how much a chunk draws before the next would move what belongs to a position.
        """
        if not self.eta:
            return []
        device = self.generator.device
        seeds = torch.randint(2**62, (self.steps,), generator=self.generator.clone_state(), device=device)
        return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


@dataclass(frozen=True)
class RestoredChunk:
    """`audio` and `generated` `[sources, samples]`, at the level of the input; `log_mel` `[1, 1, frames, 256]`."""

    chunk: Chunk
    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor


class Restoration:
    """Made from a recording, it knows what holds for the whole; `chunks` then restores one after the other.

    Args:
        trajectory: where the predicted log-mels of each step of the first chunk go, if anywhere.
    """

    def __init__(
        self,
        pipe: RestorationPipeline,
        recording: Recording,
        options: Options,
        trajectory: list[torch.Tensor] | None = None,
    ) -> None:
        check_recording(recording)
        check_edges(options.cutoff_hz, options.f_20db, options.gaps, recording.samples, recording.sample_rate)
        self.sampling = pipe.sampling(options)
        self.tones: list[Tone] = []  # of the first chunk
        self._pipe, self._recording, self._merge, self._trajectory = pipe, recording, options.merge, trajectory
        self._lift = options.lift
        self.analysis = survey(recording, options.gaps, find_tones=options.merge == "gain")
        self._measured = self._measure(options)

    @property
    def band(self) -> Band:
        """Where the known band ends and the missing one starts."""
        return self._measured.band

    @property
    def hiss_found(self) -> bool:
        """Whether there is white noise that ends where the band ends, in any channel."""
        return any(hiss is not None for hiss in self._measured.hisses)

    @property
    def cutoff_hz(self) -> float | None:
        """Where the known band ends, Hz; None for full band and for silence."""
        return None if self.band == FULL_BAND else self.band.known_hz

    def chunks(self) -> Iterator[RestoredChunk]:
        """The chunks of `analysis.chunks`, in order."""
        if not self.analysis.layout.sources:
            yield from map(self._silence, self.analysis.chunks)
            return
        noises = self._noises()
        for prepared in prepare(self._recording, self.analysis):
            if prepared.chunk.start == 0:
                self.tones.extend(prepared.tones)
            yield self._restore(prepared, [noise.of(prepared.chunk) for noise in noises])

    def _noises(self) -> list[PositionalNoise]:
        """What starts the sampler and, if it is stochastic, what each of its steps adds."""
        shape = self.sampling.samples, self._pipe.vae.config.latent_channels
        generators = [self.sampling.generator, *self.sampling.step_generators()]
        return [PositionalNoise(*shape, generator) for generator in generators]

    def _measure(self, options: Options) -> Measured:
        """The band, the noise that the base is told of, and what of it the gain merge takes out."""
        band, sources = None, len(self.analysis.layout.sources)
        if options.cutoff_hz is None or not sources:
            band = FULL_BAND
        elif options.cutoff_hz != "auto":
            known_hz = float(options.cutoff_hz)
            band = Band(known_hz, options.f_20db) if options.f_20db else Band.at(known_hz)
        nobody_asks = self._merge != "gain" and self._pipe.base is None
        if band is not None and (nobody_asks or not sources):
            return Measured.noiseless(band, sources)
        return measure(self._recording, self.analysis, band, self._evidence if self._merge == "gain" else None)

    def _evidence(self, wav: torch.Tensor, gaps: list[Gap]) -> torch.Tensor | None:
        if self._pipe.base is None:
            return None
        padded = torch.from_numpy(pad_to_frames(wav.numpy())).to(self._pipe.device)
        evidence = self._pipe.base(interpolate_gaps(log_mel(padded), gaps)).evidence
        return None if evidence is None else evidence[0]

    def _silence(self, chunk: Chunk) -> RestoredChunk:
        last = min(chunk.stop * HOP_LENGTH, self._recording.samples_at(SAMPLE_RATE))
        nothing = np.zeros((0, last - chunk.start * HOP_LENGTH), np.float32)
        return RestoredChunk(chunk, nothing, nothing, torch.zeros(1, 1, 0, 256))

    def _restore(self, prepared: Prepared, noises: Sequence[torch.Tensor]) -> RestoredChunk:
        chunk, (sources, samples) = prepared.chunk, prepared.wav.shape
        level, layout = np.float32(self.analysis.level), self.analysis.layout
        gaps = chunk.local(self.analysis.gaps)
        wav = torch.from_numpy(pad_to_frames(prepared.wav * level)).to(self._pipe.device)
        # 1. Log-mels and regression: of the component that the model runs on and, if there are several, every source
        mixed = layout.mix(wav)
        degraded = interpolate_gaps(log_mel(with_component(mixed, wav)), gaps)
        regressed = self._regress(degraded)
        # 2. Restore the component's log-mel and vocode it; AudioSR's merge replaces its known band before that too
        restored = self._restore_log_mel(chunk, degraded[:1], regressed, noises)
        restored = interpolate_gaps(self._lifted(restored, regressed), gaps)
        voiced = replace_mel(restored, degraded[:1], self.band) if self._merge == "replace" else restored
        generated = vocode(self._pipe.vocoder, voiced, chunk.start)[:1, :samples]
        # 3. Join each source's share of it with what was given
        # Sources beside the component are judged by their own regression: their noise is their own.
        clean = torch.cat([restored, (degraded if regressed is None else regressed.log_mel)[1:]])[:, 0]
        if sources > 1:
            known = torch.minimum(degraded[:, 0], clean) if self._measured.floors.any() else degraded[:, 0]
            generated = spread(generated[0], known[1:], known[0], layout.weights, self.band.known_hz, gaps)
        wav = wav[:, :samples]
        gains = [noise_gain(*row, self.band) for row in zip(wav, clean[-sources:], self._measured.floors, strict=True)]
        rows = zip(generated, wav, gains, strict=True)
        joined = torch.stack([merge(*pair, self.band, self._merge, gain, gaps) for *pair, gain in rows])
        # 4. The level it came with; what nothing was done to comes back to the bit
        audio = np.where((joined == wav).cpu().numpy(), prepared.wav, joined.float().cpu().numpy() / level)
        return RestoredChunk(chunk, audio, generated.float().cpu().numpy() / level, restored.cpu())

    def _regress(self, degraded: torch.Tensor) -> RegressorOutput | None:
        if self._pipe.base is None:
            return None
        known_bands = torch.full((len(degraded),), band_of_hz(self.band.known_hz), device=degraded.device)
        return self._pipe.base(degraded, known_bands, self._measured.hisses, with_deficit=self._lift)

    def _restore_log_mel(
        self, chunk: Chunk, degraded: torch.Tensor, regressed: RegressorOutput | None, noises: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        base = None if regressed is None else regressed.log_mel[:1]
        if not self.sampling.steps:
            return base
        trajectory = self._trajectory if chunk.start == 0 else None
        return self._pipe.generate(degraded, base, noises[0], self.sampling, trajectory, noises[1:])

    def _lifted(self, restored: torch.Tensor, regressed: RegressorOutput | None) -> torch.Tensor:
        """As loud above the low-pass as music is, where the base knows what its estimate lacks."""
        if not self._lift or regressed is None or regressed.deficit_db is None:
            return restored
        first_band = band_of_hz(self.band.missing_hz)
        return lift(restored, regressed.log_mel[:1], regressed.deficit_db[:1], first_band)


def pad_to_frames(wav: np.ndarray) -> np.ndarray:
    """Reflect the end of `[..., samples]` to whole units of frames: zeros would be an edge to restore."""
    missing = -wav.shape[-1] % (UNIT_FRAMES * HOP_LENGTH)
    mode = "reflect" if wav.shape[-1] > 1 else "edge"
    return np.pad(wav, [(0, 0)] * (wav.ndim - 1) + [(0, missing)], mode=mode)
