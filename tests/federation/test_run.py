"""The report says what was executed, what was charged, and what it rests on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.record import Report
from accounting.report.render import html, markdown
from federation.run import FederatedRun
from federation.server import federate
from federation.task import Task
from privads.batch import Batch
from privads.logs.logs import Logs
from privads.models import DCN
from tests.federation.helpers import logs, plan, private_logs, twin
from tests.privads.training.helpers import new_ledger


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def run(log: Any, found: Any, **settings: Any) -> FederatedRun:
    rows = log[0] if isinstance(log, list | tuple) else log
    task = Task(model=settings.pop("model", None) or DCN(rows.schema), local_learning_rate=0.3)
    return federate(task, log, found, **settings)


def test_a_charged_run_is_private_and_says_what_it_cost(tmp_path: Path) -> None:
    ledger, found = new_ledger(tmp_path), plan(clip_quantile=0.5)
    report = run(private_logs(tmp_path), found, ledger=ledger).report()
    assert report.verdict == "private"
    assert report.guarantee is not None
    assert report.guarantee.epsilon == found.spent.upper
    assert report.guarantee.epsilon_without_amplification > 2 * found.spent.upper
    assert "user, add/remove, models of all rounds" in report.headline
    assert report.budget is not None
    assert report.budget.left_epsilon == pytest.approx(20.0 - found.spent.upper, abs=1e-3)
    assert "summed and noised in float64" in report.mechanism.floating_point
    assert report.mechanism.event == mechanisms.to_dict(found.event)
    assert "follows the 0.5 quantile" in report.mechanism.clipping
    assert any("the server sees" in one and "trusted" in one for one in report.not_covered)
    assert "the budget was charged before the first row was read" in report.with_status("enforced")
    assert Report.from_json(report.to_json()) == report
    assert report.setting is not None
    assert (report.setting.model, report.setting.releases) == ("federated", "many")
    assert "Training: " in report.covered[0]
    assert "PoissonSampler" in report.mechanism.bounded_by
    assert len(report.guarantee.over_steps) > 1
    assert "models of all rounds" in markdown(report)
    assert "models of all rounds" in html(report)


def test_fewer_silos_for_a_user_than_there_are_is_asserted_in_the_headline(log: Logs) -> None:
    silos = log.split(test_fraction=0.5)
    asserted = run(silos, plan()).report()
    assert "no user has rows in more than 1 of the 2 silos" in asserted.headline
    assert asserted.verdict == "conditional"
    held = run(silos, plan(silos=2)).report()
    assert held.verdict == "private"
    assert held.mechanism.sampled == "users, in each silo by itself"


def test_a_model_of_ones_own_is_an_assumption(log: Logs) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"click": self.layer(batch.dense)[:, 0]}

    assert "show and keep nothing" in run(log, plan(), model=Own()).report().headline


def test_local_noise_is_told_apart_from_the_servers(log: Logs) -> None:
    found = plan(neighbors="replace", mechanism="local")
    report = run(log, found).report()
    assert "user, replace, messages of one user in the whole run" in report.headline
    assert report.mechanism.steps == found.participations
    assert report.mechanism.sampling_rate is None
    assert not any("trusted" in one for one in report.not_covered)


def test_a_local_run_is_charged_for_a_replaced_user(tmp_path: Path) -> None:
    limit = Budget(epsilon=20.0, delta=9e-5, unit="user", neighbors="replace")
    ledger = Ledger.init(f"sqlite:///{tmp_path / 'budget.db'}", dataset="small", budget=limit)
    found = plan(neighbors="replace", mechanism="local")
    report = run(private_logs(tmp_path), found, ledger=ledger).report()
    assert report.budget is not None
    assert report.budget.this_run_epsilon == pytest.approx(found.spent.upper, rel=1e-6)
    assert report.budget.charged_neighbors == "replace"


def test_without_privacy_the_headline_says_so(log: Logs) -> None:
    found = run(log, twin())
    assert str(found).startswith("NOT PRIVATE")
    assert json.loads(found.report().to_json())["guarantee"] is None


def test_a_seed_is_in_the_headline(log: Logs) -> None:
    assert "ANYONE WHO KNOWS THE SEED" in str(run(log, plan(), insecure_seed=1))


def test_a_run_predicts_as_its_model(log: Logs) -> None:
    found = run(log, plan())
    assert found.predict(log)["click"].shape == (len(log.units),)


def test_that_users_are_trained_apart_is_said_to_have_been_checked(log: Logs) -> None:
    (one,) = (one for one in run(log, plan()).report().assumptions if "beside them" in one.text)
    assert one.status == "checked"
