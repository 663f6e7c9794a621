"""Systems: names and templates find what they say, fillings fill, and a command is a system like any other."""

import sys

import numpy as np
import pytest

from srlib.config import SAMPLE_RATE, profile
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import baselines, limits, systems
from srlib.measure.conditions import Case
from srlib.measure.lsd import lsd


@pytest.fixture
def case(music):
    return Case("a", "clean_8k", music, Degradation(8000))


def test_names_find_systems(case):
    smoke = profile("smoke")
    found = systems.named(["reference", "unprocessed", "oracle", "ours", "prior", "audiosr_lowpass", "gt_mel"], smoke)
    np.testing.assert_array_equal(found["reference"](case, 0), case.reference)
    np.testing.assert_array_equal(found["unprocessed"](case, 0), case.degraded)
    limit = limits.oracle(case.reference, case.degraded, case.degradation)
    np.testing.assert_array_equal(found["oracle"](case, 0), limit)
    assert found["ours"].options["num_inference_steps"] == 2 and found["prior"].options["num_inference_steps"] == 0
    assert found["audiosr_lowpass"].variant == "lowpass" and found["audiosr_lowpass"].model == "tiny"
    assert found["gt_mel"](case, 0).shape == case.reference.shape
    own = systems.named({"mine": systems.reference, "replaced": {"merge": "replace"}}, smoke)
    assert own["mine"] is systems.reference and own["replaced"].options["merge"] == "replace"
    with pytest.raises(SrlibError, match="no system 'nvsr': choose one of gt_mel"):
        systems.named(["nvsr"], smoke)


def test_a_model_is_loaded_once_and_told_where_the_band_ends(case):
    smoke = profile("smoke")
    pipe = systems.load_pipeline(smoke)
    assert systems.load_pipeline(smoke) is pipe
    output = systems.named(["ours"], smoke)["ours"](case, 0)
    assert output.cutoff_hz == pytest.approx(case.passband_hz)
    again = systems.restore(pipe, case.degraded, case.degradation, 0, num_inference_steps=2)
    np.testing.assert_array_equal(output.audio, again.audio)


def test_a_ridge_serves_its_condition(case):
    ridge = baselines.Ridge.fit([(case.degraded, case.reference)])
    np.testing.assert_array_equal(
        systems.ridge({"clean_8k": ridge}, case), ridge.restore(case.degraded, case.degradation)
    )


def test_a_command_is_a_system(case):
    program = (
        "import sys, soundfile as s; x, r = s.read(sys.argv[1]); s.write(sys.argv[2], x[: -r // 10] / 2, r, 'FLOAT')"
    )
    template = f'{sys.executable} -c "{program.replace("{", "{{")}" {{in}} {{out}}'
    halved = systems.named({"half": template}, profile("smoke"))["half"](case, 0)
    assert halved.shape == case.degraded.shape
    np.testing.assert_allclose(halved[:100_000], case.degraded[:100_000] / 2, atol=1e-6)
    with pytest.raises(SrlibError, match=r"false {in} {out}: ended with code 1"):
        systems.command("false {in} {out}", case)


def test_interpolation_and_repetition_fill_steady_noise_as_well_as_noise_can():
    noise = 0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    case = Case("noise", "gap", noise, Degradation(gaps=((1.0, 1.2),)))
    gap = slice(SAMPLE_RATE, SAMPLE_RATE + SAMPLE_RATE // 5)
    for system in (systems.repetition, systems.interpolation):
        filled = system(case, 0)
        assert np.array_equal(filled[: gap.start], noise[: gap.start])
        assert np.array_equal(filled[gap.stop :], noise[gap.stop :])
        assert lsd(noise[gap], filled[gap], convention="plain") < 0.9  # two independent noises: 0.79
        assert filled[gap].std() == pytest.approx(0.1, rel=0.15)
