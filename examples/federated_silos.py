"""Three companies train one click model, and their users stay theirs: users are the unit, also one of two companies.

A user of two companies is sampled in both of them, independently, and may move a round's sum twice as far. What that
costs is computed exactly, and "at most two" is enforced: companies compare keyed hashes of who their users are. Where
they cannot, it is somebody's word, and the report's headline says so. Offline, in under a minute.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

import privads as pa
from federation import FederatedPlan, Task, federate
from federation.defaults import server_optimizer
from privads.logs.simulator import schema_toml, simulate

USERS, COMPANIES, ROUNDS = 10_000, 3, 30
IN_TWO = 0.5
"""The share of users who are customers of two companies, the others of one."""


def companies_of(log: pyarrow.Table, rng: np.random.Generator) -> np.ndarray:
    """(rows,) at which company each impression was shown: its user's only one, or one of two."""
    _, user = np.unique(log["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    first = rng.integers(COMPANIES, size=user.max() + 1)
    second = np.where(rng.random(len(first)) < IN_TWO, (first + 1) % COMPANIES, first)
    return np.where(rng.random(len(user)) < 0.5, first[user], second[user])


def plan_of_two() -> FederatedPlan:
    """The plan of epsilon 4 for users who are in at most two silos."""
    budget = pa.Budget(epsilon=4.0, delta=1e-6, unit="user")
    population = int(USERS * (1 + IN_TWO))  # users of all silos, one of two silos twice
    return FederatedPlan.for_budget(
        budget, population=population, cohort=population // 5, rounds=ROUNDS, clip_norm=0.8, silos=2
    )


def cost_of_one_silo(plan: FederatedPlan) -> float:
    """Epsilon of the same rounds with the same noise, were every user in one silo alone."""
    return replace(plan, silos=1).spent.upper


def main() -> None:
    """Split a log among companies, train among their users, and say what users of one and of two silos lose."""
    log = simulate(USERS, seed=1)
    company = companies_of(log, np.random.default_rng(1))
    with tempfile.TemporaryDirectory() as folder:
        schema = pa.Schema.parse(schema_toml(USERS, public=True, tasks=("click",)))
        for number in range(COMPANIES):
            pyarrow.parquet.write_table(log.filter(company == number), Path(folder) / f"company-{number}.parquet")
        logs = [pa.Logs(Path(folder) / f"company-{number}.parquet", schema) for number in range(COMPANIES)]
        silos = [one.split(test_fraction=0.25)[0] for one in logs]  # by the user's key: the same side everywhere
        test = pa.Logs(folder, schema).split(test_fraction=0.25)[1]

        plan = plan_of_two()
        task = Task(model=pa.models.Logistic(schema), local_learning_rate=0.25, local_steps=4)
        server = server_optimizer(plan, "momentum")
        run = federate(task, silos, plan, optimizer=server, shared_units=True).evaluated_on(test)
        print(run, end="\n\n")
    one = cost_of_one_silo(plan)
    print(f"with this noise, epsilon of a user of one silo: {one:.2f}, of two: {plan.spent.upper:.2f}")
    report = run.report()
    assert "at most 2 of the 3 silos use one user's rows, told by the unit columns" in report.with_status("enforced")
    assert "asserted" not in report.headline, report.headline
    assert one < plan.spent.upper <= 4.0, "one silo costs less than two, and two keep the budget"
    auc = report.metrics[0].scores.auc.value
    assert auc is not None, "nothing was held out"
    assert auc > 0.6, f"the model learned little: AUC {auc:.3f}"


if __name__ == "__main__":
    main()
