"""What a row owes follows the recurrence of the steps that it missed, and survives a checkpoint.

That noise which is paid late has the law of noise paid at every step is tested in test_tables.py, with the faults.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from privads.noise import Randomness
from privads.training import working
from privads.training.owed import Debt, OwingTable, is_plain, step_of

STEPS = [(1.0, 0.5), (0.9, 2.0), (0.8, 0.0), (1.0, 3.0), (0.7, 1.0)]
"""(kept, noise_std) of each."""


def owing() -> Debt:
    debt = Debt(len(STEPS))
    for kept, noise_std in STEPS:
        debt.add(kept=kept, noise_std=noise_std)
    return debt


def test_a_row_owes_the_factors_and_the_noise_of_the_steps_that_it_missed() -> None:
    debt = owing()
    for after in range(len(STEPS)):
        factor, variance = 1.0, 0.0
        for kept, noise_std in STEPS[after:]:
            factor, variance = kept * factor, kept**2 * variance + noise_std**2
        assert debt.kept[after] == pytest.approx(factor, rel=1e-14)
        assert debt.variance[after] == pytest.approx(variance, rel=1e-14)
    assert debt.variance[len(STEPS)] == 0


def test_a_settled_row_has_its_decay_and_owes_nothing() -> None:
    table = OwingTable.of(torch.ones(4, 2), Debt(len(STEPS)))
    for kept, _ in STEPS:
        table.debt.add(kept=kept, noise_std=0.0)
    table.settle(torch.tensor([1, 3]), Randomness())
    table.settle(torch.tensor([1, 3]), Randomness())  # a second time there is nothing to pay
    product = float(np.prod([kept for kept, _ in STEPS]))
    assert table.weight[:, 0].tolist() == pytest.approx([1.0, product, 1.0, product])
    assert table.settled.tolist() == [0, 5, 0, 5]
    table.flush(Randomness())
    assert table.weight.flatten().tolist() == pytest.approx([product] * 8)


def test_a_debt_survives_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o700)
    file, debt = tmp_path / "kept" / "file", owing()
    working.write(file, debt.packed())
    found = Debt.unpacked(working.read(file))
    assert (found.steps, found.decays, found.noised) == (5, True, True)
    assert (found.variance == debt.variance).all()
    assert (found.kept == debt.kept).all()


def test_plain_sgd_is_told_from_all_else() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    plain = torch.optim.SGD(weights, lr=0.5, weight_decay=0.1)
    assert is_plain(plain, plain.param_groups[0])
    assert step_of(plain.param_groups[0]) == pytest.approx((0.5, 0.95))
    for other in (
        torch.optim.SGD(weights, lr=0.5, momentum=0.9),
        torch.optim.SGD(weights, lr=0.5, maximize=True),
        torch.optim.Adam(weights),
    ):
        assert not is_plain(other, other.param_groups[0])
    marked = torch.optim.Adam([{"params": weights, "plain_sgd": True}])
    assert is_plain(marked, marked.param_groups[0])
