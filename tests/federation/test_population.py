"""Every user joins with the plan's probability, and nobody sends more often than a local plan lets them."""

import math
from pathlib import Path

import numpy as np
import pytest

from federation.population import Silo, silos_of
from privads.logs.logs import Logs
from privads.noise import Randomness
from tests.federation.helpers import USERS, logs, plan, private_logs
from tests.privads.training.helpers import schema


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def test_cohorts_are_binomial_and_users_equally_likely(log: Logs) -> None:
    """3,000 rounds of 400 users at rate 0.13: cohort sizes and each user's count within 6 standard deviations (each
    has failure probability 2e-9); a user at half the rate is 15 off."""
    found, rounds = plan(over_selection=0.3), 3000
    silo = Silo(log, found, rows_per_user=2, randomness=Randomness(insecure_seed=0))
    sizes = np.array([silo.draw().units for _ in range(rounds)])
    expected, variance = USERS * 0.13, USERS * 0.13 * 0.87
    assert abs(sizes.mean() - expected) < 6 * math.sqrt(variance / rounds)
    assert sizes.var() == pytest.approx(variance, rel=0.16)  # six times sqrt(2 / 3,000)
    assert (np.abs(silo.sent - rounds * 0.13) < 6 * math.sqrt(rounds * 0.13 * 0.87)).all()


def test_a_user_brings_at_most_so_many_rows_all_their_own(log: Logs) -> None:
    silo = Silo(log, plan(), rows_per_user=2, randomness=Randomness(insecure_seed=0))
    draw = silo.draw()
    assert np.bincount(draw.owners).max() == 2
    owners = log.units[draw.row_numbers]
    assert (np.diff(draw.owners) >= 0).all()
    for user in range(draw.units):
        assert len(set(owners[draw.owners == user])) == 1
    assert len(np.unique(owners)) == draw.units


def test_under_a_local_plan_nobody_sends_more_often_than_is_charged_for(log: Logs) -> None:
    found = plan(neighbors="replace", mechanism="local", rounds=100, participations=3)
    silo = Silo(log, found, rows_per_user=2, randomness=Randomness(insecure_seed=0))
    times = np.zeros(USERS, dtype=np.int64)
    sizes = []
    for _ in range(200):
        draw = silo.draw()
        sizes.append(draw.units)
        users = np.unique(log.units[draw.row_numbers])
        assert len(users) == draw.units == draw.sampled
        assert sorted(set(draw.owners)) == list(range(draw.units))
        times[users] += 1
    assert times.max() == 3
    assert times.min() == 3  # of twenty expected
    assert sizes[0] > 0
    assert sizes[-1] == 0


def test_silos_must_have_one_schema(log: Logs, tmp_path: Path) -> None:
    assert silos_of(log) == (log,)
    assert len(silos_of([log, log])) == 2
    with pytest.raises(ValueError, match="one schema"):
        silos_of([log, private_logs(tmp_path)])
    with pytest.raises(ValueError, match="at least one silo"):
        silos_of([])
    with pytest.raises(ValueError, match="no source of users' rows"):
        silos_of([schema()])  # type: ignore[list-item]
