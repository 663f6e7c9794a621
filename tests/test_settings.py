"""Settings: each kind takes what it says, and what it refuses is one sentence."""

import dataclasses
from typing import Literal

import numpy as np
import pytest

from srlib.errors import SrlibError
from srlib.settings import Flag, Gap, NotNegative, Number, Positive, Range, Whole, settings


@settings
class Some:
    number: Number = 0.5
    whole: Whole = 3
    flag: Flag = False
    positive: Positive | None = None
    not_negative: NotNegative = 0.0
    band: Range = (0.0, 1.0)
    gap: Gap = (0.0, 1.0)
    either: Number | Literal["auto"] = "auto"

    def __post_init__(self):
        if self.whole == self.number:
            raise ValueError("Two are equal")


KEPT = [("number", np.float32(0.25), 0.25), ("whole", np.int64(7), 7), ("gap", [np.float64(0), 0.5], (0.0, 0.5)),
        ("positive", None, None), ("band", (1, 1), (1.0, 1.0))]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "kept"), KEPT)
def test_a_setting_holds_a_plain_value(name, given, kept):
    found = getattr(Some(**{name: given}), name)
    assert found == kept and type(found) is type(kept)


WRONG = {
    "number": [("4000", "number"), (True, "number"), (10**400, "number"), (float("nan"), "finite")],
    "whole": [(4.5, "integer"), ("3", "integer"), (True, "integer"), (None, "integer")],
    "flag": [("no", "boolean"), (1, "boolean")],
    "positive": [(0, "greater than 0")],
    "not_negative": [(-0.1, "equal to 0")],
    "band": [((2, 1), "0 <= first <= second"), ((-1, 1), "0 <= first"), ((0, float("nan")), "finite")],
    "gap": [((1, 1), "0 <= first < second"), (0.1, "tuple")],
    "either": [("x", "valid number or be 'auto'")],
}


@pytest.mark.parametrize(
    ("name", "value", "allowed"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_a_wrong_value_is_refused_by_its_name_with_what_is_allowed(name, value, allowed):
    with pytest.raises(SrlibError, match=f"^{name} is .*: it should .*{allowed}") as caught:
        Some(**{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200  # however long the value is


def test_unknown_names_are_refused_and_nothing_can_be_changed():
    with pytest.raises(SrlibError, match="There is no setting louder: check its name"):
        Some(louder=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Some().whole = 4
    with pytest.raises(SrlibError, match="whole is 'x'"):
        dataclasses.replace(Some(), whole="x")
    with pytest.raises(SrlibError, match=r"^Two are equal"):
        Some(number=3.0)


def test_all_faults_stand_in_one_sentence():
    with pytest.raises(
        SrlibError, match=r"^number is 'x': .*; flag is 1: .*; There is no setting louder: check its name\.$"
    ):
        Some(number="x", flag=1, louder=1)
