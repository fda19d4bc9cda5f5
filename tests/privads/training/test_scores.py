"""Scores beside a log: what is written of a row whose score is no number."""

import numpy as np

from privads.evaluation.calibrate import Calibration
from privads.training import scores


def test_a_score_that_is_no_number_is_calibrated_to_none_and_is_no_error() -> None:
    """Whose row it is would be told by the error."""
    found = scores._calibrated(np.array([0.2, np.nan]), Calibration(intercept=np.log(2.0)))  # odds 1/4 become 1/2
    assert np.allclose(found, [1 / 3, np.nan], equal_nan=True)
