"""Fine structure above the band edge, shaped by a log-mel: the known band moved up in frequency, or white noise.

A log-mel gives the level of each band and not its partials and transients. The top octave of the known band has those
of the same music; single-sideband modulation moves it up without mirroring it.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from srlib.audio.stft import envelope, istft_same, log_mel, reflected, stft
from srlib.config import FRAME_PAD, HOP_LENGTH, SAMPLE_RATE
from srlib.machine import stage

_LOOP_SAMPLES = 1024 * HOP_LENGTH  # 10.24 s, after which the noise repeats
# Standard deviation of the noise under the copies, -100 dB of full scale; it excites where the known band is silent.
_FLOOR_AMPLITUDE = 1e-5
_OVERLAP = 0.1  # largest overlap of neighbouring copies, over their width
_MARGIN = 16 * HOP_LENGTH  # samples, reflected at both ends: the DFT is periodic, and a step from end to start a click


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
        first_sample: position in the recording; the phase of the modulation counts from its start, so chunks agree.
        delays_s: delay of each row, s `[...]`, by which its modulation is delayed too.
    """
    length, width_hz = known.shape[-1], edge_hz / 2
    samples = length + 2 * _MARGIN
    known = known[..., reflected(length, -_MARGIN, length + _MARGIN).to(known.device)]
    freqs_hz = torch.fft.rfftfreq(samples, 1 / SAMPLE_RATE, device=known.device)
    octave = torch.fft.rfft(known) * ((freqs_hz >= edge_hz - width_hz) & (freqs_hz < edge_hz))
    analytic = torch.fft.ifft(2 * octave, samples)  # negative frequencies are zero
    seconds = (torch.arange(samples, dtype=torch.float64) + first_sample - _MARGIN) / SAMPLE_RATE
    seconds = seconds - torch.as_tensor(delays_s, dtype=torch.float64)[..., None]
    total = torch.zeros_like(analytic)
    for shift_hz in shifts_hz(edge_hz):
        carrier = torch.polar(torch.ones_like(seconds), 2 * math.pi * (shift_hz * seconds % 1))
        total = total + analytic * carrier.to(analytic)
    # What passes 24 kHz aliases to negative frequencies, which are dropped.
    above = torch.fft.fft(total)[..., : len(freqs_hz)] * (freqs_hz >= edge_hz) / 2
    copies = torch.fft.irfft(above, samples)[..., _MARGIN:-_MARGIN]
    return copies + _FLOOR_AMPLITUDE * noise(length, first_sample).to(known)


def shifts_hz(edge_hz: float) -> list[float]:
    """Shift of each copy, Hz; neighbours overlap by a random 0 to 10 % of their width, edge_hz / 2.

    At equal distances the copies would form a comb: neighbours then correlate by 0.9, with random overlaps not at all.
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
