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


@pytest.mark.parametrize("facts", SCHEMAS.values(), ids=SCHEMAS)
def test_the_logits_are_the_docstrings_formula(facts: Schema) -> None:
    torch.manual_seed(3)
    model, batch, dim = DCN(facts, dim=2, crosses=2, tower=(5,)), random_batch(facts, 6), 2
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    value = {name: one.detach().double().numpy() for name, one in model.named_parameters()}
    tasks, fields, root = len(facts.tasks), len(facts.categorical), facts.fields**-0.5
    ids, offsets = batch.ids.numpy(), batch.offsets.numpy()
    for row in range(batch.rows):
        bags = [ids[offsets[row * fields + f] : offsets[row * fields + f + 1]] for f in range(fields)]
        embedded = [value["table.weight"][bag].sum(0) for bag in bags]  # each (tasks * dim,)
        dense = batch.dense[row].double().numpy()
        x0 = root * np.concatenate([*embedded, dense])
        x = x0
        for layer in range(2):
            weight, bias = value[f"cross.layers.{layer}.weight"], value[f"cross.layers.{layer}.bias"]
            x = x0 * 0.1 * (weight @ x + bias) + x
        hidden = np.maximum(value["tower.0.weight"] @ x0 + value["tower.0.bias"], 0)
        for t, task in enumerate(facts.tasks):
            own = [f * tasks * dim + t * dim + d for f in range(fields) for d in range(dim)]
            expected = (
                x[own].sum() / dim**0.5
                + root * value["linear.weight"][t] @ np.append(dense, 1.0)
                + 0.1 * value["head.weight"][t] @ np.concatenate([x, hidden])
            )
            assert float(model(batch)[task][row].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
