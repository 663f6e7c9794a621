"""A signal that the tests of baselines and limits share."""

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
