"""Defaults are functions of public facts: of the plan's noise and size, and of nothing else."""

import math

import pytest
import torch
from torch import nn

from federation import defaults
from privads.training.sizes import default_batch, default_steps
from tests.federation.helpers import plan, twin


@pytest.mark.parametrize("population", [1, 10, 400, 40_000, 10_000_000])
def test_a_cohort_can_be_drawn_whatever_is_over_selected(population: int) -> None:
    for over in (0.0, 0.3, 4.0):
        cohort = defaults.default_cohort(population, over_selection=over)
        assert 1 <= cohort <= max(1.0, population / (1 + over))
    assert defaults.default_cohort(population) == default_batch(population)
    assert defaults.default_rounds(population) == default_steps(population)


def test_the_noise_of_all_rounds_moves_a_logit_by_as_much_whatever_the_plan() -> None:
    """sqrt(rounds) steps of 1 / (1 - m) times the step, each with the noise of a mean."""
    for found in (plan(cohort=4, rounds=50), plan(cohort=3, rounds=100, clip_norm=2.0)):
        noise_std = found.noise_multiplier * found.clip_norm / found.cohort
        for server, momentum in (("momentum", 0.9), ("sgd", 0.0)):
            step = defaults.server_step(found, server) / (1 - momentum)
            assert step * noise_std * math.sqrt(found.rounds) == pytest.approx(defaults.LOGIT_NOISE)


def test_local_noise_adds_up_over_a_cohort() -> None:
    found = plan(cohort=16, rounds=50, neighbors="replace", mechanism="local")
    of_a_mean = found.noise_multiplier * found.clip_norm / math.sqrt(16)
    step = defaults.server_step(found, "sgd")
    assert step * of_a_mean * math.sqrt(50) == pytest.approx(defaults.LOGIT_NOISE)


def test_without_privacy_the_step_is_the_largest() -> None:
    assert defaults.server_step(twin(), "sgd") == defaults.LARGEST_REACH
    assert defaults.server_step(twin(), "momentum") == pytest.approx(0.1 * defaults.LARGEST_REACH)


def test_rows_that_change_in_some_rounds_only_have_no_momentum() -> None:
    assert defaults.default_server(plan()) == "momentum"
    assert defaults.default_server(twin(table_noise="lazy")) == "sgd"


def test_the_optimizer_is_the_one_that_was_asked_for() -> None:
    weights = [nn.Parameter(torch.zeros(2))]
    made = defaults.server_optimizer(plan(), "momentum", 0.5)(weights)
    assert isinstance(made, torch.optim.SGD)
    assert (made.defaults["lr"], made.defaults["momentum"]) == (0.5, 0.9)
    assert defaults.server_optimizer(plan(), "sgd")(weights).defaults["momentum"] == 0
    adam = defaults.server_optimizer(plan(), "adam")(weights)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults["lr"] == defaults.ADAM_STEP
