"""Three companies train one click model, and their users stay theirs: users are the unit, also one of two companies.

A user of two companies is sampled in both of them, independently, and may move a round's sum twice as far. What that
costs is computed exactly, and the report says that "at most two" is somebody's word. Offline, in under a minute.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

import privads as pa
from federation import FederatedPlan, Task, federate
from federation.defaults import server_optimizer
from privads.logs.simulator import schema_toml, simulate

USERS, COMPANIES, ROUNDS = 12_000, 3, 40
IN_TWO = 0.5
"""The share of users who are customers of two companies, the others of one."""


def companies_of(log: pyarrow.Table, rng: np.random.Generator) -> np.ndarray:
    """(rows,) at which company each impression was shown: its user's only one, or one of two."""
    _, user = np.unique(log["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    first = rng.integers(COMPANIES, size=user.max() + 1)
    second = np.where(rng.random(len(first)) < IN_TWO, (first + 1) % COMPANIES, first)
    return np.where(rng.random(len(user)) < 0.5, first[user], second[user])


def plan_for(silos: int) -> FederatedPlan:
    """The plan of epsilon 4 for users who are in at most so many silos."""
    budget = pa.Budget(epsilon=4.0, delta=1e-6, unit="user")
    population = int(USERS * (1 + IN_TWO))  # users of all silos, one of two silos twice
    return FederatedPlan.for_budget(
        budget, population=population, cohort=population // 5, rounds=ROUNDS, clip_norm=0.5, silos=silos
    )


def costs_at_noise(noise_multiplier: float) -> dict[int, float]:
    """Epsilon by the most silos of a user, all else the same."""
    wide = pa.Budget(epsilon=1e4, delta=1e-6, unit="user")
    shape = plan_for(1)
    return {
        silos: FederatedPlan(
            budget=wide,
            population=shape.population,
            cohort=shape.cohort,
            rounds=shape.rounds,
            clip_norm=shape.clip_norm,
            noise_multiplier=noise_multiplier,
            silos=silos,
        ).spent.upper
        for silos in (1, 2)
    }


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

        plan = plan_for(2)
        task = Task(model=pa.models.Logistic(schema), local_learning_rate=1.0, local_steps=4)
        run = federate(task, silos, plan, optimizer=server_optimizer(plan, "momentum")).evaluated_on(test)
        print(run, end="\n\n")
        costs = costs_at_noise(plan.noise_multiplier)
        for number, epsilon in costs.items():
            print(f"at noise multiplier {plan.noise_multiplier:.3f} a user of {number} silo(s): epsilon {epsilon:.2f}")
        print(f"for users of one silo epsilon 4 needs noise multiplier {plan_for(1).noise_multiplier:.3f}")

    report = run.report()
    assert "no user has rows in more than 2 of the 3 silos" in report.headline, report.headline
    assert costs[1] < costs[2] <= 4.0, costs
    auc = report.metrics[0].scores.auc.value
    assert auc is not None, "nothing was held out"
    assert auc > 0.6, f"the model learned little: AUC {auc:.3f}"


if __name__ == "__main__":
    main()
