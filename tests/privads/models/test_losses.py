"""The loss of each row, by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from privads.batch import Batch
from privads.models.losses import per_row
from tests.privads.models.samples import random_batch, schema

FACTS = schema()
ROWS = 6


def logits(seed: int = 1, rows: int = ROWS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {task: (3 * torch.randn(rows, generator=generator)).requires_grad_() for task in FACTS.tasks}


def test_loss_is_its_formula() -> None:
    batch, outputs = random_batch(FACTS, ROWS), logits()
    expected = np.zeros(ROWS)
    for task, weight in (("click", 1.0), ("buy", 2.5)):
        chance = 1 / (1 + np.exp(-outputs[task].detach().double().numpy()))
        label, known = batch.labels[task].numpy(), batch.observed[task].numpy()
        expected += weight * known * -(label * np.log(chance) + (1 - label) * np.log(1 - chance))
    np.testing.assert_allclose(per_row(outputs, batch, {"buy": 2.5}).detach(), expected, rtol=1e-5)


def test_loss_is_multiplied_by_the_row_s_weight() -> None:
    batch = random_batch(FACTS, ROWS)
    weights = torch.arange(ROWS).float()
    weighed = per_row(logits(), replace(batch, weights=weights))
    assert torch.equal(weighed, per_row(logits(), batch) * weights)


@pytest.mark.parametrize("placeholder", [0.0, 1.0, float("nan")])
def test_an_unobserved_label_adds_0_and_moves_nothing(placeholder: float) -> None:
    """A fixed bug: NaN in place of an unknown label made the gradient NaN."""
    batch, outputs = random_batch(FACTS, ROWS), logits()
    hidden = {task: torch.where(batch.observed[task], batch.labels[task], placeholder) for task in FACTS.tasks}
    losses = per_row(outputs, replace(batch, labels=hidden))
    losses.sum().backward()
    assert torch.equal(losses, per_row(logits(), batch))
    for task, output in outputs.items():
        assert output.grad is not None
        assert (output.grad[~batch.observed[task]] == 0).all()
        assert (output.grad[batch.observed[task]] != 0).all()


def test_nothing_is_divided_by_how_many_labels_are_observed() -> None:
    batch = random_batch(FACTS, ROWS)
    none = {task: torch.zeros(ROWS, dtype=torch.bool) for task in FACTS.tasks}
    one = {task: known.clone() for task, known in none.items()}
    one["click"][0] = True
    every = {task: torch.ones(ROWS, dtype=torch.bool) for task in FACTS.tasks}
    alone = per_row({"click": logits()["click"]}, replace(batch, observed=one))[0]
    assert alone == per_row({"click": logits()["click"]}, replace(batch, observed=every))[0]
    assert not per_row(logits(), replace(batch, observed=none)).any()


def test_a_row_s_loss_and_gradient_depend_on_no_other_row() -> None:
    batch, outputs = random_batch(FACTS, ROWS), logits()
    jacobian = torch.stack(
        [torch.autograd.grad(loss, outputs["click"], retain_graph=True)[0] for loss in per_row(outputs, batch)]
    )
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    fewer = Batch(
        dense=batch.dense[:2],
        ids=batch.ids[:6],
        offsets=batch.offsets[:7],
        labels={task: label[:2] for task, label in batch.labels.items()},
        observed={task: known[:2] for task, known in batch.observed.items()},
        weights=batch.weights[:2],
    )
    alone = per_row({task: output[:2] for task, output in outputs.items()}, fewer)
    assert torch.equal(alone, per_row(outputs, batch)[:2])


@pytest.mark.parametrize("shape", [(), (ROWS, 1), (1, ROWS), (1,), (ROWS - 1,)], ids=str)
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"outputs of 'click' must have shape \(6,\), got"):
        per_row({"click": torch.zeros(shape)}, random_batch(FACTS, ROWS))


def test_a_weight_of_an_unknown_task_is_refused() -> None:
    """A fixed bug: a task's misspelled name left its weight at 1."""
    with pytest.raises(ValueError, match="task_weights names 'clicks', which is no task; did you mean 'click'"):
        per_row(logits(), random_batch(FACTS, ROWS), {"clicks": 2.0})


def test_extreme_logits_stay_finite() -> None:
    batch = random_batch(FACTS, ROWS)
    outputs = {task: torch.full((ROWS,), 1e4, requires_grad=True) for task in FACTS.tasks}
    losses = per_row(outputs, batch)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(output.grad).all() for output in outputs.values() if output.grad is not None)
