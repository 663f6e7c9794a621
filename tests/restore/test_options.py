"""Options: their limits, alone, against a recording and against a model; each refusal is one sentence."""

import inspect
from dataclasses import fields

import numpy as np
import pytest

from srlib.errors import SrlibError
from srlib.restore.options import Options
from srlib.restore.pipeline import RestorationPipeline

SAMPLE_RATE = 48000


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"wav": np.array([0.1, np.nan], np.float32)}, "NaN"),
        ({"wav": np.array([0.1, 1e20], np.float32)}, "beyond 1e"),
        ({"wav": np.ones((9, 4800), np.float32)}, "9 channels"),
        ({"sample_rate": 1}, "sample rate is 1 Hz"),
        ({"gaps": "all"}, "gaps is 'all'.*'auto'"),
        ({"merge": "paste"}, "merge is 'paste'.*'gain', 'replace' or 'none'"),
        ({"excitation": "voice"}, "excitation is 'voice'.*'copied', 'noise' or 'vocoder'"),
        ({"cutoff_hz": 24000}, "cutoff_hz is 24000.*less than 24000 or be 'auto'"),
        ({"cutoff_hz": 0}, "cutoff_hz is 0.*greater than or equal to 100 or be 'auto'"),
        ({"cutoff_hz": float("nan")}, "cutoff_hz is nan.*finite"),
        ({"cutoff_hz": "low"}, "cutoff_hz is 'low'"),
        ({"cutoff_hz": 4000, "stopband_hz": 3000}, "stopband_hz is 3000 and lies below"),
        ({"gaps": [(0.5, 1.5)]}, "0.5:1.5"),
        ({"gaps": [(0.5, 0.5)]}, r"gaps is \(0.5, 0.5\).*0 <= first < second"),
        ({"gaps": [(-0.1, 0.5)]}, r"gaps is \(-0.1, 0.5\)"),
        ({"scheduler": "euler"}, "scheduler is 'euler'.*'ddim'"),
        ({"scheduler": "dpm", "eta": 1.0}, "eta is 1, but only the scheduler ddim"),
        ({"generator": 2**64}, "generator is 18446744073709551616.*64 bits"),
        ({"generator": -(2**63) - 1}, "generator is -9223372036854775809"),
        ({"generator": 0.5}, "generator is 0.5.*integer"),
        ({"num_inference_steps": 1001}, "1001 steps cannot be taken"),
        ({"num_samples": 0}, "num_samples is 0.*equal to 1"),
        ({"denoise": "much"}, "denoise is 'much'.*'auto', 'on' or 'off'"),
        ({"blend": 1.5}, "blend is 1.5.*less than or equal to 1"),
        ({"band_from_hz": 24000}, "band_from_hz is 24000.*less than 24000"),
    ],
)
def test_what_cannot_be_restored_is_refused_in_a_sentence(tiny_pipeline, change, sentence):
    call = {"wav": np.full(SAMPLE_RATE, 0.1, np.float32), "sample_rate": SAMPLE_RATE} | change
    with pytest.raises(SrlibError, match=sentence) as caught:
        tiny_pipeline(**call)
    assert "\n" not in str(caught.value)


def test_the_largest_and_the_smallest_seed_are_taken(tiny_pipeline):
    for seed in (2**64 - 1, -(2**63), np.int64(3)):
        assert Options(generator=seed).sampling(tiny_pipeline).generator.initial_seed() == int(seed) % 2**64


def test_help_and_completion_show_every_option_of_a_call():
    for method in (RestorationPipeline.__call__, RestorationPipeline.restore_file):
        shown = inspect.signature(method).parameters
        assert {one.name: one.default for one in fields(Options)}.items() <= {
            name: one.default for name, one in shown.items()
        }.items()
