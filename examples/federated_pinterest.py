"""Which pins people save, learned where their pins are: a user is the unit, and every user trains alone.

37,500 users of the public pinterest-10core in ../shared/data, each with the pins that they saved and as many others.
The server is sent sums of clipped updates, adds noise to them and never sees a user's pins. The same model, trained in
one place under the same promise, stands beside it. Without those data a simulated log takes their place. Offline, in
under a minute.
"""

import tempfile
from pathlib import Path

import pyarrow.parquet
import torch

import privads as pa
from federation import FederatedPlan, Task, federate
from federation.defaults import server_optimizer
from privads.logs.convert import convert
from privads.logs.simulator import schema_toml, simulate

PINS = Path(__file__).resolve().parents[2] / "shared" / "data" / "pinterest-10core" / "train.txt.gz"
USERS = 20_000
"""Of the simulated log."""

EPSILON, DELTA, COHORT, ROUNDS = 8.0, 1e-5, 2000, 50
LOCAL_STEP, CLIP_NORM, STEP = 1.0, 0.5, 4.0
"""Users have some forty rows here, whose mean gradient is short: longer local steps than the default."""


def log_of(folder: Path) -> pa.Logs:
    """The pins as a log, public; or a simulated one, with the reason."""
    path = folder / "rows.parquet"
    if PINS.is_file():
        convert("interactions", PINS, path)
        return pa.Logs(path, folder / "ads.toml")
    print(f"there is no {PINS}: clicks of a simulated log take its place")
    pyarrow.parquet.write_table(simulate(USERS, seed=0), path)
    return pa.Logs(path, pa.Schema.parse(schema_toml(USERS, public=True, tasks=("click",))))


def auc_of(report: object) -> float:
    """The held-out AUC in a report."""
    found = report.metrics[0].scores.auc.value
    assert found is not None, "nothing was held out"
    return float(found)


def main() -> None:
    """Train among the users and in one place, and compare."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        log = log_of(Path(folder))
        train, test = log.split(test_fraction=0.2)
        population = log.schema.population
        budget = pa.Budget(epsilon=EPSILON, delta=DELTA, unit="user")

        plan = FederatedPlan.for_budget(
            budget, population=population, cohort=COHORT, rounds=ROUNDS, clip_norm=CLIP_NORM, over_selection=0.1
        )
        task = Task(model=pa.models.Logistic(log.schema), local_learning_rate=LOCAL_STEP, local_steps=4)
        run = federate(task, train, plan, optimizer=server_optimizer(plan, "momentum", STEP)).evaluated_on(test)

        central = pa.TrainPlan.for_budget(
            budget, population=population, batch=COHORT, epochs=ROUNDS * COHORT / population, rows_per_unit=32
        )
        beside = pa.fit(pa.models.Logistic(log.schema), train, central, test=test)

    print(f"{log.schema.dataset}: {ROUNDS} rounds of {COHORT} users, in {run.seconds:.0f} s")
    print(f"among users:  {run}".replace("\n", "\n    "))
    print(f"in one place: {beside}".replace("\n", "\n    "))
    among, one_place = auc_of(run.report()), auc_of(beside.report())
    print(f"AUC {among:.3f} among users, {one_place:.3f} in one place: {among / one_place:.1%}")
    assert run.report().headline.startswith(f"epsilon <= {EPSILON:.2f} (delta 1e-05, user, add/remove, models of all")
    assert among > 0.55, "the federated model learned little"
    assert among > 0.9 * one_place, "training among users lost too much"


if __name__ == "__main__":
    main()
