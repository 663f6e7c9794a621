"""Several channels: survey of their relations, the downmix that the model runs on, and the upmix.

The restored log-mel above the cutoff is common to all channels. The difference in level of a channel from the downmix
is that just below the cutoff. Fine structure is each channel's own (`copied`) or comes from the upmix, since
independent random fine structure in each channel would make the stereo image wander.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, signal

from srlib.audio.stft import BINS_HZ, aligned_stft, band_of_hz, frames_of, istft_same, mel_to_bins
from srlib.config import LOG_MEL_FLOOR, N_MELS, SAMPLE_RATE
from srlib.restore.gaps import sounding

_QUIETEST = 1e-20  # linear peak, up to which a channel counts as silent: float32 cannot restore it
_PEAKS = (0.1, 1.0)  # linear: range of the peaks in training
_FRAME_S, _LONGEST_DELAY_S = 0.085, 0.01  # s, of the cross-spectra, and of sound that passes 3.4 m
_FAINT = 1e-16  # product of the powers of two channels, relative to the loudest bin: lower ones are leakage, rounding
_CLEAR = 0.5  # least peak of a correlation, relative to a pure delay, for which sign and delay are used
_SMOOTH_FRAMES, _SMOOTH_BANDS = 10.0, 4.0  # standard deviations of the Gaussians that smooth energies
_BELOW_CUTOFF_BANDS = 24  # mel bands whose mean energy is held above the cutoff
_SPREADS = np.linspace(0, 1, 101)  # half width of uniform random phases, in units of pi
_INTERPOLATED = 1.22  # sqrt(3 / 2): linear interpolation between bands leaves two thirds of the phases' variance
_MOST_GAIN = 10.0  # of a channel relative to the downmix, which may cancel for a moment


@dataclass(frozen=True)
class Layout:
    """Which channels are restored, and how they are mixed for the model.

    Args:
        unique: places of the channels that sound and repeat no other.
        copies: for each channel its place among the unique ones, or None if it is silent.
        weights: of the downmix, `[len(unique)]`; negative for inverted channels; their magnitudes add up to one.
        delays_s: delay of each unique channel after the earliest of them, s, `[len(unique)]`.
        alike: correlation, 0 to 1, of each unique channel with the loudest, delays compensated, `[len(unique)]`.
    """

    unique: tuple[int, ...]
    copies: tuple[int | None, ...]
    weights: np.ndarray
    delays_s: np.ndarray
    alike: np.ndarray

    def with_downmix(self, wav: torch.Tensor) -> torch.Tensor:
        """The downmix of the unique channels `[unique, samples]` at 48 kHz, delays compensated, and then the channels.

        `[1 + unique, samples]`; a single channel stays alone.
        """
        if len(wav) == 1:
            return wav
        shifts, samples = np.round(self.delays_s * SAMPLE_RATE).astype(int), wav.shape[1]
        aligned = [F.pad(row[shift:samples], (0, min(shift, samples))) for row, shift in zip(wav, shifts, strict=True)]
        return torch.cat([torch.from_numpy(self.weights).to(wav)[None] @ torch.stack(aligned), wav])

    def expand(self, wav: np.ndarray) -> np.ndarray:
        """All channels `[channels, samples]` from the unique ones, `[unique, samples]`."""
        silence = np.zeros(wav.shape[1], wav.dtype)
        return np.stack([silence if place is None else wav[place] for place in self.copies])


class ChannelSurvey:
    """Levels and cross-spectra of the channels of a recording that comes block by block."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.peaks = np.zeros(channels)
        self._rate, self._frame = sample_rate, 2 * round(_FRAME_S * sample_rate / 2)
        self._equal = {(i, j) for j in range(channels) for i in range(j)}
        self._held = np.empty((channels, 0), np.float32)
        self._spectra = np.zeros((channels, channels, self._frame // 2 + 1), np.complex128)

    def add(self, block: np.ndarray) -> None:
        """Take the next `[channels, samples]`."""
        self.peaks = np.maximum(self.peaks, np.abs(block).max(axis=1))
        self._equal = {(i, j) for i, j in self._equal if np.array_equal(block[i], block[j])}
        if len(block) > 1:
            held = np.concatenate([self._held, block], axis=1)
            whole = held.shape[1] // self._frame * self._frame
            self._held = held[:, whole:]
            # The edges of a gap are clicks, which all channels share.
            uncut = sounding(np.abs(held[:, :whole]).max(0), self._rate).reshape(-1, self._frame).all(1)
            self._spectra += self._cross_spectra(held[:, :whole][:, np.repeat(uncut, self._frame)])

    def layout(self, channels: Sequence[int] | None = None) -> Layout:
        """How some channels, or all, are restored together."""
        channels = range(len(self.peaks)) if channels is None else channels
        original = [next(i for i in channels if i == channel or (i, channel) in self._equal) for channel in channels]
        sounding = self.peaks > _QUIETEST
        chosen = [channel for channel, first in zip(channels, original, strict=True) if first == channel]
        chosen = [channel for channel in chosen if sounding[channel]]
        copies = tuple(chosen.index(first) if sounding[first] else None for first in original)
        unique = tuple(channels.index(channel) for channel in chosen)
        if len(unique) < 2:
            one = np.ones(len(unique), np.float32)
            return Layout(unique, copies, one, 0 * one, one)
        spectra = self._spectra
        if not spectra.any():  # shorter than a frame, or cut everywhere
            spectra = self._cross_spectra(np.pad(self._held, ((0, 0), (0, self._frame - self._held.shape[1]))))
        return Layout(unique, copies, *self._mixed(spectra[np.ix_(chosen, chosen)]))

    def level(self, channels: Sequence[int]) -> float:
        """Factor that brings the peak of some channels into the range of the training data."""
        peak = self.peaks[list(channels)].max(initial=0.0)
        return float(np.clip(peak, *_PEAKS) / peak) if peak else 1.0

    def _cross_spectra(self, wav: np.ndarray) -> np.ndarray:
        """Sum over frames of the spectrum of each channel times the conjugate of each, `[channels, channels, bins]`."""
        frames = wav.reshape(len(wav), -1, self._frame) * signal.windows.hann(self._frame, sym=False)
        spectrum = np.fft.rfft(frames).transpose(2, 0, 1)  # [bins, channels, frames]
        return (spectrum @ spectrum.conj().transpose(0, 2, 1)).transpose(1, 2, 0)

    def _mixed(self, spectra: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, delays and correlations of channels with these cross-spectra."""
        # Power of first differences weights high frequencies, since bass says little about the generated band.
        steps = np.square(2 * np.sin(np.linspace(0, np.pi / 2, spectra.shape[2])))
        powers = np.einsum("ccf->cf", spectra).real
        weights = np.sqrt(powers @ steps)
        loudest = int(np.argmax(weights))
        found = [self._relation(spectra[row, loudest], powers[row] * powers[loudest]) for row in range(len(spectra))]
        signs, delays_s, alike = np.array(found).T
        return (signs * weights / weights.sum()).astype(np.float32), delays_s - delays_s.min(), alike

    def _relation(self, spectrum: np.ndarray, powers: np.ndarray) -> tuple[float, float, float]:
        """Sign and delay (s) of a channel after another, 1 and 0 if they are too unlike; and their correlation.

        Both come from the highest peak of the correlation whose bins are weighted by coherence alone (Carter 1973).
        """
        sounds = powers > _FAINT * powers.max()
        coherence = sounds * spectrum * np.abs(spectrum) / np.where(sounds, powers, 1)
        correlation = np.fft.irfft(coherence, self._frame) * self._frame / 2
        reach = round(_LONGEST_DELAY_S * self._rate)
        lags = np.arange(-reach, reach + 1)
        near = correlation[lags]
        peak = int(np.argmax(np.abs(near)))
        alike = float(np.sqrt(min(np.abs(near[peak]) / max(sounds.sum(), 1), 1)))
        if np.abs(near[peak]) < _CLEAR * np.abs(coherence).sum():
            return 1.0, 0.0, alike
        before, top, after = (np.abs(correlation[lags[peak] + step]) for step in (-1, 0, 1))
        offset = 0.5 * (before - after) / min(before - 2 * top + after, -1e-12)
        return float(np.sign(near[peak])), float((lags[peak] + np.clip(offset, -0.5, 0.5)) / self._rate), alike


def level_differences(known: torch.Tensor, downmix: torch.Tensor, cutoff_hz: float) -> torch.Tensor:
    """Level of each unique channel relative to the downmix, nat of magnitude, `[unique, frames, 256]`, smoothed.

    Args:
        known, downmix: log-mels of the unique channels `[unique, frames, 256]` and of their downmix `[frames, 256]`,
            gaps bridged.
        cutoff_hz: above it the levels just below it are held.
    """
    energy = np.exp(2 * torch.cat([downmix[None], known]).cpu().double().numpy())
    energy = np.maximum(energy - (1.01 * LOG_MEL_FLOOR) ** 2, 0.0)
    top = max(band_of_hz(cutoff_hz), 1)
    energy[..., top:] = energy[..., max(top - _BELOW_CUTOFF_BANDS, 0) : top].mean(-1, keepdims=True)
    mix, *channels = ndimage.gaussian_filter(energy, (0, _SMOOTH_FRAMES, _SMOOTH_BANDS), mode="nearest")
    gains = np.sqrt(channels / np.maximum(mix, LOG_MEL_FLOOR**2))
    return torch.from_numpy(np.log(np.clip(gains, LOG_MEL_FLOOR, _MOST_GAIN))).float()


def upmix(generated: torch.Tensor, differences: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Generated audio of each unique channel `[unique, samples]`, from that of the downmix, `[samples]`.

    Each channel gets its level (`differences`, of `level_differences`), delay and sign. Random phases give it its
    correlation: phases that are uniform within +-pi x leave a correlation of sinc(x).
    """
    gains = torch.exp(differences).to(generated)
    frames = frames_of(generated)
    index = torch.arange(frames, device=generated.device).clamp(max=gains.shape[1] - 1)
    spread = np.interp(-layout.alike, -np.sinc(_SPREADS), _SPREADS)
    random = np.random.default_rng(0).uniform(-1, 1, (len(gains), N_MELS)) * _INTERPOLATED * spread[:, None] / 2
    turns = mel_to_bins(torch.from_numpy(random)) - torch.from_numpy(layout.delays_s[:, None] * BINS_HZ)
    signs = torch.from_numpy(np.sign(layout.weights)).double()[:, None]
    turned = torch.polar(signs.expand_as(turns).abs(), 2 * torch.pi * turns) * signs
    in_bins = mel_to_bins(gains[:, index]) * turned.to(generated.device, torch.complex64)[:, None]
    return istft_same(aligned_stft(generated, frames) * in_bins)[:, : len(generated)]
