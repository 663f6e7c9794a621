"""The logs of the shipped runs: their order, and what a row of the table says of each."""

import math

import pandas as pd
import pytest

from srlib.errors import SrlibError
from srlib.training import curriculum


def test_runs_come_in_the_order_of_their_training():
    names = list(curriculum.logs())
    assert names[:3] == ["vae", "vocoder", "ldm-1-lowpass"]
    assert [name for name in names if name.startswith("ldm")] == sorted(curriculum.logs("ldm"))


def test_losses_of_a_run_are_means_over_its_steps():
    """A row of a log counts for the steps since the one before: the last of these stands for two of a hundred."""
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 50, 85, 98, 100], "wall_time": 60.0, "val/lsd": math.nan})
    row = curriculum.summarise_runs({"run": log.assign(**{"train/loss": [4.0, 3.0, 2.0, 1.0, 9.0]})}).iloc[0]
    assert row["first_loss"] == 4.0
    assert row["last_loss"] == pytest.approx((13 * 1.0 + 2 * 9.0) / 15)


def test_summarise_runs_scores_the_weights_that_are_kept_and_closed_forms_have_no_losses():
    nan = math.nan
    log = pd.DataFrame({"stage": "ldm", "global_step": [1, 2, 3], "wall_time": 60.0, "train/loss": [3.0, 2.0, 1.0]})
    log = log.assign(**{"val/loss": [0.5, 0.2, 0.3], "val/lsd": [1.3, 1.2, 1.1], "val/zimtohrli": [9.0, 8.0, 7.0]})
    fitted = pd.DataFrame({"stage": "vae", "global_step": [0], "wall_time": 1.2, "train/loss": [nan]})
    fitted = fitted.assign(**{"val/loss": [0.1], "val/lsd": [0.9], "val/zimtohrli": [nan]})
    kept, closed = (row for _, row in curriculum.summarise_runs({"ldm": log, "vae": fitted}).iterrows())
    assert (kept["val_lsd"], kept["val_zimtohrli"]) == (1.2, 8.0)  # of the second validation, the best
    assert (closed["steps"], closed["val_lsd"]) == (0, 0.9)
    assert closed[["first_loss", "last_loss", "val_zimtohrli"]].isna().all()


def test_the_learning_curve_is_that_of_runs_by_hours(tmp_path):
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 20, 30], "val/lsd": [1.3, math.nan, 1.1]})
    log.assign(**{"val/zimtohrli": [9.0, math.nan, 8.0]}).to_csv(tmp_path / "ldm-hours-12.csv", index=False)
    log.to_csv(tmp_path / "ldm-4-mixed.csv", index=False)
    curve = curriculum.learning_curve(tmp_path)
    assert curve.to_dict("list") == {"hours": [12, 12], "step": [10, 30], "val_lsd": [1.3, 1.1],
                                     "val_zimtohrli": [9.0, 8.0]}  # fmt: skip
    assert list(curriculum.logs("ldm", tmp_path)) == ["ldm-4-mixed"]
    (tmp_path / "ldm-hours-12.csv").unlink()
    with pytest.raises(SrlibError, match="ldm-hours-N"):
        curriculum.learning_curve(tmp_path)
    assert curriculum.learning_curve(tmp_path, needed=False).isna().all(axis=None)


def test_summarise_runs_reads_a_log():
    log = pd.DataFrame({"stage": "ldm", "global_step": [10, 20], "wall_time": [30.0, 60.0]})
    log = log.assign(**{"train/loss": [1.0, 0.5], "val/lsd": [math.nan, 1.2]})
    row = curriculum.summarise_runs({"run": log}).iloc[0]
    assert list(row[["steps", "minutes", "first_loss", "last_loss", "val_lsd"]]) == [20, 1.0, 1.0, 0.5, 1.2]


def test_thinned_logs_keep_every_validation():
    log = pd.DataFrame({"run_id": "x", "global_step": range(1, 101), "val/lsd": [None] * 98 + [1.0, 2.0]})
    thin = curriculum.thinned({"x": log, "y": log.head(3)}, rows=10)
    assert list(thin["global_step"]) == [*range(1, 101, 10), 99, 100, 1, 2, 3]
