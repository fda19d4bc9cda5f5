"""Scores are log-likelihood ratios, by their definition."""

import numpy as np
import pytest
import torch
from scipy import stats

from privads.attacks.directions import Directions
from privads.attacks.ratios import PRIOR_DRAWS, Ratios
from tests.privads.attacks.helpers import plan

COUNT = 5
DIRECTIONS = [Directions(torch.arange(COUNT), torch.arange(COUNT)[:, None], torch.ones(COUNT, 1))]


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("amplitude", [1.0, 0.3])
def test_a_step_adds_the_logarithm_of_the_ratio_of_two_densities(records: int, amplitude: float) -> None:
    settings = {"records": records, "rows_per_unit": 1} if records > 1 else {}
    chosen, seen = plan(**settings), np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    ratios = Ratios(DIRECTIONS, COUNT, chosen)
    ratios.add(seen, np.full((1, COUNT), amplitude))
    variance = (PRIOR_DRAWS * chosen.noise_multiplier**2 + (seen**2).sum()) / (PRIOR_DRAWS + COUNT)
    without = stats.norm(0, variance**0.5).pdf(seen)
    put_in = sum(
        stats.binom(records, chosen.sampling_rate).pmf(b) * stats.norm(amplitude * b, variance**0.5).pdf(seen)
        for b in range(records + 1)
    )
    assert ratios.total == pytest.approx(np.log(put_in / without), abs=1e-9)


def test_of_several_amplitudes_the_one_that_fits_all_canaries_counts() -> None:
    chosen, rng = plan(epsilon=8.0), np.random.default_rng(0)
    both, right = Ratios(DIRECTIONS, COUNT, chosen, 2), Ratios(DIRECTIONS, COUNT, chosen)
    for _ in range(300):  # three canaries add 4 clip norms when they are drawn, two were left out
        drawn = (rng.random(COUNT) < chosen.sampling_rate) & (np.arange(COUNT) < 3)
        seen = 4.0 * drawn + rng.normal(0, chosen.noise_multiplier, COUNT)
        both.add(seen, np.array([[0.1] * COUNT, [4.0] * COUNT]))
        right.add(seen, 4.0)
    assert both.total == pytest.approx(right.total)


def test_without_noise_who_was_put_in_is_plain_to_see() -> None:
    ratios = Ratios(DIRECTIONS, COUNT, plan(epsilon=8.0))
    for step in range(200):
        ratios.add(np.array([1.0, 1.0, 0.0, 0.0, 0.0]) * (step % 10 == 0))
    assert ratios.total[:2].min() > ratios.total[2:].max() + 20
