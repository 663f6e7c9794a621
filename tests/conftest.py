"""Fixtures that several test files share: a few seconds of music, and a model small enough to run in a second."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _default_profile(monkeypatch):
    """A caller's SRLIB_PROFILE must not change what the tests see."""
    monkeypatch.delenv("SRLIB_PROFILE", raising=False)


@pytest.fixture(scope="session")
def music() -> np.ndarray:
    """Three seconds of a demo test track, float32 [144000], mono, 48 kHz."""
    from srlib.data import load_dataset

    return load_dataset("demo", "test")[0].mixture(start=2.0, seconds=3.0)


@pytest.fixture(scope="session")
def tiny_pipeline():
    """The whole restoration pipeline in its smallest size, with random weights."""
    from srlib.pipeline import build

    return build("tiny", seed=0)
