"""DCN against its parts, its shapes, and several tasks."""

import numpy as np
import pytest
import torch

from privads.logs.schema import Schema
from privads.models.dcn import DCN
from privads.models.losses import per_row
from tests.privads.models.samples import random_batch, schema

SCHEMAS = {
    "numbers and categories": schema(),
    "categories": schema(numeric=0),
    "numbers": schema(buckets=()),
    "one task": schema(tasks=("one",)),
}


@pytest.mark.parametrize("facts", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("rows", [0, 1, 8])
@pytest.mark.parametrize(
    "settings", [{}, {"dim": 3, "crosses": 0, "tower": ()}, {"dim": 1, "crosses": 1, "tower": (4,)}], ids=str
)
def test_one_logit_for_each_task_and_row(facts: Schema, rows: int, settings: dict[str, object]) -> None:
    """A fixed bug: without categories the model raised."""
    outputs = DCN(facts, **settings)(random_batch(facts, rows))  # type: ignore[arg-type]
    assert {task: logit.shape for task, logit in outputs.items()} == dict.fromkeys(facts.tasks, (rows,))


def test_a_row_s_logits_depend_on_no_other_row() -> None:
    facts = schema()
    model, batch = DCN(facts, tower=(4,)), random_batch(facts, 5)
    torch.nn.init.normal_(model.head.weight)
    for row, logit in enumerate(model(batch)["click"]):
        gradient = torch.autograd.grad(logit, model.table.weight, retain_graph=True)[0]
        touched = set(gradient.abs().sum(1).nonzero().flatten().tolist())
        assert touched == set(batch.ids.view(5, 3)[row].tolist())


def test_each_task_learns_its_own_label() -> None:
    torch.manual_seed(0)
    facts = schema()
    batch = random_batch(facts, 40)
    batch.labels["buy"].copy_(1 - batch.labels["click"])
    for known in batch.observed.values():
        known.fill_(value=True)
    model = DCN(facts, tower=(16,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(40):
        optimizer.zero_grad()
        per_row(model(batch), batch).sum().backward()
        optimizer.step()
    outputs = model(batch)
    assert np.corrcoef(outputs["click"].detach(), outputs["buy"].detach())[0, 1] < -0.9


@pytest.mark.parametrize("settings", [{"dim": 0}, {"dim": -1}, {"crosses": -1}, {"tower": (8, 0)}], ids=str)
def test_sizes_that_make_no_model_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a DCN needs positive widths"):
        DCN(schema(), **settings)  # type: ignore[arg-type]
