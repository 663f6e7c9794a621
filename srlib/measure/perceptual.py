"""Perceptual measures, from packages of the optional extra `perceptual`; all run offline on a CPU.

Zimtohrli (Google; a distance) leads, the 2f model (Kastner and Herre 2019, 0 to 100) and ViSQOL (Google, 1 to 5) stand
beside it. Recordings are `[samples]` at 48 kHz.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
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


def two_f(reference: np.ndarray, estimate: np.ndarray) -> float:
    """The 2f model's MUSHRA score, 0 to 100: higher is better. The first call on a machine compiles for two minutes."""
    pair = (np.array(wav, np.float64)[None] for wav in (estimate, reference))  # copies: it changes what it is given
    return float(_two_f().estimated_mean_mushra_score(*pair, fs=SAMPLE_RATE))


def visqol(reference: np.ndarray, estimate: np.ndarray) -> float:
    """ViSQOL's mean opinion score in audio mode, 1 to 5: higher is better."""
    pair = (np.asarray(wav, np.float64) for wav in (reference, estimate))
    return float(_visqol().measure_from_arrays(*pair, SAMPLE_RATE).moslqo)


MEASURES = {"zimtohrli": zimtohrli, "visqol": visqol, "two_f": two_f}


def measure(reference: np.ndarray, estimate: np.ndarray, names: Iterable[str] = tuple(MEASURES)) -> dict[str, float]:
    """{name: value} of those measures whose packages are installed."""
    return {name: MEASURES[name](reference, estimate) for name in names if is_installed(name)}


@cache
def _zimtohrli():
    return _package("zimtohrli").Pyohrli()


@cache
def _visqol():
    api = _package("visqol").VisqolApi()
    api.create(mode="audio")
    return api


@cache
def _two_f():
    model = _package("two_f", "core.models.mms")
    for name, module in list(sys.modules.items()):
        if name.startswith(PACKAGES["two_f"]):
            for compiled in vars(module).values():
                if hasattr(compiled, "enable_caching"):  # numba's: on disk, for the processes that come after
                    compiled.enable_caching()
    return model


def _package(measure: str, module: str = ""):
    if not is_installed(measure):
        raise SrlibError(f"The measure {measure} is not installed: pip install 'srlib[perceptual]'.")
    return importlib.import_module(".".join(filter(None, [PACKAGES[measure], module])))
