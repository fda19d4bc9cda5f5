"""What canaries of a training run show where nothing is wrong with it, and how much longer an audited run takes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from accounting import audit
from accounting.budget import Budget
from benchmarks.faults.made import DELTA, USERS, made_log
from benchmarks.harness import Figure
from privads.attacks.canaries import Canaries
from privads.logs.logs import Logs
from privads.models import DCN, Logistic
from privads.training.fit import fit
from privads.training.plan import TrainPlan

CANARIES = 1000
EPSILON, NOISE_MULTIPLIER, RATE, STEPS = 4.38, 3.59, 0.2, 300
LEAST_ONE_RUN, LEAST_FDP, MOST_TIME = 0.9, 1.2, 1.5
MANY_USERS, MANY_STEPS, RARE_STEPS = 20_000, 40, 1000
"""Of the runs that are timed, a twentieth of the users in each batch; and of runs at rate 0.01."""


def canary_figures(log: Logs, *, runs: int, rare: bool) -> Iterator[Figure]:
    """Yields the mean bounds of honest runs at a true epsilon of 4.38. rare: also at rate 0.01 and 1,000 steps."""
    settings: list[tuple[str, float, int, float, float | None, float | None]]
    settings = [("", RATE, STEPS, NOISE_MULTIPLIER, LEAST_ONE_RUN, LEAST_FDP)]
    if rare:
        settings.append(("_rate_0.01", 0.01, RARE_STEPS, 0.0, None, None))
    for name, rate, steps, noise_multiplier, least_one_run, least_fdp in settings:
        chosen = _plan(rate, steps, noise_multiplier)
        bounds = []
        for seed in range(runs):
            run = fit(Logistic(log.schema), log, chosen, canaries=Canaries(count=CANARIES), insecure_seed=seed)
            if run.evidence is not None:
                found = run.evidence
                bounds.append(
                    [
                        method(found.scores, found.included, claimed_epsilon=chosen.spent.upper, delta=DELTA).lower
                        for method in (audit.one_run, audit.one_run_fdp)
                    ]
                )
        one_run, fdp = np.mean(bounds, axis=0).tolist()
        yield Figure(name=f"canaries_epsilon{name}", value=chosen.spent.upper, unit="epsilon")
        yield Figure(name=f"canaries_one_run{name}", value=one_run, unit="epsilon", at_least=least_one_run)
        yield Figure(name=f"canaries_one_run_fdp{name}", value=fdp, unit="epsilon", at_least=least_fdp)


def _plan(rate: float, steps: int, noise_multiplier: float) -> TrainPlan:
    """Returns a plan of this noise, or where that is 0 of the least that keeps epsilon 4.38."""
    budget = Budget(epsilon=EPSILON if not noise_multiplier else 1.01 * EPSILON, delta=DELTA, unit="user")
    batch = round(rate * USERS)
    if not noise_multiplier:
        return TrainPlan.for_budget(budget, population=USERS, batch=batch, epochs=steps * rate, averaging=0.0)
    return TrainPlan(
        budget=budget,
        population=USERS,
        batch=batch,
        steps=steps,
        rows_per_unit=5,
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        averaging=0.0,
    )


def time_figures(*, repeats: int) -> Iterator[Figure]:
    """Yields how much longer a run with 1,000 canaries takes: the median of ratios of runs side by side."""
    budget = Budget(epsilon=3.0, delta=DELTA, unit="user")
    with tempfile.TemporaryDirectory() as folder:
        log = made_log(Path(folder), users=MANY_USERS)
        chosen = TrainPlan.for_budget(
            budget, population=MANY_USERS, batch=MANY_USERS // 20, epochs=MANY_STEPS / 20, averaging=0.0
        )
        ratios = []
        for seed in range(repeats + 1):
            plain, audited = (_seconds(log, chosen, seed, canaries) for canaries in (None, Canaries(count=CANARIES)))
            ratios.append(audited / plain)
    yield Figure(name="audited_over_plain_time", value=float(np.median(ratios[1:])), unit="", at_most=MOST_TIME)


def _seconds(log: Logs, chosen: TrainPlan, seed: int, canaries: Canaries | None) -> float:
    torch.manual_seed(seed)
    model = DCN(log.schema)
    started = time.process_time()
    fit(model, log, chosen, canaries=canaries, insecure_seed=seed)
    return time.process_time() - started
