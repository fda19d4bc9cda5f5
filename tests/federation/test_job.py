"""A job is checked whole before anything is paid, its silos never see a held-out row, and what was paid for is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from federation.config import FederationTable
from federation.job import NEIGHBORS, FederateJob, make_plan, open_silos, prepare, shown
from privads.config import ConfigError
from privads.logs.reader import LogError
from privads.run_config import PlanTable, RunConfig
from tests.federation.helpers import calibrated, plan
from tests.privads.test_cli import ADS_TOML
from tests.privads.training.helpers import schema, write_log

QUANTILES = {"kind": "quantiles", "column": "bid", "buckets": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public log, whole and in two silos that share users."""
    folder = tmp_path_factory.mktemp("job")
    table = pyarrow.parquet.read_table(write_log(folder))
    (folder / "ads.toml").write_text(ADS_TOML.format(public="true"))
    half = np.arange(table.num_rows) % 2
    for silo in range(2):
        pyarrow.parquet.write_table(table.filter(half == silo), folder / f"silo{silo}.parquet")
    return folder


def config(folder: Path, **tables: dict[str, Any]) -> RunConfig:
    stated: dict[str, Any] = {
        "data": {"path": str(folder / "log.parquet"), "schema": str(folder / "ads.toml"), "test_fraction": 0.3},
        "plan": {"unit": "user", "without_privacy": True},
        **tables,
    }
    return RunConfig.model_validate(stated)


def rounds_of(folder: Path, **stated: Any) -> FederationTable:
    return FederationTable(silo_paths=[str(folder / f"silo{silo}.parquet") for silo in range(2)], **stated)


def job(folder: Path, out: Path, table: FederationTable, **tables: dict[str, Any]) -> FederateJob:
    return prepare(config(folder, run={"out": str(out)}, **tables), table)


def test_no_silo_trains_on_a_user_who_is_held_out(folder: Path) -> None:
    silos, test = open_silos(config(folder), rounds_of(folder))
    assert test is not None

    def users(log: Any) -> set[str]:
        return {user for part in log.raw() for user in part.units[0]}

    held, trained = users(test), [users(one) for one in silos]
    assert held
    assert all(one for one in trained)
    assert trained[0] & trained[1]  # some are in both
    assert not any(held & one for one in trained)


def test_a_plan_takes_its_budget_from_where_training_has_it() -> None:
    stated = PlanTable(epsilon=3.0, delta=1e-5, unit="user", population=300)
    found = make_plan(stated, FederationTable(cohort=30, rounds=4, over_selection=0.5), schema(), silos=1)
    assert found.budget is not None
    assert (found.budget.epsilon, found.budget.delta, found.budget.unit) == (3.0, 1e-5, "user")
    assert (found.population, found.cohort, found.rounds, found.sampling_rate) == (300, 30, 4, 0.15)
    same = calibrated(epsilon=3.0, population=300, cohort=30, rounds=4, over_selection=0.5)
    assert found.noise_multiplier == same.noise_multiplier


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_the_neighbors_are_those_that_the_mechanism_is_accounted_for(mechanism: Any) -> None:
    stated = PlanTable(epsilon=3.0, delta=1e-5, unit="user")
    found = make_plan(stated, FederationTable(cohort=30, rounds=2, mechanism=mechanism), schema(), silos=1)
    assert found.budget is not None
    assert found.budget.neighbors == NEIGHBORS[mechanism]


def test_a_user_may_be_in_all_silos_unless_somebody_says_in_fewer() -> None:
    stated = PlanTable(unit="user", without_privacy=True)
    assert make_plan(stated, FederationTable(cohort=30), schema(), silos=3).silos == 3
    assert make_plan(stated, FederationTable(cohort=30, silos=2), schema(), silos=3).silos == 2


def test_transforms_that_would_read_the_users_rows_are_refused(folder: Path, tmp_path: Path) -> None:
    features = {"transforms": [QUANTILES], "epsilon": 1.0, "delta": 1e-5}
    with pytest.raises(ConfigError, match="stay where they are"):
        job(folder, tmp_path / "run", rounds_of(folder), features=features)


def test_a_run_does_not_begin_with_anothers_weights(folder: Path, tmp_path: Path) -> None:
    stated = config(folder, run={"out": str(tmp_path / "run"), "start": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"run\.start"):
        prepare(stated, rounds_of(folder))


def test_an_audit_of_a_run_that_makes_no_claim_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes no claim"):
        job(folder, tmp_path / "run", rounds_of(folder), audit={"canaries": 1000})


def test_every_round_is_kept_whatever_training_would_keep(folder: Path, tmp_path: Path) -> None:
    run = {"out": str(tmp_path / "run"), "checkpoint": str(tmp_path / "kept" / "round"), "checkpoint_every": 5}
    found = prepare(config(folder, run=run), rounds_of(folder, rounds=2, cohort=30))
    assert found.checkpoint is not None
    assert found.checkpoint.every is None
    assert found.run().rounds_done == 2


def test_what_was_trained_is_saved_whatever_becomes_of_its_metrics(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = job(folder, tmp_path / "run", rounds_of(folder, rounds=2, cohort=30))

    def full_disk(*_: object, **__: object) -> None:
        raise LogError("no space")

    monkeypatch.setattr("federation.run.judge", full_disk)
    with pytest.raises(LogError, match="no space"):
        found.run()
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_the_bar_counts_rounds_and_says_what_epsilon_is_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with shown(plan(rounds=2)) as show:
        show(1)
        show(2)
    said = capsys.readouterr().err
    assert "2/2" in said
    assert "rounds," in said
    assert "models of all rounds" in said
