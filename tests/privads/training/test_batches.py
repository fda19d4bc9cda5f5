"""Batches in parts are the batches, and rows sampled one by one are bounded once for all."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privads.logs.logs import Logs
from privads.models import DCN, losses
from privads.noise import Randomness
from privads.training.batches import Part, Sampled, Source, parts_of
from privads.training.engine import PrivateEngine
from privads.training.fit import fit
from privads.training.plan import TrainPlan
from privads.training.sampling import Draw, PoissonSampler, TruncatedPoissonSampler
from tests.privads.training.helpers import logs, new_ledger, small_plan


@pytest.fixture
def log(tmp_path: Path) -> Logs:
    return logs(tmp_path)


def draw(*, truncated: bool = False, seed: int = 0) -> Draw:
    generator = np.random.default_rng(seed)
    units = np.repeat(np.arange(60), generator.integers(1, 7, 60))
    shared = {"sampling_rate": 0.4, "rows_per_unit": 4, "generator": generator}
    if truncated:
        return TruncatedPoissonSampler(units, largest_batch=30, **shared).draw()  # type: ignore[arg-type]
    return PoissonSampler(units, **shared).draw()  # type: ignore[arg-type]


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("rows_at_once", [4, 5, 17, 64])
def test_parts_are_whole_units_and_together_the_draw(truncated: bool, rows_at_once: int) -> None:
    whole = draw(truncated=truncated)
    parts = list(parts_of(whole, rows_at_once))
    assert all(len(part.owners) <= rows_at_once for part in parts)
    assert np.array_equal(np.concatenate([part.row_numbers for part in parts]), whole.row_numbers)
    assert sum(part.units for part in parts) == whole.units
    assert sum(part.sampled for part in parts) == whole.sampled
    assert sum(part.padding for part in parts) == whole.padding
    first, real = 0, []
    for part in parts:
        assert part.padding == len(part.owners) - len(part.row_numbers)
        real.append(part.owners[: len(part.row_numbers)] + first)
        first += part.units
    assert np.array_equal(np.concatenate(real), whole.owners[: len(whole.row_numbers)])


def test_parts_of_a_batch_with_one_shape_have_one_shape() -> None:
    shapes = {(part.units, len(part.owners)) for part in parts_of(draw(truncated=True), 40)}
    assert shapes == {(10, 40)}


def test_a_draw_that_fits_is_its_only_part() -> None:
    whole = draw()
    assert list(parts_of(whole, None)) == list(parts_of(whole, 1000)) == [whole]
    none = np.zeros(0, dtype=np.int64)
    empty = Draw(row_numbers=none, owners=none, units=0, sampled=0)
    assert list(parts_of(empty, 8)) == [empty]


# Accumulation


def weights(model: nn.Module) -> Tensor:
    return torch.cat([one.detach().flatten().clone() for one in model.parameters()])


def trained(log: Logs, plan: TrainPlan) -> tuple[Tensor, PrivateEngine, int]:
    """The weights after a run, its engine, and how many parts it was shown."""
    torch.manual_seed(3)
    model = DCN(log.schema, tower=(8,))
    engine = PrivateEngine(plan, insecure_seed=5)
    _, optimizer, batches = engine.make_private(
        model, torch.optim.SGD(model.parameters(), lr=1.0), log, loss=losses.per_row
    )
    seen = 0
    for batch in batches:
        if plan.rows_at_once is not None:
            assert batch.rows <= plan.rows_at_once
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        seen += 1
    engine.finish()
    return weights(model), engine, seen


def without_noise(plan: TrainPlan, monkeypatch: pytest.MonkeyPatch) -> TrainPlan:
    monkeypatch.setattr(Randomness, "normal_like", lambda self, like, *, noise_std: torch.zeros_like(like))
    return plan


@pytest.mark.parametrize("clipping", ["flat", "per-group"])
@pytest.mark.parametrize("table_noise", ["dense", "lazy"])
def test_a_batch_in_parts_gives_the_step_of_the_whole_batch(
    log: Logs, monkeypatch: pytest.MonkeyPatch, clipping: str, table_noise: str
) -> None:
    plan = without_noise(
        small_plan(clip_norm=0.1, averaging=0.0, clipping=clipping, table_noise=table_noise), monkeypatch
    )
    whole, _, steps = trained(log, plan)
    in_parts, engine, seen = trained(log, dataclasses.replace(plan, rows_at_once=16))
    assert torch.allclose(in_parts, whole, atol=1e-5)
    assert steps == plan.steps == engine.steps_done
    assert seen > 3 * steps


def test_a_step_for_each_part_instead_of_each_batch_is_seen(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Source.parts

    def all_last(self: Source, steps: int) -> Iterator[Part]:
        for part in parts(self, steps):
            yield dataclasses.replace(part, last=True)

    monkeypatch.setattr(Source, "parts", all_last)
    with pytest.raises(RuntimeError, match="the plan's 10 steps are done"):
        trained(log, small_plan(rows_at_once=16))


def test_fit_moves_its_schedule_once_for_each_batch(log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = without_noise(small_plan(clip_norm=0.1), monkeypatch)
    models = []
    for rows_at_once in (None, 16):
        torch.manual_seed(3)
        model = DCN(log.schema)
        fit(model, log, dataclasses.replace(plan, rows_at_once=rows_at_once), insecure_seed=5)
        models.append(weights(model))
    assert torch.allclose(*models, atol=1e-5)


# Rows sampled one by one


def test_with_records_a_unit_has_so_many_rows_and_no_others_ever(log: Logs) -> None:
    plan = small_plan(records=2)
    sampled = Sampled.of(log, plan, by_row=False, generator=np.random.default_rng(0))
    assert sampled.numbers is not None
    owners = log.units[sampled.numbers]
    assert np.array_equal(np.bincount(owners), np.minimum(np.bincount(log.units), 2))
    assert len(np.unique(sampled.numbers)) == len(sampled.numbers)
    assert np.array_equal(sampled.units, np.arange(len(owners)))


def test_a_run_with_records_is_charged_to_the_user_and_clips_rows(tmp_path: Path) -> None:
    log, ledger = logs(tmp_path, public=False), new_ledger(tmp_path)
    run = fit(DCN(log.schema), log, small_plan(records=2), ledger=ledger)
    entry = ledger.history("small")[0]
    assert (entry.unit, entry.state) == ("user", "committed")
    assert "mixture-of-gaussians" in entry.event
    said = {one.text: one.status for one in run.report().assumptions}
    assert said["of each unit only a choice of at most 2 rows, made before sampling, is sampled"] == "enforced"
    assert said["one row adds at most clip_norm to a step's sum"] == "enforced"
