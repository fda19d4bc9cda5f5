"""The learning benchmark bounds users as it says, and its figures have the agreed form."""

import numpy as np
import pytest

from benchmarks.signals import learning
from benchmarks.signals.learning import Trial, figures, simulated, trials


@pytest.fixture(scope="module")
def found() -> list[Trial]:
    return [trial for seed in range(2) for trial in trials(simulated("click", seed, 3000), seed=seed, by_user=True)]


def test_the_first_of_each_user_are_kept_and_no_more() -> None:
    rng = np.random.default_rng(0)
    users, order = rng.integers(0, 50, 1000), rng.permutation(1000)
    kept = learning._first(users, order, 3)
    expected = [row for user in range(50) for row in [row for row in order if users[row] == user][:3]]
    assert kept.tolist() == sorted(expected)


def test_noise_is_that_of_the_budget_for_all_tables_and_rows_of_a_unit(found: list[Trial]) -> None:
    by = {(one.unit, one.capped, one.epsilon): one.noise_std for one in found}
    base = by["example", "", 1.0]
    assert base / np.sqrt(10) == pytest.approx(4.2249, rel=1e-3)  # the Gaussian of epsilon 1, delta 1e-6
    assert by["user", "10 rows", 1.0] == pytest.approx(10 * base)
    assert by["user", "2 positives", 1.0] == pytest.approx(np.sqrt(8) * base)


def test_figures_are_means_with_their_intervals(found: list[Trial]) -> None:
    made = {one.name: one for one in figures(found)}
    shares = [one.share for one in found if one.unit == "example" and one.epsilon == 5]
    assert made["simulator_click_singles_example_epsilon_5_share"].value == pytest.approx(np.mean(shares))
    assert made["simulator_click_singles_example_epsilon_5_share"].target == ">= 0.75"
    assert made["simulator_click_singles_example_epsilon_1_above_constant"].target == ">= -0.005"
    assert {
        "simulator_click_singles_user_10_rows_epsilon_5_share",
        "simulator_click_singles_example_epsilon_1_share_low",
    } <= set(made)
