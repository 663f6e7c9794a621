"""The shipped weights score as the committed table says: a change that alters the restored audio shows here."""

import pytest

from srlib.config import profile
from srlib.data import tracks
from srlib.measure import measures, sweep, systems
from srlib.report import artifacts

WHITE = {"noise_type": "white", "noise_amplitude": 0.02}  # as in notebook 07
CONDITIONS = {f"clean_{khz}k": {"cutoff_hz": 1000 * khz} for khz in (4, 8, 16)}
CONDITIONS["white_8k"] = {"cutoff_hz": 8000, **WHITE}
MEASURES = ["lsd_19k", "zimtohrli"]


@pytest.fixture(scope="module")
def scores():
    """What the table holds and what the model of its profile gives now, for the first test track."""
    demo = profile("demo")
    track = tracks.for_profile(demo, "test")[0]
    clips, ours = {track.name: tracks.excerpt(track, demo)}, systems.named(["ours"], demo)
    now = sweep.sweep(ours, CONDITIONS, clips, [measures.scores, measures.judged])
    table = artifacts.read_csv(artifacts.find("table", "lsd", "demo")[0])
    then = table[(table["system"] == "ours") & (table["track"] == track.name)]
    return then.set_index("condition")[MEASURES], now.set_index("condition")[MEASURES]


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("measure", MEASURES)
def test_the_shipped_weights_score_as_the_committed_table_says(scores, condition, measure):
    then, now = scores
    if measure not in now:
        pytest.skip("pip install 'srlib[perceptual]'")
    assert now.loc[condition, measure] == pytest.approx(then.loc[condition, measure], rel=0.02)
