"""Laws of outputs: their chances by the definition, their epsilon by the accountant, and draws that keep them."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from accounting import mechanisms
from accounting.accountant import epsilon
from accounting.audit import Laws, laws
from accounting.methods import gaussian_epsilon
from tests.accounting.audit.games import DELTA


@pytest.mark.parametrize("categories", [2, 3, 10])
def test_answers_have_the_chances_of_the_definition(categories: int) -> None:
    probability = Fraction(3, 10)
    own, other = 1 - probability + probability / categories, probability / categories
    found = laws.randomized_response(randomize_probability=0.3, categories=categories)
    expected = [own, other, 1 - own - other][: min(categories, 3)]
    assert found.first.tolist() == pytest.approx([float(chance) for chance in expected])
    assert found.second.tolist() == pytest.approx([float(expected[i]) for i in (1, 0, 2)[: len(expected)]])
    assert found.epsilon(0.0) == pytest.approx(math.log(own / other))
    assert found.sharper(1.7).epsilon(0.0) == pytest.approx(1.7 * math.log(own / other))


@pytest.mark.parametrize(
    ("found", "law", "shift"),
    [
        (laws.laplace(scale=2.0, shift=3.0), stats.laplace(scale=2.0), 3.0),
        (laws.gaussian(noise_std=2.0, shift=3.0), stats.norm(scale=2.0), 3.0),
        (laws.discrete_laplace(scale=2.0, shift=3), stats.dlaplace(0.5), 3),
        (laws.discrete_laplace(scale=2.0, shift=3).sharper(2.0), stats.dlaplace(1.0), 3),
        (laws.laplace(scale=2.0, shift=3.0).sharper(4.0), stats.laplace(scale=0.5), 3.0),
        (laws.gaussian(noise_std=2.0, shift=3.0).sharper(4.0), stats.norm(scale=0.5), 3.0),
    ],
)
def test_bins_have_the_chances_of_another_librarys_laws(found: Laws, law: stats.rv_continuous, shift: float) -> None:
    ends = np.concatenate(([0.0], law.cdf(found.edges), [1.0]))
    np.testing.assert_allclose(found.first, np.diff(ends), atol=1e-14)
    ends = np.concatenate(([0.0], law.cdf(found.edges - shift), [1.0]))
    np.testing.assert_allclose(found.second, np.diff(ends), atol=1e-14)


def test_a_discrete_gaussian_has_the_chances_of_its_definition() -> None:
    found = laws.discrete_gaussian(noise_std=1.5, shift=2)
    weights = [math.exp(-(x**2) / (2 * 1.5**2)) for x in range(-60, 61)]
    for value in range(-3, 6):
        at = int(np.searchsorted(found.edges, value))
        assert found.first[at] == pytest.approx(weights[60 + value] / math.fsum(weights), rel=1e-12)
        assert found.second[at] == pytest.approx(weights[60 + value - 2] / math.fsum(weights), rel=1e-12)


def test_the_epsilon_of_a_law_is_the_accountants() -> None:
    """Pure ones exactly; Gaussian ones but for what bins hide and the accountant's grid adds."""
    assert laws.laplace(scale=2.0, shift=1.0).epsilon(0.0) == pytest.approx(0.5)
    assert laws.discrete_laplace(scale=2.0, shift=3).epsilon(0.0) == pytest.approx(1.5)
    found = laws.discrete_gaussian(noise_std=1.5, shift=2).epsilon(DELTA)
    stated = epsilon(mechanisms.discrete_gaussian(noise_std=1.5, sensitivity=2), delta=DELTA).upper
    assert stated - 2e-3 < found <= stated + 1e-8
    found, stated = laws.gaussian(noise_std=2.0, shift=1.0).epsilon(DELTA), gaussian_epsilon(2.0, DELTA)
    assert stated * 0.99 < found <= stated


def test_laws_that_are_all_alike_lose_nothing() -> None:
    assert laws.randomized_response(randomize_probability=1.0, categories=4).epsilon(0.0) == 0.0
    assert laws.gaussian(noise_std=1.0, shift=1.0).epsilon(0.0) > 9  # at delta 0: as far as the bins reach, or further


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: laws.randomized_response(randomize_probability=0.0, categories=2), "randomize_probability must be"),
        (lambda: laws.randomized_response(randomize_probability=0.5, categories=1), "categories at least 2"),
        (lambda: laws.laplace(scale=0.0, shift=1.0), "scale must be positive and finite, got 0.0"),
        (lambda: laws.laplace(scale=1.0, shift=-1.0), "shift must be positive and finite, got -1.0"),
        (lambda: laws.gaussian(noise_std=math.nan, shift=1.0), "noise_std must be"),
        (lambda: laws.discrete_gaussian(noise_std=math.inf, shift=1), "noise_std must be"),
        (lambda: laws.discrete_laplace(scale=1.0, shift=0), "shift must be"),
        (lambda: made([1.0, 0.0], [0.5, 0.25, 0.25]), "edges must be finite and rise"),
        (lambda: made([0.0, math.nan], [0.5, 0.25, 0.25]), "edges must be finite and rise"),
        (lambda: made([0.0], [0.5, 0.25, 0.25]), r"first must have 2 chances, one a bin, got \(3,\)"),
        (lambda: made([0.0], [0.5, 0.6]), "first must be chances that add up to 1"),
        (lambda: made([0.0], [1.5, -0.5]), "first must be chances"),
    ],
)
def test_what_is_no_law_is_refused(make: Callable[[], Laws], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def made(edges: list[float], chances: list[float]) -> Laws:
    both = np.array(chances)
    return Laws(edges=np.array(edges), first=both, second=both, sharper=lambda factor: made(edges, chances))
