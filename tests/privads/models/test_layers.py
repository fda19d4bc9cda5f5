"""Layers against their formulas and torch's own."""

import numpy as np
import pytest
import torch
from torch import nn

from privads.models.layers import Cross, FusedTable, Tower
from tests.privads.models.samples import random_batch, schema

FACTS = schema()
BUCKETS = [field.buckets for field in FACTS.categorical.values()]


@pytest.mark.parametrize("longest", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_a_fused_table_is_a_sum_over_each_bag(longest: int, seed: int) -> None:
    torch.manual_seed(seed)
    batch = random_batch(FACTS, 9, seed, longest=longest)
    table = FusedTable(BUCKETS, 4, init_std=1.0)
    expected = np.zeros((9, 3, 4))
    for bag, (start, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        for one in batch.ids[start:end]:
            expected[bag // 3, bag % 3] += table.weight[one].detach().numpy()
    found = table(batch.ids, batch.offsets)
    np.testing.assert_allclose(found.detach(), expected, atol=1e-5)
    bag = nn.EmbeddingBag.from_pretrained(table.weight.detach(), mode="sum", include_last_offset=True)
    torch.testing.assert_close(found.detach(), bag(batch.ids, batch.offsets).view(9, 3, 4))


def test_empty_bags_give_0_and_repeated_ids_count_each_time() -> None:
    table = FusedTable([3, 3], 2, init_std=1.0)
    ids, offsets = torch.tensor([1, 1, 1, 5]), torch.tensor([0, 3, 3, 3, 4])
    found = table(ids, offsets)
    torch.testing.assert_close(found[0, 0], 3 * table.weight[1])
    assert not found[0, 1].any()
    assert not found[1, 0].any()
    torch.testing.assert_close(found[1, 1], table.weight[5])
    found.sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[:, 0].tolist() == [0, 3, 0, 0, 0, 1]


def test_a_fused_table_starts_at_the_stated_std() -> None:
    torch.manual_seed(0)
    assert not FusedTable([4], 2).weight.any()
    weight = FusedTable([20_000], 8, init_std=0.5).weight
    assert weight.std().item() == pytest.approx(0.5, rel=0.01)  # 160,000 draws: 5 standard errors are 0.9 %


def test_a_fused_table_without_fields_trains_nothing() -> None:
    table = FusedTable([], 3, init_std=1.0)
    found = table(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert found.shape == (0, 0, 3)
    assert not found.requires_grad


def test_cross_is_its_formula() -> None:
    torch.manual_seed(0)
    cross = Cross(5, 3).double()
    x0 = torch.randn(7, 5, dtype=torch.float64)
    x = x0.numpy()
    for layer in cross.layers:
        assert isinstance(layer, nn.Linear)
        x = x0.numpy() * (x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()) + x
    np.testing.assert_allclose(cross(x0).detach(), x, rtol=1e-12)


def test_no_cross_layer_is_the_identity() -> None:
    x0 = torch.randn(3, 5)
    assert torch.equal(Cross(5, 0)(x0), x0)


def test_a_tower_is_linear_and_relu_in_turn() -> None:
    torch.manual_seed(0)
    tower = Tower((4, 6, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = x.numpy()
    for layer in tower:
        if isinstance(layer, nn.Linear):
            expected = np.maximum(expected @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    np.testing.assert_allclose(tower(x).detach(), expected, rtol=1e-12)
    assert torch.equal(Tower((4,))(x), x)
