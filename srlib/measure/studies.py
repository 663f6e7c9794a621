"""Studies of the report: what the prior expects, which merge removes noise, noise within the band, what fills a gap."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from srlib.audio.stft import BINS_HZ, WINDOW_POWER, log_mel
from srlib.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from srlib.degrade import Degradation, DegradationConfig, istft, stft
from srlib.measure import baselines
from srlib.measure.evaluation import Condition, restore, restore_each_merge
from srlib.measure.metrics import HEADLINE_HZ, PLAIN, lsd, plain_power, snr_low_db, tone_suppression_db
from srlib.restore.gaps import interpolate_gaps
from srlib.restore.merge import Band
from srlib.restore.observation import Observation, observe

if TYPE_CHECKING:
    from srlib.models.prior import Posterior
    from srlib.restore.pipeline import RestorationPipeline

MERGE_NOISES = (("clean", 0.0), ("tone", 0.2), ("tone", 0.02), ("white", 0.02), ("white", 0.005))
MERGE_SETTINGS = {
    "merge": "unprocessed: the input; ideal_wiener: the gain that knows the clean spectrum, a mean over 3 x 3 cells",
    "snr_known_db, snr_gain_db": "below passband_hz against the reference as filtered; the gain is over the input",
    "snr_low_gain_db": "the gain against the reference itself, whose ripple and fall below passband_hz the input lacks",
    "lsd_near_tone": "plain, within 200 Hz of the tone",
}
HISS_AMPLITUDES = (0.002, 0.02)
HISS_SETTINGS = {
    "cutoff_hz": "of the filter that music and noise go through together; nothing: full band",
    "found_share": "of the clips: in these the noise is found",
    "snr_gain_db": "below passband_hz against the reference as filtered, over the input; full band: to 19 kHz",
}
GAP_SECONDS = (0.05, 0.1, 0.25, 0.5)
GAP_SETTINGS = {
    "lsd_19k": "plain, over frames with their centre inside the gap",
    "log_mel_l1": "nat, over frames with their centre inside the gap",
    "noise": "clean: full band; white: low-passed at 8 kHz, then white noise of amplitude 0.02",
}
_NEAR_TONE_HZ = 200.0
_HIGHEST_TONE = 0.8  # of the cutoff: what lies above it no merge keeps


# ---------------------------------------------------------------------------------------------- prior


def posterior(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation
) -> tuple[Observation, Posterior]:
    """What the record of a low-pass and white noise says of `degraded` [samples], and what the prior makes of that."""
    band = Band(degradation.passband_hz(SAMPLE_RATE), degradation.stopband_hz(SAMPLE_RATE))
    level = degradation.noise_amplitude if degradation.noise_type == "white" else 0.0
    floor = np.full(len(BINS_HZ), level**2 * WINDOW_POWER)
    mel = interpolate_gaps(log_mel(torch.from_numpy(degraded).to(pipe.device)), degradation.gaps)
    observation = observe(mel, [band], [floor], [degradation.gaps])
    return observation, pipe.prior(observation.log_mel, observation.variance)


# ---------------------------------------------------------------------------------------------- merges


def compare_merges(
    pipe: RestorationPipeline,
    references: Mapping[str, np.ndarray],
    cutoffs_hz: Sequence[int],
    seed: int = 0,
) -> pd.DataFrame:
    """One row per noise, amplitude, cutoff and merge: means over `references`, {track: [samples]}.

    The prior's mean alone is merged: the merges differ, and what is sampled does not matter to that.
    """
    rows = []
    for noise, amplitude in MERGE_NOISES:
        for cutoff_hz in cutoffs_hz:
            for track, reference in references.items():
                degradation = replace(Condition(cutoff_hz, noise).degradation(track, seed), noise_amplitude=amplitude)
                if noise == "tone":  # into the known band, where merges differ
                    share = degradation.tone_hz / DegradationConfig().tone_hz[1]
                    degradation = replace(degradation, tone_hz=_HIGHEST_TONE * cutoff_hz * share)
                degraded = degradation.apply(reference, SAMPLE_RATE)
                known = replace(degradation, noise_type="none").apply(reference, SAMPLE_RATE)
                restored = {"unprocessed": degraded}
                restored |= restore_each_merge(pipe, degraded, degradation, seed, num_inference_steps=0)
                if noise == "white":
                    restored["wiener"] = baselines.wiener(degraded, SAMPLE_RATE)
                    restored["ideal_wiener"] = ideal_wiener(known, degraded)
                for merge, wav in restored.items():
                    row = {"noise": noise, "amplitude": amplitude, "cutoff_hz": cutoff_hz, "merge": merge}
                    rows.append(row | _merge_scores(reference, known, degraded, wav, degradation))
    keys = ["noise", "amplitude", "cutoff_hz", "merge"]
    return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False).mean()


def compare_hisses(
    pipe: RestorationPipeline, references: Mapping[str, np.ndarray], cutoffs_hz: Sequence[float | None], seed: int = 0
) -> pd.DataFrame:
    """One row per cutoff, or none, and amplitude of white noise that the filter cut off too: means over `references`.

    {track: [samples]}; the prior's mean alone. `snr_gain_db` and `lsd_19k` of the input and of ours.
    """
    rows = []
    for cutoff_hz in cutoffs_hz:
        for amplitude in HISS_AMPLITUDES:
            for track, reference in references.items():
                noise = {"noise_type": "white", "noise_amplitude": amplitude, "noise_first": True}
                degradation = Degradation(cutoff_hz, **noise, seed=seed + zlib.crc32(track.encode()))
                degraded = degradation.apply(reference, SAMPLE_RATE)
                known = replace(degradation, noise_type="none").apply(reference, SAMPLE_RATE)
                output = restore(pipe, degraded, degradation, seed, num_inference_steps=0)
                edge_hz = degradation.passband_hz(SAMPLE_RATE) or HEADLINE_HZ
                before_db, after_db = (snr_low_db(known, wav, edge_hz) for wav in (degraded, output.audio))
                row = {"cutoff_hz": cutoff_hz, "amplitude": amplitude, "found_share": output.noise_found}
                lsds = (lsd(reference, wav, convention="plain", f_high=HEADLINE_HZ) for wav in (degraded, output.audio))
                row |= dict(zip(("lsd_19k_input", "lsd_19k"), lsds, strict=True))
                rows.append(row | {"snr_gain_db": after_db - before_db})
    keys = ["cutoff_hz", "amplitude"]
    return pd.DataFrame(rows).groupby(keys, sort=False, as_index=False, dropna=False).mean()


def ideal_wiener(clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """The Wiener gain of the exact powers of signal and noise, smoothed over 3 x 3 cells: no blind gain is better."""
    spectrum = stft(noisy.astype(np.float64), N_FFT, HOP_LENGTH)
    powers = (np.abs(stft(wav.astype(np.float64), N_FFT, HOP_LENGTH)) ** 2 for wav in (clean, noisy - clean))
    # The filter's running sums leave rounding errors that may be negative.
    signal, noise = (np.maximum(ndimage.uniform_filter(power, 3, mode="nearest"), 1e-12) for power in powers)
    gain = signal / (signal + noise)
    return istft(spectrum * gain, len(noisy), N_FFT, HOP_LENGTH).astype(np.float32)


def _merge_scores(
    reference: np.ndarray, known: np.ndarray, degraded: np.ndarray, wav: np.ndarray, degradation: Degradation
) -> dict[str, float]:
    edge_hz = degradation.passband_hz(SAMPLE_RATE)
    after_db = snr_low_db(known, wav, edge_hz)
    scores = {"lsd_19k": lsd(reference, wav, convention="plain", f_high=HEADLINE_HZ), "snr_known_db": after_db}
    if degradation.noise_type != "none":
        scores["snr_gain_db"] = after_db - snr_low_db(known, degraded, edge_hz)
        scores["snr_low_gain_db"] = snr_low_db(reference, wav, edge_hz) - snr_low_db(reference, degraded, edge_hz)
    if degradation.noise_type == "tone":
        tone_hz = degradation.tone_hz
        scores["tone_suppression_db"] = tone_suppression_db(reference, wav, tone_hz, degradation.noise_amplitude)
        around = {"f_low": max(tone_hz - _NEAR_TONE_HZ, 0.0), "f_high": tone_hz + _NEAR_TONE_HZ}
        scores["lsd_near_tone"] = lsd(reference, wav, convention="plain", **around)
    return scores


# ---------------------------------------------------------------------------------------------- gaps


def gaps_for(seconds: float, turn: int = 0) -> tuple[tuple[float, float], ...]:
    """One gap of each length of `GAP_SECONDS` that fits an excerpt four times over; `turn` changes their order."""
    lengths = [length for length in GAP_SECONDS if 8 * length <= seconds]
    centres = (np.arange(len(lengths)) + 0.5) * seconds / len(lengths)
    turned = np.roll(lengths, turn)
    return tuple((float(c - w / 2), float(c + w / 2)) for c, w in zip(centres, turned, strict=True))


def fillings(
    pipe: RestorationPipeline, degraded: np.ndarray, degradation: Degradation, seed: int = 0
) -> dict[str, np.ndarray]:
    """{system: `degraded` [samples] with its gaps filled}: by doing nothing, by simple means, by ours."""
    repeated, interpolated = degraded.copy(), degraded.copy()
    envelope = np.abs(stft(degraded.astype(np.float64), N_FFT, HOP_LENGTH))
    for start, end in degradation.gaps:
        first, last = round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)
        repeated[first:last] = np.resize(degraded[max(2 * first - last, 0) : first], last - first)
        whole = ((first - N_FFT // 2) // HOP_LENGTH, -(-(last + N_FFT // 2) // HOP_LENGTH))  # next to the gap
        share = np.linspace(0, 1, whole[1] - whole[0] + 1)[:, None]
        envelope[whole[0] : whole[1] + 1] = (1 - share) * envelope[whole[0]] + share * envelope[whole[1]]
    noise = stft(np.random.default_rng(seed).standard_normal(len(degraded)), N_FFT, HOP_LENGTH)
    generated = istft(envelope * noise / np.abs(noise), len(degraded), N_FFT, HOP_LENGTH)
    for start, end in degradation.gaps:
        inside = slice(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))
        interpolated[inside] = generated[inside]
    ours = restore(pipe, degraded, degradation, seed).audio
    return {"silence": degraded, "repetition": repeated, "interpolation": interpolated, "ours": ours}


def gap_degradation(track: str, seconds: float, noise: str, turn: int = 0) -> Degradation:
    """A full-band excerpt with gaps (`clean`), or one that is also low-passed and noisy (`white`)."""
    gaps, seed = gaps_for(seconds, turn), zlib.crc32(track.encode())
    if noise == "clean":
        return Degradation(gaps=gaps, seed=seed)
    return Degradation(8000, noise_type="white", noise_amplitude=0.02, gaps=gaps, seed=seed)


def compare_fillings(pipe: RestorationPipeline, references: Mapping[str, np.ndarray], seed: int = 0) -> pd.DataFrame:
    """One row per noise, length of gap and system: means over `references`, {track: [samples]}."""
    rows = []
    for turn, (track, reference) in enumerate(references.items()):
        for noise in ("clean", "white"):
            degradation = gap_degradation(track, len(reference) / SAMPLE_RATE, noise, turn)
            degraded = degradation.apply(reference, SAMPLE_RATE)
            truth = _spectra(reference)
            for system, wav in fillings(pipe, degraded, degradation, seed).items():
                estimate = _spectra(wav)
                for gap in degradation.gaps:
                    row = {"noise": noise, "gap_ms": round(1000 * (gap[1] - gap[0])), "system": system}
                    rows.append(row | _gap_scores(truth, estimate, gap))
    return pd.DataFrame(rows).groupby(["noise", "gap_ms", "system"], sort=False, as_index=False).mean()


def _spectra(wav: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log10 power to 19 kHz `[frames, bins]` of the plain convention, and log-mel `[frames, 256]`."""
    bins = int(HEADLINE_HZ * PLAIN.n_fft / SAMPLE_RATE) + 1
    return np.log10(np.maximum(plain_power(wav)[:, :bins], PLAIN.eps)), log_mel(torch.from_numpy(wav))[0, 0].numpy()


def _gap_scores(truth: tuple, estimate: tuple, gap: tuple[float, float]) -> dict[str, float]:
    """Distances over the frames with their centre in a gap; plain frames are centred on multiples of their hop."""
    centres = np.arange(len(truth[0])) * PLAIN.hop_length, (np.arange(len(truth[1])) + 0.5) * HOP_LENGTH
    inside = [(gap[0] * SAMPLE_RATE <= centre) & (centre < gap[1] * SAMPLE_RATE) for centre in centres]
    power, mel = (a[i] - b[i] for a, b, i in zip(truth, estimate, inside, strict=True))
    return {"lsd_19k": float(np.sqrt((power**2).mean(1)).mean()), "log_mel_l1": float(np.abs(mel).mean())}
