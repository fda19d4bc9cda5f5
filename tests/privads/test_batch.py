"""`Batch` and its padding."""

import torch

from privads.batch import Batch, joined, padding
from privads.logs.schema import Schema
from privads.models import DCN, losses

SCHEMA = Schema.load(
    {
        "dataset": "x",
        "population": 10,
        "labels": {"y": "y", "z": "z"},
        "numeric": {"n": {"range": [0, 10]}},
        "categorical": {"a": {"buckets": 5}, "b": {"buckets": 7}},
    }
)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.dense, batch.ids, batch.offsets, batch.weights, *batch.labels.values(), *batch.observed.values()]


def test_padding_is_rows_of_missing_values_without_weight() -> None:
    batch = padding(SCHEMA, rows=3)
    assert batch.rows == 3
    assert batch.ids.tolist() == [0, 5] * 3
    assert batch.offsets.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert not batch.dense.any()
    assert not batch.weights.any()
    assert set(batch.labels) == {"y", "z"}
    assert not any(known.any() for known in batch.observed.values())


def test_padding_moves_no_parameter() -> None:
    model, batch = DCN(SCHEMA), padding(SCHEMA)
    losses.per_row(model(batch), batch).sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_to_moves_every_tensor_and_leaves_the_batch() -> None:
    batch = padding(SCHEMA)
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    assert all(tensor.device.type == "cpu" for tensor in tensors(batch))
    assert [tensor.shape for tensor in tensors(moved)] == [tensor.shape for tensor in tensors(batch)]


def bags(ids: list[list[int]], **columns: list[float]) -> Batch:
    """Rows of the two fields of `SCHEMA`; each of ``ids`` is a bag."""
    rows = len(ids) // 2
    ends = torch.tensor([len(bag) for bag in ids]).cumsum(0)
    return Batch(
        dense=torch.tensor(columns["n"]).view(rows, 1),
        ids=torch.tensor([one for bag in ids for one in bag]),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
        labels={task: torch.tensor(columns[task]) for task in SCHEMA.tasks},
        observed={task: torch.tensor(columns[task]) > 0 for task in SCHEMA.tasks},
        weights=torch.tensor(columns["n"]).abs(),
    )


def test_joined_rows_are_those_of_both_with_bags_of_any_length() -> None:
    one = bags([[0, 2], [5]], n=[0.5], y=[1.0], z=[0.0])
    two = bags([[], [6, 7, 6], [1], [11]], n=[-0.5, 0.25], y=[0.0, 1.0], z=[1.0, 1.0])
    both = bags([[0, 2], [5], [], [6, 7, 6], [1], [11]], n=[0.5, -0.5, 0.25], y=[1.0, 0.0, 1.0], z=[0.0, 1.0, 1.0])
    assert all(torch.equal(*pair) for pair in zip(tensors(joined(one, two)), tensors(both), strict=True))


def test_padding_behind_a_batch_changes_no_row_of_a_model() -> None:
    model, batch = DCN(SCHEMA), bags([[0], [5], [1], [6]], n=[0.5, -0.5], y=[1.0, 0.0], z=[0.0, 1.0])
    padded = joined(batch, padding(SCHEMA, rows=3))
    alone, together = (losses.per_row(model(rows), rows) for rows in (batch, padded))
    assert torch.allclose(together, torch.cat([alone, torch.zeros(3)]), atol=1e-7)
