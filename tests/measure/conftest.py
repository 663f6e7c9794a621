"""Signals that the tests of metrics, baselines and limits share, each a function of its length and seed."""

import numpy as np
import pytest
from scipy import signal

SAMPLE_RATE = 48_000


@pytest.fixture(scope="session")
def coloured():
    """Noise of -6 dB per octave whose level moves: Rayleigh fine structure under a changing envelope."""

    def make(seconds=3.0, seed=0):
        samples = int(seconds * SAMPLE_RATE)
        wav = signal.lfilter([0.02], [1, -0.97], np.random.default_rng(seed).standard_normal(samples))
        return (wav * (1.2 + np.sin(2 * np.pi * 2 * np.arange(samples) / SAMPLE_RATE))).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def notes():
    """Decaying harmonic notes with rests between their partials: what noise reduction can tell from noise."""

    def make(seconds=3.0, seed=0):
        rng, time = np.random.default_rng(seed), np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        wav = np.zeros_like(time)
        for start in np.arange(0, seconds, 0.25):
            held = np.clip(time - start, 0, None)
            pitch = 110 * 2 ** (rng.integers(24) / 12)
            wav += (
                (time >= start)
                * np.exp(-6 * held)
                * sum(np.sin(2 * np.pi * pitch * k * held) / k for k in range(1, 12))
            )
        return (0.1 * wav).astype(np.float32)

    return make
