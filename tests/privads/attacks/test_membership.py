"""The attack tells members of an overfitted model apart, and of a private one no more than its claim allows."""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.audit import one_run
from privads.attacks.membership import halves, shadow_scores

TARGETS, STEPS = 200, 20
DELTA = 1e-5


@dataclass
class Made:
    """Targets with labels by the toss of a coin, which a model of as many weights can learn by heart only."""

    rows: NDArray[np.float64]
    signs: NDArray[np.float64]
    rng: np.random.Generator
    noise_multiplier: float = 0.0

    @classmethod
    def of(cls, seed: int, noise_multiplier: float = 0.0) -> "Made":
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(TARGETS, 100)) / 10  # of length about 1
        return cls(rows, 2.0 * rng.integers(0, 2, TARGETS) - 1, rng, noise_multiplier)

    def train(self, included: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Logistic regression by full-batch steps: each row's gradient is clipped to 1, and the sum gets noise."""
        weights = np.zeros(self.rows.shape[1])
        for _ in range(STEPS):
            slopes = -expit(-self.signs * (self.rows @ weights)) * self.signs
            each = slopes[:, None] * self.rows
            each /= np.maximum(1.0, np.linalg.norm(each, axis=1, keepdims=True))
            weights -= each[included].sum(0) + self.noise_multiplier * self.rng.normal(size=weights.shape)
        return weights

    def confidence(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(expit(self.signs * (self.rows @ weights)))

    def attacked(self, shadows: int = 16) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        included = self.rng.integers(0, 2, TARGETS).astype(bool)
        scores = shadow_scores(
            self.train(included), self.train, self.confidence, targets=TARGETS, shadows=shadows, generator=self.rng
        )
        return scores, included


def auc(scores: NDArray[np.float64], included: NDArray[np.bool_]) -> float:
    return float((scores[included][:, None] > scores[~included]).mean())


def test_members_of_an_overfitted_model_are_told_apart() -> None:
    scores, included = Made.of(seed=1).attacked()
    assert auc(scores, included) > 0.7
    assert one_run(scores, included, claimed_epsilon=1.0, delta=DELTA).lower > 1.0


def test_of_a_private_model_no_more_is_told_than_its_claim_allows() -> None:
    made = Made.of(seed=1, noise_multiplier=10.0)
    event = mechanisms.repeated(mechanisms.gaussian(noise_multiplier=10.0), STEPS)
    claim = epsilon(event, delta=DELTA, neighbors="add-remove").upper
    scores, included = made.attacked()
    found = one_run(scores, included, claimed_epsilon=claim, delta=DELTA)
    assert found.lower <= claim < 3.0
    assert auc(scores, included) < 0.7


def test_members_without_an_effect_are_not_told_apart() -> None:
    """A model of noise alone. Scores of 200 targets have an AUC within 0.18 of 1/2 with probability 1 - 2e-5."""
    made = Made.of(seed=2)
    rng = np.random.default_rng(3)
    made.train = lambda included: rng.normal(size=100)  # type: ignore[method-assign]
    assert abs(auc(*made.attacked()) - 0.5) < 0.18


@pytest.mark.parametrize("shadows", [5, 2])
def test_shadows_that_are_no_pairs_are_refused(shadows: int) -> None:
    with pytest.raises(ValueError, match="an even number of at least 4"):
        Made.of(seed=1).attacked(shadows)


def test_confidences_that_are_none_are_refused() -> None:
    made = Made.of(seed=1)
    made.confidence = lambda weights: np.full(TARGETS, 2.0)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"200 numbers in \[0, 1\]"):
        made.attacked()


def test_each_target_is_in_half_of_the_shadow_models() -> None:
    found = halves(50, 10, np.random.default_rng(1))
    assert found.shape == (10, 50)
    assert (found.sum(axis=0) == 5).all()
    assert 0 < found[0].sum() < 50
