"""What a run is judged by: which clips, how often, and snapshots that can be replayed."""

import json

import numpy as np
import pytest

from srlib.audio import files
from srlib.data.batches import Corpus
from srlib.data.tracks import load_dataset
from srlib.degrade import Degradation
from srlib.restore.pipeline import RestorationPipeline
from srlib.training.validation import Clips


@pytest.fixture(scope="module")
def corpus(music_folder, tmp_path_factory):
    return Corpus.build(load_dataset(str(music_folder), "valid"), tmp_path_factory.mktemp("corpus"))


def test_clips_meet_the_noises_that_a_run_trains_for_and_a_vocoder_meets_each_once(corpus, tiny_pipeline, monkeypatch):
    heard, vocoded = [], []
    call, vocode = RestorationPipeline.__call__, RestorationPipeline.vocode_truth
    monkeypatch.setattr(RestorationPipeline, "__call__", lambda self, *a, **k: heard.append(a) or call(self, *a, **k))
    monkeypatch.setattr(RestorationPipeline, "vocode_truth", lambda self, wav: vocoded.append(wav) or vocode(self, wav))
    for noises, conditions in ((["none"], 2), (["none", "white"], 3)):
        heard.clear()
        scores = Clips(corpus, "ldm", noises).scores(tiny_pipeline)
        assert len(heard) == conditions and all(np.isfinite(list(scores.values())))
    for stage in ("vae", "vocoder"):
        vocoded.clear()
        heard.clear()
        Clips(corpus, stage, ["none", "tone", "white"]).scores(tiny_pipeline)
        assert len(vocoded) == 1 and not heard


def test_snapshots_hold_a_replayable_example_of_each_noise(corpus, tiny_pipeline, music_folder, tmp_path):
    Clips(corpus, "ldm", ["tone", "white"]).snapshot(tiny_pipeline, tmp_path, 20)
    folder = tmp_path / "snapshots"
    assert sorted(path.stem for path in folder.glob("*.json")) == ["none", "tone", "white"]
    record = json.loads((folder / "tone.json").read_text())
    assert Degradation.from_json(record["degradation"]).noise_type == "tone"
    assert (record["global_step"], record["run_id"]) == (20, tmp_path.name)
    reference, restored = (files.read(folder / f"tone-{kind}.flac")[0] for kind in ("reference", "restored"))
    assert reference.shape == restored.shape
    track = next(track for track in load_dataset(str(music_folder), "valid") if track.name == record["track"])
    np.testing.assert_allclose(reference[0], track.mixture(), atol=1e-4)  # 2 s, 16 bits
