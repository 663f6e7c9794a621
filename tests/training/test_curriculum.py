"""What was kept of the training: logs are thinned for the report without losing a validation."""

import pandas as pd

from srlib.training import curriculum


def test_thinned_logs_keep_every_validation():
    log = pd.DataFrame({"run_id": "x", "global_step": range(1, 101), "val/lsd": [None] * 98 + [1.0, 2.0]})
    thin = curriculum.thinned({"x": log, "y": log.head(3)}, rows=10)
    assert list(thin["global_step"]) == [*range(1, 101, 10), 99, 100, 1, 2, 3]
