"""The restoration pipeline: log-mel, prior, latent diffusion, vocoder, merge, in one diffusers pipeline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput, logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from srlib.audio.files import open_output
from srlib.audio.recording import Recording, open_recording
from srlib.audio.stft import log_mel
from srlib.config import LATENT_FACTOR, SAMPLE_RATE, SIZES
from srlib.errors import SrlibError
from srlib.models import diffusion as ldm
from srlib.models import vae
from srlib.models.excitation import EXCITATIONS
from srlib.models.prior import GaussianPrior, Posterior
from srlib.models.vocoder import build_vocoder, vocode
from srlib.restore.checks import check_audio, check_sampling, check_seed
from srlib.restore.chunks import join
from srlib.restore.gaps import Gap
from srlib.restore.merge import MERGES
from srlib.restore.restoration import Options, Restoration, Sampling, pad_to_frames
from srlib.restore.tones import Tone

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# What diffusers raises for a folder that it cannot make a pipeline of; the last four for a model_index.json or a
# config.json that lacks an entry or holds one of another kind.
_BROKEN = (OSError, ValueError, RuntimeError, SafetensorError, KeyError, TypeError, AttributeError, ImportError)

for progress in (logging, transformers_logging):
    progress.disable_progress_bar()  # loading five parts needs none


@dataclass
class RestorationOutput(BaseOutput):
    """`audio` `[samples]` or `[channels, samples]` float32 at 48 kHz, and how it came about.

    `generated` is the vocoder's output before the merge, `log_mel` `[1, 1, frames, 256]` the restored log-mel of the
    channels' component (frames are a multiple of 64, none for silence), `cutoff_hz` the cutoff that was used (None:
    full band), `trajectory` the predicted log-mels of each step of the first chunk if they were asked for, `tones` the
    stationary tones that were subtracted from that chunk before all else, `noise_found` whether stationary noise was
    found in the known band.
    """

    audio: np.ndarray
    generated: np.ndarray
    log_mel: torch.Tensor
    cutoff_hz: float | None
    trajectory: list[torch.Tensor] = field(default_factory=list)
    tones: list[Tone] = field(default_factory=list)
    noise_found: bool = False


class RestorationPipeline(DiffusionPipeline):
    """AudioSR's chain with a prior. Without `prior` the diffusion model generates the latent itself, as AudioSR's.

    Args:
        vae, unet, vocoder, scheduler, prior: the parts (`srlib.models`).
        num_inference_steps, guidance_scale: what a call uses unless told otherwise.
    """

    _optional_components: ClassVar[list[str]] = ["prior"]
    model_cpu_offload_seq = "prior->vae->unet->vocoder"

    def __init__(
        self,
        vae: nn.Module,
        unet: nn.Module,
        vocoder: nn.Module,
        scheduler: SchedulerMixin,
        prior: nn.Module | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        # Of an edited model_index.json; what a call may ask for is checked there.
        if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
            raise TypeError(f"num_inference_steps is {num_inference_steps!r} and no whole number")
        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale):
            raise TypeError(f"guidance_scale is {guidance_scale!r} and no number")
        self.register_modules(vae=vae, unet=unet, vocoder=vocoder, scheduler=scheduler, prior=prior)
        self.register_to_config(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "compact", **kwargs) -> RestorationPipeline:
        """Load a pipeline folder, or one of the Hugging Face Hub; `compact` is the one shipped with the package.

        `variant="lowpass"` takes the weights of the curriculum's first run, trained without noise. Weights stored in
        bfloat16 run in it where the processor can; all others run in float32, unless `dtype` says otherwise.
        """
        path = model_folder(name_or_path)
        if not path.exists() and _HUB_ID.fullmatch(str(name_or_path)):
            path = _downloaded(str(name_or_path))
        if not (path / "model_index.json").is_file():
            given = "a folder that srlib train or import-audiosr wrote, the name of one on the Hub"
            raise SrlibError(f"There is no model in {name_or_path}: give {given}, or compact.")
        options = {"local_files_only": True, "use_safetensors": True, "dtype": _precision(path)}
        options["low_cpu_mem_usage"] = False  # or a missing key ends in an error that does not name it
        try:
            pipeline = super().from_pretrained(str(path), **{**options, **kwargs})
        except _BROKEN as error:
            why = _reason(error)
            raise SrlibError(f"The model in {name_or_path} does not load ({why}): write it again.") from error
        _check_weights(pipeline, path, kwargs.get("variant"))
        pipeline.set_progress_bar_config(disable=True)
        if pipeline.dtype == torch.bfloat16:  # a tenth faster; no gain in float32
            pipeline.vae.to(memory_format=torch.channels_last)
            pipeline.unet.to(memory_format=torch.channels_last)
        return pipeline

    def modules(self) -> list[nn.Module]:
        """The parts that have weights."""
        return [part for part in (self.vae, self.unet, self.vocoder, self.prior) if part is not None]

    # The latent side: what is generated is the residual to the latent of the prior's mean, in units of its spread.

    def residual_spread(self) -> torch.Tensor:
        """`[1, channels, 1, 1]`; one without a prior."""
        if self.prior is None:
            return torch.ones(1, self.vae.config.latent_channels, 1, 1, device=self.device)
        return self.prior.residual_std[None, :, None, None]

    def encode_condition(
        self, degraded: torch.Tensor, posterior: Posterior | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is concatenated to the noisy latent, and the latent that the generated residual is added to.

        Of the degraded log-mel `[batch, 1, frames, 256]`: its latent and, with a prior, the latent of the posterior
        mean and two maps of how sure the observation (0 to 1) and the prior (its standard deviation, nat) are.
        """
        cond_latent = vae.encode(self.vae, degraded)
        if posterior is None:
            return cond_latent, torch.zeros((), device=degraded.device)
        mean_latent = vae.encode(self.vae, posterior.mean)
        maps = torch.cat([1 / (1 + posterior.observed), posterior.variance.sqrt()], dim=1)
        return torch.cat([cond_latent, mean_latent, F.avg_pool2d(maps, LATENT_FACTOR)], dim=1), mean_latent

    def to_residual(self, latent: torch.Tensor, mean_latent: torch.Tensor) -> torch.Tensor:
        """Latent to what the diffusion model generates."""
        return (latent - mean_latent) / self.residual_spread()

    def from_residual(self, residual: torch.Tensor, mean_latent: torch.Tensor) -> torch.Tensor:
        """What the diffusion model generates to a latent."""
        return residual * self.residual_spread() + mean_latent

    def generate(
        self,
        degraded: torch.Tensor,
        posterior: Posterior | None,
        noise: torch.Tensor,
        sampling: Sampling,
        trajectory: list[torch.Tensor] | None = None,
        step_noise: Iterable[torch.Tensor] = (),
    ) -> torch.Tensor:
        """Restored log-mel of a degraded one `[1, 1, frames, 256]` and its posterior, frames a multiple of 64.

        `noise` `[samples, channels, frames / 8, 32]` starts the sampler, and `step_noise`, of the same shape, is what
        each step adds, if `eta` asks for any; the samples are averaged.
        """
        condition, mean_latent = self.encode_condition(degraded, posterior)

        def keep(residual: torch.Tensor) -> None:
            if trajectory is not None:
                trajectory.append(vae.decode(self.vae, self.from_residual(residual[:1], mean_latent)))

        residual = ldm.denoise(
            self.unet,
            sampling.scheduler,
            noise.to(condition),
            condition.expand(len(noise), -1, -1, -1),
            sampling.steps,
            sampling.guidance_scale,
            self.vae.config.scaling_factor,
            sampling.eta,
            callback=keep,
            step_noise=step_noise,
        )
        return vae.decode(self.vae, self.from_residual(residual.mean(0, keepdim=True), mean_latent))

    def sampling(self, options: Options) -> Sampling:
        """What the options say of the sampler, checked and filled up with this model's defaults."""
        steps = self.config.num_inference_steps if options.num_inference_steps is None else options.num_inference_steps
        most_steps = self.scheduler.config.num_train_timesteps
        guidance = self.config.guidance_scale if options.guidance_scale is None else options.guidance_scale
        check_sampling(steps, options.num_samples, guidance, options.eta, most_steps, self.prior is not None)
        if options.merge not in MERGES:
            raise SrlibError(f"There is no merge {options.merge!r}: choose one of {', '.join(MERGES)}.")
        scheduler = ldm.use_scheduler(self.scheduler, options.scheduler)
        if options.eta and not isinstance(scheduler, DDIMScheduler):
            raise SrlibError(f"eta is {options.eta:g}, but only the scheduler ddim has one: choose it, or no eta.")
        seeded = isinstance(options.generator, torch.Generator)
        if not seeded:
            check_seed(options.generator or 0)
        return Sampling(
            steps,
            options.num_samples,
            guidance,
            options.eta,
            scheduler,
            options.generator if seeded else torch.Generator().manual_seed(int(options.generator or 0)),
        )

    def excitation(self, options: Options) -> str:
        """The source of fine structure that the options choose, or this model's default."""
        default = "vocoder" if self.prior is None else EXCITATIONS[0]
        chosen = options.excitation or default
        if chosen not in (*EXCITATIONS, "vocoder"):
            raise SrlibError(f"There is no excitation {chosen!r}: choose one of {', '.join(EXCITATIONS)}, vocoder.")
        return chosen

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
        stopband_hz: float | None = None,
        merge: str = "gain",
        gaps: Sequence[Gap] | str = (),
        denoise: bool = True,
        excitation: str | None = None,
        return_trajectory: bool = False,
    ) -> RestorationOutput:
        """Restore a recording.

        Args:
            wav: `[samples]` or `[channels, samples]` float32, one to eight channels.
            sample_rate: of `wav`, Hz; the output has 48 kHz.
            num_inference_steps: steps of the sampler; None takes the model's default, 0 the prior's mean alone.
            num_samples: samples of the latent that are averaged.
            generator: or a seed; None is seed 0, so that a call can be repeated.
            guidance_scale: weight of the condition; 1 is no guidance, None the model's default.
            eta: 0 deterministic, 1 stochastic; with the `ddim` scheduler.
            scheduler: `ddim`, `dpm` or `unipc`; None takes the model's own.
            cutoff_hz: where the known band ends, Hz; `auto` detects it, None says the input is full band.
            stopband_hz: where the missing band starts, Hz, if that is known too.
            merge: `gain` (tones are subtracted, noise is removed from the known band), `replace` (the known band is
                kept, as in AudioSR) or `none`.
            gaps: (start, end) in seconds, to be filled; `auto` finds runs of digital silence.
            denoise: find stationary noise and tones; False takes the recording for noiseless, as AudioSR does.
            excitation: `copied` (the music's own fine structure moved up), `noise` or `vocoder` (the trained network);
                None is copied, or the vocoder for models without a prior.
            return_trajectory: keep the predicted log-mel of every step.

        Raises:
            SrlibError: for audio or options that cannot be used.
        """
        recording = Recording.from_array(check_audio(wav, sample_rate), sample_rate)
        sampling = (num_inference_steps, num_samples, generator, guidance_scale, eta, scheduler)
        options = Options(*sampling, cutoff_hz, stopband_hz, merge, gaps, denoise, excitation)
        trajectory: list[torch.Tensor] = []
        job = Restoration(self, recording, options, trajectory if return_trajectory else None)
        planned, parts = job.analysis.chunks, list(job.chunks())
        ends = [following.keep_from for following in planned[1:]] + [planned[-1].stop]
        mels = [
            part.log_mel[:, :, part.chunk.keep_from - part.chunk.start : end - part.chunk.start]
            for part, end in zip(parts, ends, strict=True)
        ]
        audio, generated = (
            job.analysis.layout.expand(np.concatenate(list(join(planned, pieces)), axis=1))
            for pieces in ([part.audio for part in parts], [part.generated for part in parts])
        )
        shape = (-1,) if np.ndim(wav) == 1 else (recording.channels, -1)
        mel, audio, generated = torch.cat(mels, dim=2), audio.reshape(shape), generated.reshape(shape)
        return RestorationOutput(audio, generated, mel, job.cutoff_hz, trajectory, job.tones, job.noise_found)

    @torch.no_grad()
    def restore_file(
        self, path: str | Path, out: str | Path, progress: Callable[[float], None] | None = None, **options
    ) -> float:
        """Restore a file of any length in constant memory, and return the seconds of audio it holds.

        Args:
            path: what soundfile or ffmpeg reads; tags are kept.
            out: a .wav or .flac file, which appears when it is whole; its folder is made if it is missing.
            progress: is told the seconds of audio of each piece that was written.
            options: as `__call__` takes them.

        Raises:
            SrlibError: for a file or options that cannot be used.
        """
        with open_recording(path) as recording:
            job = Restoration(self, recording, Options(**options))
            Path(out).parent.mkdir(parents=True, exist_ok=True)
            samples = recording.samples_at(SAMPLE_RATE)
            with open_output(out, SAMPLE_RATE, recording.channels, samples, recording.tags) as put:
                for piece in join(job.analysis.chunks, (part.audio for part in job.chunks())):
                    put(job.analysis.layout.expand(piece))
                    if progress is not None:
                        progress(piece.shape[1] / SAMPLE_RATE)
            return recording.samples / recording.sample_rate

    @torch.no_grad()
    def vocode_truth(self, reference: np.ndarray, through_autoencoder: bool = True) -> np.ndarray:
        """The vocoder on the true log-mel of a clean recording `[samples]` at 48 kHz: float32 `[samples]`.

        Without the autoencoder it is GT-Mel: above the cutoff a limit of any estimate.
        """
        mel = log_mel(torch.from_numpy(pad_to_frames(reference)).to(self.device))
        if through_autoencoder:
            mel = vae.decode(self.vae, vae.encode(self.vae, mel))
        return vocode(self.vocoder, mel)[0, : len(reference)].float().cpu().numpy()


def model_folder(name_or_path: str | Path) -> Path:
    """The folder of a model; `compact` is the one shipped with the package."""
    shipped = Path(str(resources.files("srlib") / "assets" / "compact"))
    return shipped if name_or_path == "compact" else Path(name_or_path)


def _downloaded(hub_id: str) -> Path:
    """The folder that a model of the Hugging Face Hub, `organisation/name`, lies in here; fetched once."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        why = _reason(error)
        raise SrlibError(f"There is no folder {hub_id}, and no such model came from the Hub ({why}).") from error


def _reason(error: Exception) -> str:
    """The first line of what an error of the libraries below says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
        prior=GaussianPrior(**model.prior, latent_channels=model.vae["latent_channels"]) if model.prior else None,
        num_inference_steps=model.num_inference_steps,
        guidance_scale=model.guidance_scale,
    )
    for part in pipeline.modules():
        part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _precision(folder: Path) -> torch.dtype:
    """bfloat16 for a folder whose U-Net is stored in it, where the machine computes in it; else float32."""
    instructions = torch.cpu.get_capabilities()
    fast = torch.cuda.is_available() or instructions.get("avx512_bf16") or instructions.get("amx_bf16")
    stored = set()
    for file in (folder / "unet").glob("*.safetensors"):
        with suppress(SafetensorError), safe_open(file, "pt") as weights:  # a broken file fails when it is loaded
            stored |= {weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118  no mapping
    return torch.bfloat16 if fast and stored == {"BF16"} else torch.float32


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
        stored -= set(getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ())
        wrong = sorted(stored ^ set(part.state_dict()))
        if wrong:
            raise SrlibError(f"The weights in {folder / name} miss or add {', '.join(wrong)}: write the model again.")
