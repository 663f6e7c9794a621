"""Systems: names, folders and templates find what they say, and a command is a system like any other."""

import numpy as np
import pytest

from srlib.config import profile
from srlib.degrade import Degradation
from srlib.errors import SrlibError
from srlib.measure import limits, systems
from srlib.measure.conditions import Case

SMOKE = profile("smoke")


@pytest.fixture
def case(music):
    return Case("a", "clean_8k", music, Degradation(8000))


def test_names_find_systems(case):
    found = systems.named(["reference", "unprocessed", "oracle", "ours", "prior", "audiosr_lowpass", "gt_mel"], SMOKE)
    np.testing.assert_array_equal(found["reference"](case, 0), case.reference)
    np.testing.assert_array_equal(found["unprocessed"](case, 0), case.degraded)
    limit = limits.oracle(case.reference, case.degraded, case.degradation)
    np.testing.assert_array_equal(found["oracle"](case, 0), limit)
    assert found["ours"].options["num_inference_steps"] == 2 and found["prior"].options["num_inference_steps"] == 0
    assert found["audiosr_lowpass"].variant == "lowpass" and found["audiosr_lowpass"].model == "tiny"
    assert found["gt_mel"](case, 0).shape == case.reference.shape
    with pytest.raises(SrlibError, match="no system 'nvsr': choose one of gt_mel"):
        systems.named(["nvsr"], SMOKE)


def test_a_model_is_loaded_once_told_where_the_band_ends_and_the_same_from_its_folder(case, tmp_path):
    pipe = systems.load_pipeline("tiny", None, "cpu")
    output = systems.named(["ours"], SMOKE)["ours"](case, 0)
    assert output.cutoff_hz == pytest.approx(case.passband_hz)
    assert systems.load_pipeline("tiny", None, "cpu") is pipe
    pipe.save_pretrained(tmp_path)
    again = systems.named({"mine": str(tmp_path)}, SMOKE)["mine"](case, 0)
    assert again.cutoff_hz == output.cutoff_hz and again.audio.shape == output.audio.shape


def test_a_command_is_a_system(case):
    halved = systems.named({"half": "ffmpeg -i {in} -filter:a volume=0.5 -c:a pcm_f32le {out}"}, SMOKE)["half"](case, 0)
    np.testing.assert_allclose(halved, case.degraded / 2, atol=1e-6)
