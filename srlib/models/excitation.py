"""Fine structure above the band edge: the music's own, moved up, or white noise; both are shaped by a log-mel.

A log-mel says how loud each band is and leaves open which partials and transients are in it. The top octave of the
known band holds those of the same music; single-sideband modulation moves it up without turning it round.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from srlib.audio.stft import envelope, istft_same, log_mel, stft
from srlib.config import FRAME_PAD, HOP_LENGTH, SAMPLE_RATE
from srlib.machine import stage

_LOOP_SAMPLES = 1024 * HOP_LENGTH  # 10.24 s, after which the noise repeats
# Standard deviation of the noise under the copies, -100 dB of full scale: it is heard where the known band is silent.
_FLOOR_AMPLITUDE = 1e-5
_OVERLAP = 0.1  # largest overlap of neighbouring copies, over their width


def noise(samples: int, first_sample: int = 0) -> torch.Tensor:
    """Seeded Gaussian noise `[samples]` of variance one; `first_sample` is the position in its loop."""
    index = (torch.arange(samples) + first_sample) % _LOOP_SAMPLES
    return _loop()[index]


@cache
def _loop() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(_LOOP_SAMPLES).astype(np.float32))


def copied(
    known: torch.Tensor, edge_hz: float, first_sample: int = 0, delays_s: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """The top octave below `edge_hz` of `[..., samples]`, repeated upwards to 24 kHz; noise where it is silent.

    Args:
        first_sample: position in the recording that the modulation is counted from: chunks agree where they overlap.
        delays_s: by how much later, s `[...]`, it is counted in each row: copies of a delayed sound are as delayed.
    """
    samples, width_hz = known.shape[-1], edge_hz / 2
    freqs_hz = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, device=known.device)
    octave = torch.fft.rfft(known) * ((freqs_hz >= edge_hz - width_hz) & (freqs_hz < edge_hz))
    analytic = torch.fft.ifft(2 * octave, samples)  # negative frequencies are zero
    seconds = (torch.arange(samples, dtype=torch.float64) + first_sample) / SAMPLE_RATE
    seconds = seconds - torch.as_tensor(delays_s, dtype=torch.float64)[..., None]
    total = torch.zeros_like(analytic)
    for shift_hz in shifts_hz(edge_hz):
        carrier = torch.polar(torch.ones_like(seconds), 2 * math.pi * (shift_hz * seconds % 1))
        total = total + analytic * carrier.to(analytic)
    # What passes 24 kHz comes out at negative frequencies, and goes: its mirror image would lie below 24 kHz.
    above = torch.fft.fft(total)[..., : len(freqs_hz)] * (freqs_hz >= edge_hz) / 2
    return torch.fft.irfft(above, samples) + _FLOOR_AMPLITUDE * noise(samples, first_sample).to(known)


def shifts_hz(edge_hz: float) -> list[float]:
    """How far each copy moves up, Hz. Copies overlap by a random tenth of their width, edge_hz / 2, at most.

    Copies at equal distances would be a comb: neighbouring ones correlate by 0.9 then, and not at all like this.
    """
    rng, width_hz = np.random.default_rng(0), edge_hz / 2
    shifts, top_hz = [], edge_hz
    while top_hz < SAMPLE_RATE / 2:
        shifts.append(float(top_hz - rng.uniform(0, _OVERLAP) * width_hz - (edge_hz - width_hz)))
        top_hz = shifts[-1] + edge_hz
    return shifts


@stage("vocoder")
def synthesise(log_mels: torch.Tensor, excitation: torch.Tensor) -> torch.Tensor:
    """Waveforms `[batch, 480 * frames]` with the log-mels `[batch, 1, frames, 256]` and the fine structure given.

    The excitation `[batch, at least 480 * frames]` is whitened by its own mel envelope first.
    """
    frames = log_mels.shape[2]
    excitation = excitation[:, : frames * HOP_LENGTH]
    own = envelope(log_mel(excitation)[:, 0])
    padded = F.pad(excitation[:, None], (FRAME_PAD, FRAME_PAD), mode="reflect")[:, 0]
    return istft_same(stft(padded) * torch.exp(envelope(log_mels[:, 0].float()) - own))
