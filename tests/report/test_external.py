"""Anyone's restorer: its rows are those of the main table, and replace their like."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from srlib.config import profile
from srlib.errors import SrlibError
from srlib.report import artifacts, external

SMALL = replace(profile("smoke"), name="demo")  # the smoke profile's tables are not kept
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "07_lsd_tables.ipynb"


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOK, tmp_path / "notebooks")
    monkeypatch.setenv("SRLIB_ROOT", str(tmp_path))


def test_rows_are_those_of_the_main_table_and_replace_their_like():
    mine = external.evaluate_system("copy", "cp {in} {out}", SMALL, ["clean_8k"])
    for _ in range(2):
        theirs = external.evaluate_system("unprocessed", "unprocessed", SMALL, ["clean_8k"])
    pd.testing.assert_frame_equal(mine.drop(columns="system"), theirs.drop(columns="system"))
    table, commands = artifacts.committed_table(external.TABLE)
    assert list(table["system"]) == ["copy", "unprocessed"] and commands["copy"] == "cp {in} {out}"


@pytest.mark.parametrize(("system", "chosen", "said"), [
    ("cp {in} {out}", ["clean_9k"], "no condition clean_9k: choose of clean_8k"),
    ("false {in} {out}", ["clean_8k"], "ended with code 1"), ("nvsr", [], "no system 'nvsr'"),
])  # fmt: skip
def test_what_cannot_be_done_is_said(system, chosen, said):
    with pytest.raises(SrlibError, match=said):
        external.evaluate_system("mine", system, SMALL, chosen)
