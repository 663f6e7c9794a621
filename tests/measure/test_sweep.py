"""The runner: every row once, the same in one process and in two, and none computed again; summaries of its tables."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from srlib.config import SAMPLE_RATE, profile
from srlib.errors import SrlibError
from srlib.measure import measures, sweep, systems

CONDITIONS = {
    "clean_8k": {"cutoff_hz": 8000},
    "white_4k": {"cutoff_hz": 4000, "noise_type": "white", "noise_amplitude": 0.02},
}


@pytest.fixture
def clips(music):
    return {str(i): music[i * 6000 :][: SAMPLE_RATE // 2] for i in range(4)}


def names(*rows):
    return systems.named(rows, profile("smoke"))


def test_a_sweep_has_a_row_for_everything_and_processes_change_nothing(clips):
    compared = names("unprocessed", "oracle", "ours")
    tables = [sweep.sweep(compared, CONDITIONS, clips, [measures.headline], workers=count) for count in (1, 2)]
    pd.testing.assert_frame_equal(*tables)
    table = tables[0]
    keys = table[["track", "condition", "system"]].itertuples(index=False, name=None)
    assert list(keys) == [(t, c, s) for t in clips for c in CONDITIONS for s in compared]
    assert np.isfinite(table[["lsd_19k", "level_high_db", "texture_high", "log_mel_l1"]]).all(axis=None)
    assert set(table["noise"]) == {"clean", "white"}


def test_a_measure_may_give_several_rows(clips):
    recipe = {"gaps": {"gap_seconds": (0.02, 0.05)}}
    table = sweep.sweep(names("unprocessed"), recipe, clips, [measures.in_gaps, measures.input_distance])
    assert len(table) == 2 * len(clips) and table["lsd_19k_input"].notna().all()
    assert sorted(table["gap_ms"].unique()) == [20, 50]


@dataclass(frozen=True)
class Counting:
    """Half the level; says in a file what it was asked, and stops at track 2 if the environment says so."""

    file: Path

    def __call__(self, case, seed):
        with self.file.open("a") as file:
            file.write(f"{case.track} {case.condition}\n")
        if case.track == "2" and os.environ.get("STOP"):
            raise KeyboardInterrupt
        return 0.5 * case.reference


def test_a_sweep_that_was_stopped_goes_on_at_the_row(clips, tmp_path, monkeypatch):
    counted, store = tmp_path / "counted", tmp_path / "rows" / "store.jsonl"
    asked = ({"it": Counting(counted)}, CONDITIONS, clips, [measures.headline])
    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setenv("STOP", "1")
        sweep.sweep(*asked, workers=1, store=store)
    with store.open("a") as file:
        file.write('["cut off')
    first = sweep.sweep(*asked, workers=1, store=store)
    assert len(counted.read_text().splitlines()) == 2 * 4 + 1  # only the case that failed ran twice
    pd.testing.assert_frame_equal(first, sweep.sweep(*asked, workers=1))
    counted.unlink()
    pd.testing.assert_frame_equal(first, sweep.sweep(*asked, workers=1, store=store))
    assert not counted.exists()
    sweep.sweep(*asked, seed=1, workers=1, store=store)
    assert len(counted.read_text().splitlines()) == 8  # another seed, other rows
    with pytest.raises(SrlibError, match="cannot keep rows"):
        sweep.sweep({"it": lambda case, seed: case.reference}, *asked[1:], store=store)


def test_tasks_run_on_one_thread_and_what_was_set_comes_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(sweep.parallel(lambda _: torch.get_num_threads(), range(3), workers=1)) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_results_come_in_order_and_another_backend_may_be_named(monkeypatch):
    monkeypatch.setenv("SRLIB_PARALLEL", "threading")
    assert list(sweep.parallel(lambda x: (x, os.getpid()), range(9), workers=2)) == [(i, os.getpid()) for i in range(9)]


def test_ridges_are_fitted_for_each_condition(clips):
    ridges = sweep.fit_ridges(CONDITIONS, clips, workers=1)
    assert list(ridges) == list(CONDITIONS)
    table = sweep.sweep(
        {"ridge": partial(systems.ridge, ridges), **names("unprocessed")}, CONDITIONS, clips, [measures.headline]
    )
    mean = table.groupby("system")["lsd_19k"].mean()
    assert mean["ridge"] < mean["unprocessed"]


def table_of(**levels):
    rows = [
        {"track": track, "condition": "c", "noise": "clean", "cutoff_hz": 8000, "system": system, "merge": None,
         "lsd_19k": level + better, "zimtohrli": 3 * better}
        for track, level in levels.items() for system, better in (("oracle", 0.0), ("ridge", 0.25))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_summary_holds_means_their_interval_and_the_ratio_to_the_oracle():
    summary = sweep.summarise(table_of(a=1.0, b=2.0, c=6.0), ["zimtohrli", "visqol"]).set_index("system")
    assert summary["lsd_19k"].to_dict() == {"oracle": 3.0, "ridge": 3.25}
    assert summary["lsd_19k_median"]["ridge"] == 2.25 and summary["tracks"].tolist() == [3, 3]
    assert summary["ratio"].to_dict() == pytest.approx({"oracle": 1.0, "ridge": 3.25 / 3})
    assert summary["zimtohrli"]["ridge"] == 0.75 and summary["visqol"].isna().all()
    assert summary["ci_low"]["oracle"] == pytest.approx(1.0) and summary["ci_high"]["oracle"] == pytest.approx(6.0)


def test_differences_are_paired_track_by_track_in_any_measure():
    """Tracks differ by far more than systems do; a difference that is the same on each has an interval of no width."""
    table = table_of(a=1.0, b=2.0, c=5.0)
    assert sweep.paired_difference(table, "oracle", "ridge", "c") == pytest.approx((-0.25, -0.25, -0.25))
    assert sweep.paired_difference(table, "ridge", "oracle", "c", measure="zimtohrli") == pytest.approx((0.75,) * 3)
    rng = np.random.default_rng(0)
    rows = [{"track": i, "condition": "c", "system": "x", "lsd_19k": 9 * rng.random()} for i in range(100)]
    others = [row | {"system": "y", "lsd_19k": row["lsd_19k"] - 0.1 * rng.standard_normal() - 1} for row in rows]
    mean, low, high = sweep.paired_difference(pd.DataFrame(rows + others), "x", "y", "c")
    assert mean == pytest.approx(1, abs=0.04) and high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.25)
