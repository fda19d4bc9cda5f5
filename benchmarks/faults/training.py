"""Checks of what a training run promises, nearly all through `PrivateEngine` as a user would.

`benchmarks.faults.training_faults` plants what they must see.
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from accounting import mechanisms
from accounting.budget import Budget
from benchmarks.faults.made import ALPHA, DELTA, USERS, Some, Wide, WideTable, has_variance, is_binomial, plan, weights
from benchmarks.faults.planting import Patch
from privads.batch import Batch, Rows
from privads.logs.logs import Logs
from privads.models import DCN, Logistic, losses
from privads.noise import Randomness
from privads.training.engine import PrivateEngine
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.sampling import sampler_for

SETTINGS: dict[str, Any] = {"population": USERS, "batch": USERS // 10, "epochs": 1.0, "averaging": 0.0}


def change(
    log: Rows, chosen: TrainPlan, model: nn.Module, *, steps: int = 1, loss: Loss = losses.per_row, adam: bool = False
) -> Tensor:
    """Returns how far the weights move in so many steps at learning rate 1, times the plan's batch: the noised sums.

    adam: the first moment of an Adam that took them instead, which is a tenth of the gradient after one step.
    """
    engine, before = PrivateEngine(chosen), weights(model)
    inner = torch.optim.Adam(model.parameters()) if adam else torch.optim.SGD(model.parameters(), lr=1.0)
    _, optimizer, source = engine.make_private(model, inner, log, loss=loss)
    for _, batch in zip(range(steps), source, strict=False):
        engine.backward(loss(model(batch), batch))
        optimizer.step()
    engine.finish()
    if adam:
        moments = [inner.state[one]["exp_avg"].flatten() for one in model.parameters()]
        return torch.cat(moments) * 10 * chosen.batch
    return (before - weights(model)) * chosen.batch


def planned_variance(chosen: TrainPlan) -> float:
    """Returns that of the noise on each number of a step's sums."""
    return (chosen.noise_multiplier * chosen.clip_norm) ** 2


def without_noise(patch: Patch) -> None:
    """Leave out the noise, for checks of what it is added to."""
    patch.setattr(Randomness, "normal_like", lambda _, like, *, noise_std: torch.zeros_like(like))


def one_user(log: Logs, *, clip_norm: float = 0.01) -> tuple[Some, TrainPlan]:
    """Returns the user with the most rows, alone, and a plan of one step that draws them for certain."""
    alone = Some(log, np.flatnonzero(log.units == np.bincount(log.units).argmax()))
    settings = {**SETTINGS, "population": 1, "batch": 1}
    budget = Budget(epsilon=5.0, delta=DELTA, unit="user")
    return alone, TrainPlan.for_budget(budget, clip_norm=clip_norm, **settings)


# Noise


def noise_is_as_large_as_planned(log: Logs, _: Patch) -> bool:
    """The zero gradients of a layer get noise of the planned variance: chi-square."""
    return has_variance(change(log, plan(), Wide()), planned_variance(plan()))


def noise_is_on_the_tables_too(log: Logs, _: Patch) -> bool:
    """The zero gradients of a table get noise of the planned variance: chi-square."""
    return has_variance(change(log, plan(), WideTable()), planned_variance(plan()))


def noise_of_steps_is_independent(log: Logs, _: Patch) -> bool:
    """The noise of four steps adds up to four times the variance; the same noise four times to sixteen."""
    return has_variance(change(log, plan(), Wide(), steps=4), 4 * planned_variance(plan()))


def the_optimizer_sees_noise(log: Logs, _: Patch) -> bool:
    """Adam's first moment after one step is a tenth of a gradient whose noise is as planned."""
    return has_variance(change(log, plan(), Wide(), adam=True), planned_variance(plan()))


def a_resumed_run_draws_fresh_noise(log: Logs, _: Patch) -> bool:
    """Two resumes from one checkpoint end with other weights, every one of them."""
    with tempfile.TemporaryDirectory() as folder:
        ended = [_resumed(log, Path(folder) / "working", first=number == 0) for number in range(2)]
    return bool((ended[0] != ended[1]).float().mean() > 0.99)


def _resumed(log: Logs, path: Path, *, first: bool) -> Tensor:
    model = Wide()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    if first:
        engine = PrivateEngine(plan())
        engine.make_private(model, sgd, log)
        engine.save(path)
        engine.abandon()
    engine = PrivateEngine(plan())
    _, optimizer, source = engine.make_private(model, sgd, log, resume_from=path)
    batch = next(iter(source))
    engine.backward(losses.per_row(model(batch), batch))
    optimizer.step()
    engine.abandon()
    return weights(model)


def the_model_is_handed_out_flushed(log: Logs, _: Patch) -> bool:
    """After one lazy step every weight of the table has moved, also of rows that nobody read."""
    torch.manual_seed(0)
    model = DCN(log.schema)
    before = model.table.weight.detach().clone()
    budget = Budget(epsilon=5.0, delta=DELTA, unit="user")
    change(log, TrainPlan.for_budget(budget, table_noise="lazy", **SETTINGS), model)
    return bool((model.table.weight != before).all())


# Sensitivity


def no_user_moves_the_sum_by_more_than_the_clip_norm(log: Logs, patch: Patch) -> bool:
    """One user alone, all of whose rows are drawn, without noise."""
    without_noise(patch)
    alone, chosen = one_user(log)
    torch.manual_seed(0)
    return float(change(alone, chosen, DCN(log.schema)).norm()) <= chosen.clip_norm * (1 + 1e-6)


def clipped_gradients_add_up(log: Logs, patch: Patch) -> bool:
    """All of 400 users, whose long gradients go mostly one way, move the sum by more than two clip norms."""
    without_noise(patch)
    patch.setattr(TrainPlan, "sampling_rate", property(lambda _: 1.0))
    torch.manual_seed(0)
    return float(change(log, plan(), Logistic(log.schema)).norm()) > 2 * plan().clip_norm


def the_divisor_is_public(log: Logs, patch: Patch) -> bool:
    """Every user is drawn, and the batch of the plan is half of that: the change is the sum over half of them."""
    without_noise(patch)
    patch.setattr(TrainPlan, "sampling_rate", property(lambda _: 1.0))
    chosen = TrainPlan.without_privacy(population=USERS, unit="user", batch=USERS // 2, epochs=0.5, averaging=0.0)
    moved = change(log, chosen, Logistic(log.schema)) / chosen.batch
    model, batch = Logistic(log.schema), log.take(np.arange(len(log.units)))
    total = torch.autograd.grad(losses.per_row(model(batch), batch).sum(), list(model.parameters()))
    return torch.allclose(moved, torch.cat([one.flatten() for one in total]) / (USERS // 2), rtol=1e-3, atol=1e-6)


def a_gradient_that_is_no_number_adds_zero(log: Logs, patch: Patch) -> bool:
    """One user whose loss is not a number, without noise: nothing moves."""
    without_noise(patch)
    alone, chosen = one_user(log)
    model, marked = Logistic(log.schema), [False]

    def loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        found = losses.per_row(outputs, batch)
        return found * math.nan if marked[0] else found

    engine, before = PrivateEngine(chosen), weights(model)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    _, optimizer, source = engine.make_private(model, sgd, alone, loss=loss)
    marked[0] = True  # the probe has only seen numbers
    batch = next(iter(source))
    engine.backward(loss(model(batch), batch))
    optimizer.step()
    engine.finish()
    return bool((weights(model) == before).all())


def a_row_has_a_loss_of_its_own(log: Logs, _: Patch) -> bool:
    """The label of one row changes one loss of the batch's."""
    batch = log.take(np.arange(20))
    outputs = {"click": torch.linspace(-2, 2, 20)}
    before = losses.per_row(outputs, batch)
    batch.labels["click"][3] = 1 - batch.labels["click"][3]
    changed = (losses.per_row(outputs, batch) != before).flatten()
    return before.shape == (20,) and changed.nonzero().flatten().tolist() == [3]


def a_user_has_no_more_records_than_are_charged(log: Logs, _: Patch) -> bool:
    """Rows that are sampled one by one: of each user at most as many as the event is composed over."""
    budget = Budget(epsilon=5.0, delta=DELTA, unit="user")
    chosen = TrainPlan.for_budget(budget, records=2, **SETTINGS)
    engine = PrivateEngine(chosen)
    model = Logistic(log.schema)
    engine.make_private(model, torch.optim.SGD(model.parameters(), lr=1.0), log, loss=losses.per_row)
    drawn = engine._source.sampled
    numbers: NDArray[np.int64] = np.arange(len(log.units)) if drawn.numbers is None else drawn.numbers
    engine.abandon()
    return int(np.bincount(log.units[numbers]).max()) <= 2


# Sampling and accounting


def users_are_drawn_independently(log: Logs, _: Patch) -> bool:
    """Sizes of 1,000 batches vary as binomial numbers do, and every user is in as many as a binomial number is.

    A sampler whose batches all have one size is always seen; so is a rate that is off by 3 %.
    """
    chosen, units = plan(), log.units
    drawn = list(sampler_for(chosen, units, Randomness()).draws(1000))
    rate, users = chosen.sampling_rate, int(units.max()) + 1
    sizes = np.array([one.sampled for one in drawn])
    spread = float(((sizes - users * rate) ** 2).sum()) / (users * rate * (1 - rate))
    joined = np.bincount(np.concatenate([np.unique(units[one.row_numbers]) for one in drawn]), minlength=users)
    return (
        is_binomial(int(sizes.sum()), 1000 * users, rate)
        and bool(stats.chi2.ppf(ALPHA / 2, 1000) < spread < stats.chi2.isf(ALPHA / 2, 1000) * 1.1)
        and all(stats.binom.cdf(int(one), 1000, rate) > ALPHA / users for one in joined)
    )


def every_noise_that_is_drawn_is_in_the_event(log: Logs, patch: Patch) -> bool:
    """Of one step with an adaptive clip norm: merged, the noises drawn have the noise multiplier of the event's step.

    A noise of standard deviation s on a sum of sensitivity c has the multiplier s / c: c is the clip norm for the
    gradients and 1/2 for the count. Of several, merged: ``(sum of multipliers^-2)^(-1/2)``.
    """
    budget = Budget(epsilon=5.0, delta=DELTA, unit="user")
    chosen = TrainPlan.for_budget(budget, clip_quantile=0.5, **SETTINGS)
    stds: list[tuple[int, float]] = []
    draw = Randomness.normal_like

    def noted(self: Randomness, like: Tensor, *, noise_std: float) -> Tensor:
        stds.append((like.numel(), noise_std))
        return draw(self, like, noise_std=noise_std)

    patch.setattr(Randomness, "normal_like", noted)
    change(log, chosen, Wide())
    executed = [std / (0.5 if count == 1 else chosen.clip_norm) for count, std in stds]
    ((step, steps),) = mechanisms.parts(chosen.event)
    found = mechanisms.merged_noise(step.event) if hasattr(step, "event") else math.nan
    return steps == chosen.steps and math.isclose(found, mechanisms.merged(executed), rel_tol=1e-9)


def every_step_is_in_the_event(log: Logs, _: Patch) -> bool:
    """The event composes as many steps as the batches that the engine hands out."""
    budget = Budget(epsilon=5.0, delta=DELTA, unit="user")
    chosen = TrainPlan.for_budget(budget, **SETTINGS)
    engine, model = PrivateEngine(chosen), Logistic(log.schema)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    __, optimizer, source = engine.make_private(model, sgd, log, loss=losses.per_row)
    taken = 0
    for batch in source:
        engine.backward(losses.per_row(model(batch), batch))
        optimizer.step()
        taken += 1
    engine.finish()
    return sum(count for __, count in mechanisms.parts(chosen.event)) == taken
