"""The same task over Flower's grid: the same model, and no node, however it fails, changes what a run promises."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="federation over Flower needs flwr: pip install 'privads[federation]'")


from federation import flower
from federation.flower import InProcessGrid, client_app
from federation.plan import FederatedPlan
from federation.run import FederatedRun
from federation.server import federate
from federation.task import Task
from privads.batch import Rows
from privads.logs.logs import Logs
from privads.models import DCN, Logistic
from tests.federation.helpers import USERS, logs, plan, trained, twin


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def task_of(log: Logs, model: Callable[..., nn.Module] = DCN) -> Task:
    torch.manual_seed(0)
    return Task(model=model(log.schema), local_learning_rate=0.3, local_steps=2, rows_per_user=3)


def adam(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=0.05)


def over_flower(
    log: Logs,
    found: FederatedPlan,
    *,
    silos: Sequence[Rows] | None = None,
    grid: Any = None,
    task: Task | None = None,
    **settings: Any,
) -> FederatedRun:
    task, silos = task or task_of(log), silos or [log]
    seed = settings.get("insecure_seed")
    grid = grid or InProcessGrid([client_app(task, one, found, insecure_seed=seed) for one in silos])
    given = {"round_seconds": 30.0, "nodes": len(silos), "wait_seconds": 0.1, **settings}
    return flower.federate(task, found, grid=grid, schema=log.schema, **given)


def difference(one: nn.Module, two: nn.Module) -> float:
    first, second = trained(one), trained(two)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("cohort", [USERS, 60])
@pytest.mark.parametrize("silos", [1, 3])
@pytest.mark.parametrize("optimizer", [None, adam], ids=["averaging", "adam"])
def test_with_the_noise_off_a_grid_gives_the_model_of_one_process(
    cohort: int, silos: int, optimizer: Any, log: Logs
) -> None:
    rows = [log] if silos == 1 else [*log.split(test_fraction=0.3), log]
    settings: Any = {"insecure_seed": 3} | ({} if optimizer is None else {"optimizer": optimizer})
    found = twin(cohort=cohort, rounds=4)
    here = federate(task_of(log), rows, found, **settings)
    there = over_flower(log, found, silos=rows, **settings)
    assert difference(here.model, there.model) < 1e-6
    assert difference(task_of(log).model, there.model) > 1e-3  # it learned


@pytest.mark.parametrize("settings", [{}, {"clip_quantile": 0.5}, {"neighbors": "replace", "mechanism": "local"}])
def test_with_one_seed_all_noise_is_that_of_one_process(settings: Any, log: Logs) -> None:
    found = plan(**settings)
    here = federate(task_of(log, Logistic), log, found, insecure_seed=3)
    there = over_flower(log, found, task=task_of(log, Logistic), insecure_seed=3)
    assert difference(here.model, there.model) < 1e-6
    assert there.clip_norm == pytest.approx(here.clip_norm, rel=1e-12)
