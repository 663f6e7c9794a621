"""Perceptual measures, from packages of the optional extra `perceptual`; all run offline on a CPU.

Zimtohrli (Google; a distance) leads, the 2f model (Kastner and Herre 2019, 0 to 100) and ViSQOL (Google, 1 to 5) stand
beside it. Recordings are `[samples]` at 48 kHz.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache

import numpy as np

from srlib.config import SAMPLE_RATE
from srlib.errors import SrlibError

PACKAGES = {"zimtohrli": "zimtohrli", "visqol": "visqol", "two_f": "seabass"}


def is_installed(measure: str) -> bool:
    """Whether the package of a measure, a key of PACKAGES, is here."""
    return importlib.util.find_spec(PACKAGES[measure]) is not None


def zimtohrli(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Zimtohrli's distance times 1000: 0 is the same, lower is better."""
    return 1000 * float(_zimtohrli().distance(*(np.asarray(wav, np.float32) for wav in (reference, estimate))))


@cache
def _zimtohrli():
    return _package("zimtohrli").Pyohrli()


def _package(measure: str):
    if not is_installed(measure):
        raise SrlibError(f"The measure {measure} is not installed: pip install 'srlib[perceptual]'.")
    return importlib.import_module(PACKAGES[measure])
