"""The correction for dropped negatives, against Bayes' rule, odds and a simulated sample."""

import math

import numpy as np
import pytest

from privads.evaluation.undersampling import corrected, distorted, logit_shift, weights


@pytest.mark.parametrize("keep_rate", [1.0, 0.5, 0.01])
def test_forward_is_bayes_rule_and_the_two_are_inverse(keep_rate: float) -> None:
    p = np.array([0.0, 1e-6, 0.01, 0.3, 0.999, 1.0])
    q = distorted(p, keep_rate=keep_rate)
    assert q == pytest.approx(
        p * 1.0 / (p * 1.0 + (1 - p) * keep_rate)
    )  # P[kept | positive] = 1, P[kept | negative] = w
    assert corrected(q, keep_rate=keep_rate) == pytest.approx(p, rel=1e-12)
    inside = q[1:-1]
    assert corrected(inside, keep_rate=keep_rate) == pytest.approx(inside / (inside + (1 - inside) / keep_rate))


def test_it_shifts_logits_by_log_w() -> None:
    q = np.array([0.1, 0.5, 0.9])
    p = corrected(q, keep_rate=0.2)
    assert np.log(p / (1 - p)) - np.log(q / (1 - q)) == pytest.approx(math.log(0.2))
    assert logit_shift(keep_rate=0.2) == pytest.approx(math.log(0.2))


def test_a_sample_corrected_or_weighted_gives_the_logs_base_rate() -> None:
    rng = np.random.default_rng(5)
    labels = (rng.random(400_000) < 0.02).astype(int)
    kept = labels[(labels == 1) | (rng.random(400_000) < 0.1)]
    rate = labels.mean()  # std of the kept negatives is 0.5 %
    assert corrected([kept.mean()], keep_rate=0.1)[0] == pytest.approx(rate, rel=0.025)
    assert np.average(kept, weights=weights(kept, keep_rate=0.1)) == pytest.approx(rate, rel=0.025)


def test_bad_arguments_are_refused() -> None:
    for rate in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"keep_rate must be in \(0, 1\]"):
            corrected([0.5], keep_rate=rate)
    with pytest.raises(ValueError, match="scores must be probabilities"):
        distorted([1.5], keep_rate=0.5)
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        weights([2], keep_rate=0.5)
