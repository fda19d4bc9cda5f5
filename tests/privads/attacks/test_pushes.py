"""Pushes: what everyone else adds does not disturb what is seen of a canary, and its own rows add no loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from privads.attacks.directions import Directions
from privads.attacks.padded import PaddedUnits
from privads.attacks.pushes import Pushes
from tests.privads.attacks.helpers import plan
from tests.privads.training.helpers import logs

INCLUDED = np.array([True, False, True, False])
DIRECTION = Directions(torch.arange(4), torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.float64))


def scored(others: torch.Tensor) -> list[float]:
    units = PaddedUnits(INCLUDED, records=1)
    pushes = Pushes(INCLUDED, [DIRECTION], plan(), units)
    units._counts = np.array([1, 0, 0, 0])
    (added,) = pushes.added([others.clone()], {}, 0.5)
    assert (added - others).tolist() == pytest.approx([0.5, 0, 0, 0, 0], abs=1e-4)
    pushes.see([added + torch.tensor([0.1, -0.2, 0.3, 0.0, 9.0])])
    return pushes.scores(torch.nn.Identity()).tolist()


def test_what_others_add_is_known_and_taken_out() -> None:
    assert scored(torch.tensor([300.0, -200.0, 70.0, 11.0, 0.0])) == pytest.approx(scored(torch.zeros(5)), abs=1e-4)


def test_the_losses_of_canaries_rows_are_taken_out_and_no_others(tmp_path: Path) -> None:
    units = PaddedUnits(INCLUDED, records=2)
    rows = units.planted(logs(tmp_path))
    first = len(rows.units) - 4
    losses = units.drawn(np.array([first + 1, 3, first + 2, first + 3]), torch.ones(6))
    assert losses.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]  # two rows of padding at the end
    assert units.counts().tolist() == [1, 0, 2, 0]
    assert units.counts().tolist() == [0, 0, 0, 0]
