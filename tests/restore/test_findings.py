"""What was found, as a sentence and as JSON."""

import json

import pytest

from srlib.restore.findings import Findings, Segment

NARROW, FULL = Segment(0.0, 7.0, (0,), 4000.0), Segment(7.0, 67.0, (0,), None)


@pytest.mark.parametrize(
    ("findings", "sentence"),
    [
        (Findings(7.0, (NARROW,)), "band to 4.0 kHz"),
        (Findings(67.0, (FULL,)), "full band: nothing to restore; --cutoff-hz overrides"),
        (Findings(67.0, (NARROW, FULL)), "band to 4.0 kHz (0:00-0:07), full band, left as it is (0:07-1:07)"),
        (
            Findings(7.0, (NARROW, Segment(0.0, 7.0, (1,), None))),
            "band to 4.0 kHz (channel 1), full band, left as it is (channel 2)",
        ),
        (
            Findings(7.0, (NARROW,), 11.6, (440.0,), (50.1,), ((1.0, 1.25),), ("a warning",)),
            "band to 4.0 kHz; noise reduced by 12 dB; tone 440 Hz subtracted; "
            "hum 50 Hz and its harmonics subtracted; gap 1.00-1.25 s filled; a warning",
        ),
        (Findings(7.0), "silence: nothing to restore"),
        (Findings(67.0, (FULL,), 10.0), "full band; --cutoff-hz overrides; noise reduced by 10 dB"),
    ],
)
def test_a_sentence_says_what_was_done(findings, sentence):
    assert findings.sentence() == sentence
    assert json.loads(json.dumps(findings.as_dict()))["seconds"] == findings.seconds
