"""What an audited run's report says of its canaries: no more than they could have shown."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.faults.training_faults import noise_forgotten
from federation.server import federate
from federation.task import Task
from privads.attacks.canaries import Canaries, Kind
from privads.attacks.evidence import Evidence
from privads.attacks.watch import watch_for
from privads.models import Logistic, losses
from privads.training.engine import PrivateEngine
from tests.federation.helpers import calibrated
from tests.privads.attacks.helpers import audited, log, plan


def evidence(scores: np.ndarray, included: np.ndarray, **more: bool) -> Evidence:
    return Evidence(
        kind="gradient",
        threat_model="sees every noised sum",
        scores=scores,
        included=included,
        epsilon=1.0,
        delta=1e-5,
        **more,
    )


@pytest.mark.parametrize("kind", ["gradient", "row", "user"])
def test_a_run_that_never_began_was_not_audited(tmp_path: Path, kind: Kind) -> None:
    """The fault: no score differs from another after 0 steps, and the report called that consistent."""
    rows = log(tmp_path)
    model, engine = Logistic(rows.schema), PrivateEngine(plan(), canaries=Canaries(count=1000, kind=kind))
    engine.make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, loss=losses.per_row)
    (found,) = engine.finish().report().audit
    assert (found.verdict, found.detectable) == ("inconclusive", None)


def test_a_model_that_diverged_was_not_audited(tmp_path: Path) -> None:
    """The fault: a loss that is no number was taken for a score of 0 of each canary, and 0 for consistent."""
    rows, canaries = log(tmp_path), Canaries(count=1000, kind="user")
    model, chosen = Logistic(rows.schema), plan(table_noise="lazy", averaging=0.0)
    watch = watch_for(canaries, chosen, model, losses.per_row, rows, [], None, insecure_seed=None)
    with torch.no_grad():
        for one in model.parameters():
            one.fill_(math.nan)
    found = Evidence.of(watch, canaries, chosen, model).audit
    assert (found.verdict, found.detectable) == ("inconclusive", math.inf)


@pytest.mark.parametrize("table_noise", ["lazy", "adafest"])
def test_passing_users_in_the_final_model_says_nothing_of_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_noise: str
) -> None:
    """The fault: with selected tables they did not see that there was no noise, and called the run consistent."""
    if table_noise == "adafest":
        noise_forgotten(monkeypatch)
    chosen = plan(steps=20, table_noise=table_noise, averaging=0.0)
    (found,) = audited(log(tmp_path), chosen, kind="user", count=1000).report().audit
    assert (found.verdict, found.power, found.detectable) == ("inconclusive", None, None)


@pytest.mark.parametrize("federated", [False, True])
def test_users_whose_gradients_are_short_beside_the_clip_norm_say_nothing_of_the_claim(
    tmp_path: Path, federated: bool
) -> None:
    """The fault: a clip norm of 100, and the noise to it, hid canaries of length 3, and the run was called consistent
    even with a tenth of the noise.
    """
    rows = log(tmp_path)
    for clip_norm, blunt in ((0.8, False), (100.0, True)):
        if federated:
            chosen = calibrated(epsilon=1.0, rounds=10, clip_norm=clip_norm)
            task = Task(model=Logistic(rows.schema), local_learning_rate=8.0)
            run: Any = federate(task, rows, chosen, canaries=Canaries(count=1000, kind="user"))
        else:
            run = audited(rows, plan(steps=20, clip_norm=clip_norm), kind="user", count=1000)
        (found,) = run.report().audit
        assert run.evidence.audit.verdict == "consistent"
        assert (found.verdict, found.power is None) == ("inconclusive" if blunt else "consistent", blunt)


def test_what_blunt_canaries_prove_is_proved() -> None:
    included = np.random.default_rng(1).random(1000) < 0.5
    found = evidence(1.0 * included, included, blunt=True).result()
    assert (found.verdict, found.kind) == ("violation", "bound")


def test_coins_that_were_given_bound_nothing() -> None:
    """The fault: a bound by coins that were chosen stood in the report like one by coins that were tossed."""
    included = np.random.default_rng(1).random(1000) < 0.5
    fair = evidence(1.0 * included, included).result()
    given = evidence(1.0 * included, included, tossed=False).result()
    assert (fair.verdict, fair.kind, fair.canary_kind) == ("violation", "bound", "gradient")
    assert (given.verdict, given.kind) == ("inconclusive", "estimate")
    assert given.canary_kind == "gradient, put in by coins that were given"


@pytest.mark.parametrize("given", [True, False])
def test_a_run_remembers_whether_its_coins_were_tossed(tmp_path: Path, given: bool) -> None:
    rows, coins = log(tmp_path), tuple(place % 2 == 0 for place in range(60))
    model = Logistic(rows.schema)
    engine = PrivateEngine(plan(), canaries=Canaries(count=60, coins=coins if given else None))
    engine.make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, loss=losses.per_row)
    found = engine.finish().evidence
    assert found is not None
    assert found.tossed is not given


def test_the_report_holds_the_figures_of_the_audit() -> None:
    rng = np.random.default_rng(2)
    included = rng.random(1000) < 0.5
    made = evidence(rng.normal(size=1000) + included, included)
    found, report = dataclasses.asdict(made.audit), made.result()
    names = ("canaries", "guesses", "correct", "significance", "delta", "power", "detectable")
    assert [getattr(report, name) for name in names] == [found[name] for name in names]
    assert report.epsilon_lower == made.audit.lower
