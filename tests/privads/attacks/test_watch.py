"""Audited runs: what canaries add is what a unit may add, honest runs are not accused, and gross faults are caught.

Of each fault all 20 runs on other seeds were caught: with 95 % confidence at least 86 % of its runs are.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accounting.budget import Budget
from benchmarks.faults.planting import Plant
from benchmarks.faults.training_faults import (
    a_tenth_of_the_noise,
    clip_skipped,
    everyone_in_every_batch,
    flush_forgotten,
    noise_forgotten,
    noise_forgotten_on_the_table,
)
from privads.attacks.canaries import Canaries, Kind
from privads.attacks.final_rows import FinalRows
from privads.attacks.pushes import Pushes
from privads.attacks.watch import watch_for
from privads.logs.logs import Logs
from privads.models import DCN, Logistic, losses
from privads.training.engine import PrivateEngine
from privads.training.fit import Checkpoint, fit
from privads.training.plan import TrainPlan
from tests.privads.attacks.helpers import audited, log, plan


def trained(
    rows: Logs, chosen: TrainPlan, canaries: Canaries | None, weight_decay: float = 0.0
) -> tuple[dict[str, Tensor], PrivateEngine]:
    """The weights after the plan's steps of SGD at learning rate 1."""
    torch.manual_seed(0)
    model = DCN(rows.schema)
    engine = PrivateEngine(chosen, insecure_seed=1, canaries=canaries)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=weight_decay)
    _, optimizer, batches = engine.make_private(model, sgd, rows, loss=losses.per_row)
    for batch in batches:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
    engine.finish()
    return {name: one.detach() for name, one in model.named_parameters()}, engine


@pytest.mark.parametrize(
    ("kind", "clipping", "table_noise"),
    [
        ("gradient", "flat", "dense"),
        ("row", "flat", "dense"),
        ("gradient", "per-group", "dense"),
        ("gradient", "flat", "lazy"),
        ("row", "flat", "lazy"),
    ],
)
def test_a_canary_that_is_drawn_adds_a_clip_norm_and_nobody_else_adds_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, clipping: Any, table_noise: Any
) -> None:
    noise_forgotten(monkeypatch)
    # every unit joins every batch, and without noise nothing else differs
    rows, chosen = log(tmp_path), plan(batch=400, steps=1, averaging=0.0, clipping=clipping, table_noise=table_noise)
    coins = tuple(place < 40 for place in range(60))
    plain, _ = trained(rows, chosen, None)
    found, _ = trained(rows, chosen, Canaries(count=60, kind=kind, coins=coins))
    moved = torch.cat([(found[name] - one).flatten() for name, one in plain.items()]) * chosen.batch / chosen.clip_norm
    assert float(moved.square().sum()) == pytest.approx(40, rel=1e-3)
    where = moved.abs() > 1e-3
    assert moved.abs()[~where].max() < 1e-4
    if kind == "gradient":
        assert moved.abs()[where].tolist() == pytest.approx([1.0] * 40, rel=1e-3)


@pytest.mark.parametrize("kind", ["gradient", "row", "user"])
def test_an_honest_run_is_not_accused(tmp_path: Path, kind: Kind) -> None:
    """At claim 3 an ideal run proves 0.7 on average; to exceed 3 is less likely than 1e-6."""
    run = audited(log(tmp_path), plan(epsilon=3.0), kind=kind)
    assert run.report().contradictions == ()
    assert run.evidence is not None
    assert run.evidence.audit.lower < 2.0


def test_scores_of_an_honest_run_are_near_the_ideal_ones(tmp_path: Path) -> None:
    """Canaries whose coin is seen through the run's own noise: sum over steps of a Gaussian mixture."""
    run = audited(log(tmp_path), plan(epsilon=8.0), count=1000)
    assert run.evidence is not None
    scores, included = run.evidence.scores, run.evidence.included
    assert scores[included].mean() > scores[~included].mean()
    assert run.evidence.audit.lower > 0.3  # 1.9 on average


@pytest.mark.parametrize("kind", ["gradient", "row"])
@pytest.mark.parametrize(
    "plant",
    [a_tenth_of_the_noise, noise_forgotten, noise_forgotten_on_the_table, everyone_in_every_batch],
    ids=lambda one: one.__name__,
)
def test_a_gross_fault_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant, kind: Kind) -> None:
    plant(monkeypatch)
    report = audited(log(tmp_path), plan(), kind=kind).report()
    assert report.contradictions, report.audit
    assert report.headline.startswith("VIOLATED: epsilon <= 1.00")


@pytest.mark.parametrize(
    "plant", [a_tenth_of_the_noise, noise_forgotten, flush_forgotten], ids=lambda one: one.__name__
)
def test_rows_of_lazy_tables_catch_noise_that_was_not_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    plant(monkeypatch)
    report = audited(log(tmp_path), plan(table_noise="lazy", averaging=0.0), kind="row").report()
    assert report.contradictions, report.audit
    assert report.audit[0].threat_model == "sees the final model, and knows what all others added to every sum"


def test_an_honest_run_with_lazy_tables_is_not_accused(tmp_path: Path) -> None:
    run = audited(log(tmp_path), plan(epsilon=3.0, table_noise="lazy", averaging=0.0), kind="row")
    assert run.evidence is not None
    assert run.evidence.audit.lower < 2.0
    scores, included = run.evidence.scores, run.evidence.included
    # 0.34 standard deviations apart; equal means are this far apart with probability below 0.1
    assert scores[included].mean() > scores[~included].mean()


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_where_a_row_of_a_lazy_table_would_have_been_is_known_whatever_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight_decay: float
) -> None:
    """Every unit joins every batch. theta_4 = theta_0 k^4 - (1 / batch) sum of g_t k^(4 - t), and k = 1 - weight decay;
    a canary's g_t is the clip norm along its direction beside what others add.
    """
    noise_forgotten(monkeypatch)
    chosen = plan(batch=400, steps=4, averaging=0.0, table_noise="lazy")
    coins = tuple(place < 40 for place in range(60))
    _, engine = trained(log(tmp_path), chosen, Canaries(count=60, kind="row", coins=coins), weight_decay)
    watch = engine._watch
    assert isinstance(watch, FinalRows)
    ((table, direction),) = watch._directions.items()
    moved = watch._expected[table] - table.detach()[watch._rows[table]]
    along = (moved * direction.weights).sum(1) * chosen.batch / chosen.clip_norm
    assert along[:40].tolist() == pytest.approx([sum((1 - weight_decay) ** t for t in range(4))] * 40, rel=1e-3)
    assert along[40:].tolist() == pytest.approx([0.0] * 20, abs=1e-3)


def test_canary_users_catch_a_clip_that_is_left_out_after_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = log(tmp_path)
    clip_skipped(monkeypatch)
    assert audited(rows, plan(epsilon=2.0), kind="user").report().contradictions


def test_a_run_is_refused_before_it_is_charged_where_it_cannot_be_audited(tmp_path: Path) -> None:
    rows = log(tmp_path)
    model = Logistic(rows.schema)
    few = [model.linear.weight]
    for kind in ("gradient", "row"):
        canaries = Canaries(count=60, kind=kind)
        with pytest.raises(ValueError, match="a direction of its own"):
            watch_for(canaries, plan(), model, losses.per_row, rows, few, None, insecure_seed=None)
    with pytest.raises(ValueError, match="need the loss"):
        watch_for(Canaries(count=60, kind="user"), plan(), model, None, rows, few, None, insecure_seed=None)
    with pytest.raises(ValueError, match="cannot be resumed"):
        fit(model, rows, plan(), canaries=Canaries(count=60), checkpoint=Checkpoint(path=tmp_path / "working"))
    cut = plan(epsilon=3.0, sampler="truncated-poisson", most_units=2000)
    with pytest.raises(ValueError, match="more than most_units = 2000, and units of the log be left out"):
        fit(model, rows, cut, canaries=Canaries(count=1600))
    faint = Budget(epsilon=10.0, delta=1e-60, unit="user")
    with pytest.raises(ValueError, match=r"delta must be in \[1e-50, 1\), got 1e-60"):
        fit(model, rows, replace(plan(), budget=faint), canaries=Canaries(count=60))
    twin = TrainPlan.without_privacy(population=400, unit="user", batch=40, epochs=1)
    with pytest.raises(ValueError, match="makes no claim"):
        fit(model, rows, twin, canaries=Canaries(count=60))


def test_a_run_with_canaries_writes_no_checkpoint(tmp_path: Path) -> None:
    rows = log(tmp_path)
    model, engine = Logistic(rows.schema), PrivateEngine(plan(steps=2), canaries=Canaries(count=60))
    engine.make_private(model, torch.optim.SGD(model.parameters(), lr=0.1), rows, loss=losses.per_row)
    with pytest.raises(ValueError, match="cannot be resumed"):
        engine.save(tmp_path / "working")
    assert isinstance(engine._watch, Pushes)
