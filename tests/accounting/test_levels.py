"""Units against rows: dp-accounting's own noise, the definition, and the cases whose answer is known."""

import doctest
import itertools
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy.stats import binom

from accounting import levels
from accounting.budget import Budget
from accounting.calibrate import RELATIVE_TOLERANCE
from accounting.levels import Comparison, compare

DELTA = 1e-6


def budget(epsilon: float) -> Budget:
    return Budget(epsilon=epsilon, delta=DELTA, unit="user")


def made(unit: float, row: float, *, records: int = 4, similarity: float = 0.3) -> Comparison:
    return Comparison(records=records, similarity=similarity, unit_noise_multiplier=unit, row_noise_multiplier=row)


def test_doctests_run() -> None:
    assert doctest.testmod(levels).failed == 0


def librarys_epsilon(noise: float, q: float, steps: int, records: int) -> float:
    """dp-accounting's epsilon, of units where records is 1; its grid adds less than 0.01."""
    chances = [float(chance) for chance in binom.pmf(range(records + 1), records, q)]
    one = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(noise))
    if records > 1:
        one = dp_event.MixtureOfGaussiansDpEvent(noise, range(records + 1), chances)
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    return float(accountant.compose(one, steps).get_epsilon(DELTA))


def test_both_noises_are_the_least_that_keep_the_budget_by_dp_accountings_own_figures() -> None:
    found = compare(budget(2.0), sampling_rate=0.02, steps=200, records=3, similarity=0.1)
    for noise, records in ((found.unit_noise_multiplier, 1), (found.row_noise_multiplier, 3)):
        assert librarys_epsilon(noise, 0.02, 200, records) <= 2.01
        assert librarys_epsilon(0.99 * noise, 0.02, 200, records) > 2.01


@pytest.mark.parametrize("similarity", [-0.1, 0.0, 0.4, 1.0])
def test_a_units_sum_is_as_long_as_vectors_with_that_cosine_make_it(similarity: float) -> None:
    # k vectors with all pairwise cosines rho: the rows of a square root of the matrix of their products.
    records = 5
    products = np.full((records, records), similarity) + (1 - similarity) * np.eye(records)
    values, directions = np.linalg.eigh(products)
    rows = (directions * np.sqrt(np.maximum(values, 0.0))) @ directions.T
    for one, other in itertools.combinations(rows, 2):
        assert one @ other == pytest.approx(similarity, abs=1e-12)
    found = made(1.3, 2.0, records=records, similarity=similarity)
    assert found.unit_noise_std == pytest.approx(1.3 * np.linalg.norm(rows.sum(axis=0)))
    assert found.row_noise_std == 2.0


def test_at_the_crossover_both_have_the_same_noise_and_on_either_side_the_other_is_better() -> None:
    crossover = made(1.0, 2.7).crossover
    assert made(1.0, 2.7, similarity=crossover).unit_noise_std == pytest.approx(2.7)
    assert made(1.0, 2.7, similarity=crossover - 0.01).better == "unit"
    assert made(1.0, 2.7, similarity=crossover + 0.01).better == "row"


def test_where_everyone_is_in_every_batch_rows_that_are_copies_make_no_difference() -> None:
    """Then the owner moves either sum by k rows: k times the noise, and the crossover is at 1."""
    found = compare(budget(1.0), sampling_rate=1.0, steps=10, records=4, similarity=1.0)
    assert found.row_noise_multiplier / found.unit_noise_multiplier == pytest.approx(4, rel=2 * RELATIVE_TOLERANCE)
    assert found.crossover == pytest.approx(1.0, abs=4 * RELATIVE_TOLERANCE)


def test_copies_are_better_sampled_one_by_one() -> None:
    # Binomial(k, q) rows of an owner are less spread than k or none, so that they need no more noise.
    found = compare(budget(1.0), sampling_rate=0.01, steps=300, records=3, similarity=1.0)
    assert found.better == "row"
    assert found.crossover < 1


def test_under_strict_privacy_units_are_better_and_under_lax_privacy_rows_are() -> None:
    """Charles et al. 2024, section 5: whole units win where epsilon is small and many steps are taken."""
    strict = compare(budget(0.1), sampling_rate=0.01, steps=300, records=3, similarity=0.2)
    # Large noise: a step loses about (E[j] / s)^2, so that rows need k times the noise of units.
    assert strict.row_noise_multiplier == pytest.approx(3 * strict.unit_noise_multiplier, rel=0.03)
    assert strict.better == "unit"
    assert strict.crossover > 0.9
    lax = compare(budget(8.0), sampling_rate=0.1, steps=10, records=3, similarity=0.2)
    assert lax.better == "row"
    assert lax.crossover < 0.1


def test_opposite_rows_cancel_and_need_no_noise_for_the_unit() -> None:
    assert made(1.0, 2.0, records=2, similarity=-1.0).unit_noise_std == 0.0
    assert math.isclose(made(1.0, 2.0, records=4, similarity=-1 / 3).unit_noise_std, 0.0, abs_tol=1e-7)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"records": 1}, "records must be a whole number of at least 2, got 1"),
        ({"records": 2.5}, "records must be"),
        ({"similarity": 1.1}, r"similarity must be in \[-1 / \(records - 1\), 1\] = \[-0.333, 1\], got 1.1"),
        ({"similarity": -0.4}, "similarity must be"),
        ({"similarity": math.nan}, "similarity must be"),
        ({"sampling_rate": 1.5}, "sampling_rate must be"),
        ({"steps": 0}, "steps must be"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed: dict[str, float], message: str) -> None:
    given = {"sampling_rate": 0.1, "steps": 10, "records": 4, "similarity": 0.0}
    with pytest.raises(ValueError, match=message):
        compare(budget(1.0), **{**given, **changed})  # type: ignore[arg-type]


def test_another_relation_is_refused() -> None:
    swapped = Budget(epsilon=1.0, delta=DELTA, unit="user", neighbors="replace")
    with pytest.raises(ValueError, match="add-remove"):
        compare(swapped, sampling_rate=0.1, steps=10, records=4, similarity=0.0)


def test_a_noise_that_forgets_the_length_of_a_units_sum_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the sum of k copies taken to be as long as one row."""
    assert made(1.0, 2.0, records=3, similarity=1.0).unit_noise_std == pytest.approx(3.0)
    monkeypatch.setattr(levels, "_squared_length", lambda records, similarity: 1.0)
    assert made(1.0, 2.0, records=3, similarity=1.0).unit_noise_std != pytest.approx(3.0)
    crossover = made(1.0, 2.7).crossover
    assert made(1.0, 2.7, similarity=crossover).unit_noise_std != pytest.approx(2.7)
