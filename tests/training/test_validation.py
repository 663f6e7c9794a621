"""What a run is judged by: which clips, and how often."""

import numpy as np
import pytest

from srlib.data.batches import Corpus
from srlib.data.tracks import load_dataset
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
