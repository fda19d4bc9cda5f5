"""Logistic regression against its formula."""

import numpy as np
import pytest
import torch

from privads.logs.schema import Schema
from privads.models.logistic import Logistic
from tests.privads.models.samples import random_batch, schema

SCHEMAS = {
    "numbers and categories": schema(),
    "categories": schema(numeric=0),
    "numbers": schema(buckets=()),
    "one task": schema(tasks=("one",)),
}


def randomized(facts: Schema) -> Logistic:
    torch.manual_seed(0)
    model = Logistic(facts)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("facts", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.parametrize("rows", [0, 1, 8])
def test_logits_are_the_formula(facts: Schema, rows: int) -> None:
    """A fixed bug: without categories the logits had no rows."""
    model, batch = randomized(facts), random_batch(facts, rows)
    table, linear = model.table.weight.detach().numpy(), model.linear.weight.detach().numpy()
    fields = len(facts.numeric) + len(facts.categorical)
    outputs = model(batch)
    assert set(outputs) == set(facts.tasks)
    for t, task in enumerate(facts.tasks):
        found = table[batch.ids.numpy(), t].reshape(rows, len(facts.categorical)).sum(1)
        dense = batch.dense.double().numpy() @ linear[t, :-1]
        np.testing.assert_allclose(outputs[task].detach(), (linear[t, -1] + found + dense) / np.sqrt(fields), atol=1e-5)


def test_everything_starts_at_0() -> None:
    facts = schema()
    model = Logistic(facts)
    assert not any(parameter.any() for parameter in model.parameters())
    assert all(not logit.any() for logit in model(random_batch(facts, 4)).values())
