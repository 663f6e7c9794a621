"""Conditions are seeded, rows repeat on any number of processes, differences are paired by track."""

import pandas as pd
import pytest
import torch

from srlib.config import PROFILES
from srlib.measure import ablations, evaluation

SMOKE = "smoke"


def test_conditions_are_seeded_by_track_and_name():
    condition = evaluation.Condition.named("tone_8k")
    assert condition == evaluation.Condition(8000, "tone")
    one, again, other = (condition.degradation(track) for track in ("a", "a", "b"))
    assert one == again
    assert one.tone_hz != other.tone_hz and 100 <= one.tone_hz <= 15000


def test_rows_are_computed_on_one_thread_in_one_process_as_in_many(monkeypatch):
    counted = []

    def rows(*_):
        counted.append(torch.get_num_threads())
        return [dict.fromkeys(("condition", "variation", "track", "patches"), "x")]

    monkeypatch.setattr(evaluation.Evaluator, "fit_ridge", rows)
    monkeypatch.setattr(evaluation.Evaluator, "rows", rows)
    monkeypatch.setattr(ablations, "_rows", rows)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for compute, what in ((evaluation.evaluate_systems, ()), (ablations.compare, ({"x": {}}, ["clean_4k"]))):
            counted.clear()
            compute(PROFILES[SMOKE], *what, workers=1)
            assert set(counted) == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_differences_are_paired_track_by_track_in_any_measure():
    """Tracks differ by far more than systems do; the difference is the same on each."""
    rows = [
        {"track": track, "condition": "clean_4k", "system": system, "lsd_19k": level + better, "zimtohrli": 3 * better}
        for track, level in (("a", 1.0), ("b", 2.0), ("c", 5.0))
        for system, better in (("ours", 0.0), ("ridge", 0.25))
    ]
    table = pd.DataFrame([*rows, {**rows[0], "condition": "clean_8k", "lsd_19k": 9.0}])
    assert evaluation.paired_difference(table, "ours", "ridge", "clean_4k") == pytest.approx((-0.25, -0.25, -0.25))
    measured = evaluation.paired_difference(table, "ridge", "ours", "clean_4k", measure="zimtohrli")
    assert measured == pytest.approx((0.75, 0.75, 0.75))
