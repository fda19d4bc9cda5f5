"""Federated and central runs of the comparison are one mechanism, and a trial is run once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from accounting.budget import Budget
from benchmarks.federated import utility
from benchmarks.federated.recommending import Choices, Pairs, Preference
from benchmarks.federated.utility import EPSILONS, SEEDS, SETTINGS, Setting, Trial, figures, trials
from benchmarks.harness import Kept
from federation.plan import FederatedPlan
from privads.training import defaults

SETTING = Setting(cohort=1.0, rounds=3, scale=2.0, bias_scale=1.0, sgd=5.0)


def made_up(users: int = 60) -> Choices:
    items = np.random.default_rng(0).integers(0, 20, 5 * users) ** 2 // 20  # the first are the most frequent
    return Choices.of("m", np.repeat(np.arange(users), 5), items, 20)


def weights(way: utility.Way, plan: FederatedPlan, setting: Setting = SETTING) -> torch.Tensor:
    trained: Preference = utility._trained(way, Pairs(made_up(plan.population)), setting, plan, 0)
    return trained.table.weight.detach().double()


def test_without_privacy_a_federated_run_is_the_central_one() -> None:
    plan = FederatedPlan.without_privacy(population=60, cohort=60, rounds=3)
    start = weights("federated", replace(plan, rounds=1), replace(SETTING, sgd=1e-12))
    federated, central = weights("federated", plan), weights("central", plan)
    assert float((federated - start).abs().max()) > 0.1
    torch.testing.assert_close(federated, central, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip_norm", [utility.CLIP_NORM, 1.0])  # all users are clipped, or none
def test_with_privacy_both_clip_alike_and_their_noise_is_that_of_the_plan(clip_norm: float) -> None:
    # One round of everybody: the two tables differ by two draws of noise and no more. A coordinate is beyond 7 standard
    # deviations with probability 3e-12, one of 700 with 2e-9. An update 4 % off moves some coordinate by 14 of them,
    # as the last line says, and is missed with probability 1e-12.
    plan = FederatedPlan(
        budget=Budget(epsilon=1e4, delta=1e-9, unit="user"),
        population=2000,
        cohort=2000,
        rounds=1,
        clip_norm=clip_norm,
        noise_multiplier=0.1,
    )
    std = 2**0.5 * 0.1 * clip_norm / 2000 * 5.0
    federated, central = weights("federated", plan), weights("central", plan)
    differences = (federated - central) / std
    assert float(differences.abs().max()) < 7
    # 714 draws: their deviation is within 20 % of 1 but for a chance of 1e-9; it is 0 where no noise is added
    assert 0.8 < float(differences.std()) < 1.2
    start = weights("federated", plan, replace(SETTING, sgd=1e-12))
    assert float((federated - start).abs().max()) / std > 350


def trial(way: str, seed: int, recall: float) -> Trial:
    return Trial(
        dataset="d",
        way=way,
        epsilon=8.0,
        seed=seed,
        made_of="x",
        noise_multiplier=1.0,
        recall=recall,
        ndcg=recall / 2,
        popularity_recall=0.1,
        popularity_ndcg=0.05,
        seconds=1.0,
    )


def test_the_ratio_is_the_mean_over_seeds_of_each_seeds_ratio() -> None:
    found = [trial("federated", 0, 0.2), trial("central", 0, 0.4), trial("federated", 1, 0.3), trial("central", 1, 0.3)]
    made = {one.name: one for one in figures(found)}
    ratio = made["d_epsilon_8_recall_federated_over_central"]
    assert (ratio.value, ratio.target, ratio.holds) == (pytest.approx(0.75), ">= 0.98", False)
    # Student's quantile for 1 degree of freedom, 12.706, times 0.5 / sqrt(2) / sqrt(2)
    assert made["d_epsilon_8_recall_federated_over_central_high"].value == pytest.approx(0.75 + 12.706 * 0.25, rel=1e-4)
    assert made["d_epsilon_8_popularity_ndcg"].value == 0.05


def test_a_trial_that_is_in_the_file_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting, file = Setting(cohort=0.5, rounds=1, scale=1.0, bias_scale=1.0, adam=0.1), tmp_path / "trials.jsonl"
    first = list(trials(made_up(), setting, None, seeds=1, kept=Kept(Trial, file)))
    file.write_text(file.read_text(encoding="utf-8") + '{"dataset": "cut o', encoding="utf-8")
    monkeypatch.setattr(utility, "_trained", lambda *_: pytest.fail("was trained again"))
    assert list(trials(made_up(), setting, None, seeds=1, kept=Kept(Trial, file))) == first
    with pytest.raises(pytest.fail.Exception):
        list(trials(made_up(), replace(setting, adam=0.2), None, seeds=1, kept=Kept(Trial, file)))


def test_a_trial_of_another_default_step_is_another_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(cohort=0.5, rounds=1, scale=1.0, bias_scale=1.0, adam=0.1)
    kept: Kept[Trial] = Kept(Trial, None)
    first = list(trials(made_up(), setting, None, seeds=1, kept=kept))
    monkeypatch.setattr(defaults, "STABLE_STEP", 0.5)
    other = list(trials(made_up(), setting, None, seeds=1, kept=kept))
    assert not {one.key for one in first} & {one.key for one in other}


def test_every_data_set_has_a_setting_at_every_epsilon() -> None:
    assert set(SETTINGS) == {(name, epsilon) for name in SEEDS for epsilon in EPSILONS}


@pytest.mark.parametrize("steps", [{}, {"sgd": 1.0, "adam": 1.0}])
def test_a_setting_has_one_optimizer(steps: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="one of sgd and adam must be given"):
        Setting(cohort=0.5, rounds=1, scale=1.0, bias_scale=1.0, **steps)
