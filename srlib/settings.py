"""Settings with declared limits: frozen dataclasses that pydantic checks; an error is one sentence."""

from __future__ import annotations

import functools
import re
import reprlib
from typing import Annotated, Any, TypeVar, dataclass_transform

import numpy as np
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass

from srlib.errors import SrlibError

C = TypeVar("C")
_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


def _plain(value: Any) -> Any:
    """Python's number for one of numpy's."""
    return value.item() if isinstance(value, np.generic) else value


# Strict: otherwise pydantic converts true and "4000" to numbers.
Number = Annotated[float, Strict(), BeforeValidator(_plain)]
Whole = Annotated[int, Strict(), BeforeValidator(_plain)]
Flag = Annotated[bool, Strict()]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] <= pair[1]:
        raise ValueError("be a pair with 0 <= first <= second")
    return pair


def _apart(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] < pair[1]:
        raise ValueError("be a pair with 0 <= first < second")
    return pair


Range = Annotated[tuple[Number, Number], AfterValidator(_ordered)]  # (low, high)
Gap = Annotated[tuple[Number, Number], AfterValidator(_apart)]  # (start, end), seconds


@dataclass_transform(frozen_default=True)
def settings(cls: type[C]) -> type[C]:
    """Make a class a frozen dataclass that refuses wrong settings with SrlibError, by name, value and rule."""
    checked: Any = dataclass(cls, frozen=True, config=_CONFIG)
    init = checked.__init__

    @functools.wraps(init)
    def refusing(self: C, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise as_srlib_error(error) from None

    checked.__init__ = refusing
    return checked


def as_srlib_error(error: ValidationError) -> SrlibError:
    """All wrong settings in one sentence: the name, the value and the rules of each."""
    clauses: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        name = str(fault["loc"][0]) if fault["loc"] else ""
        rule = re.sub(r"^(Input should|Tuple should|Value error,) ", "", fault["msg"])
        if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            clauses[name] = f"There is no setting {name}: check its name"
        elif not name:  # a rule on several settings
            clauses[name] = rule.rstrip(".")
        elif name not in clauses:
            clauses[name] = f"{name} is {reprlib.repr(fault['input'])}: it should {rule}"
        elif not clauses[name].endswith(rule):
            clauses[name] += f" or {rule}"
    return SrlibError("; ".join(clauses.values()) + ".")
