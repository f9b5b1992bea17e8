"""The line that `pysave` prints at the end of a live save: what made the downtime longer than was predicted."""

from __future__ import annotations

import pytest

from saverestore.cli.pysave import _longer
from saverestore.engine.downtime import Downtime
from saverestore.engine.policy import Decision, Prediction, Verdict
from saverestore.engine.progress import SaveReport

PREDICTED = Prediction(suspend_s=0.1, rest_s=0.2, state_s=0.1, least_s=0.2)


@pytest.mark.parametrize(
    ("real", "said"),
    [
        (Downtime(4.8, 0.2, 0.06, 0.0, 5.06), "; until the guest had suspended 4.80 s instead of 0.10 s"),
        (Downtime(0.1, 0.9, 0.1, 0.0, 1.1), "; for the last round 0.90 s instead of 0.20 s"),
        (Downtime(0.1, 0.2, 3.0, 0.0, 3.3), "; for processors and device model 3.00 s instead of 0.10 s"),
        (Downtime(0.1, 0.2, 0.1, 0.7, 1.1), "; for resuming it 0.70 s instead of 0.00 s"),
        (Downtime(0.2, 0.25, 0.1, 0.0, 0.55), ""),
        (Downtime(0.05, 0.1, 0.1, 0.0, 0.25), ""),
    ],
    ids=["suspend", "last round", "state", "resume", "a little longer", "shorter"],
)
def test_a_downtime_much_longer_than_predicted_has_the_part_that_made_it(real: Downtime, said: str) -> None:
    report = SaveReport(downtime=real, verdict=Verdict(Decision.STOP, "", PREDICTED))
    assert _longer(report) == said
