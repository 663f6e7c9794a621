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


def test_an_unknown_condition_is_said():
    with pytest.raises(SrlibError, match="no condition clean_9k: choose of clean_8k"):
        external.evaluate_system("mine", "cp {in} {out}", SMALL, ["clean_9k"])
