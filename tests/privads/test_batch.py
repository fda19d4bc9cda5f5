"""`Batch` and its padding."""

import torch

from privads.batch import Batch, padding
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
