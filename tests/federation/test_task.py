"""A task names local training that users can do side by side, from their own rows alone."""

from typing import Any

import pytest
import torch
from torch import nn

from federation.task import Task
from privads.models import DCN, Logistic
from privads.models.layers import FusedTable
from privads.training.clipping import UnsupportedModel
from tests.privads.models.samples import schema


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_learning_rate": 0.0}, "local_learning_rate must be positive, got 0.0"),
        ({"local_learning_rate": float("nan")}, "local_learning_rate must be positive, got nan"),
        ({"local_steps": 0}, "local_steps must be a whole number of at least 1, got 0"),
        ({"rows_per_user": 1.5}, "rows_per_user must be a whole number of at least 1, got 1.5"),
        ({"local_rows": 0}, "local_rows must be a whole number of at least 1, got 0"),
    ],
)
def test_numbers_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(**{"model": Logistic(schema()), "local_learning_rate": 0.1, **settings})


class Twice(nn.Module):
    """One table under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = FusedTable([3], 2), FusedTable([3], 2)
        self.two.weight = self.one.weight


class Own(FusedTable):
    pass


def frozen() -> nn.Module:
    model = DCN(schema())
    for one in model.parameters():
        one.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "layer '1' keeps statistics of rows.*LayerNorm"),
        (nn.Sequential(nn.LazyLinear(2)), "layer '0' has no shape yet"),
        (nn.Sequential(Own([3], 2)), "layer '0' is a subclass of FusedTable"),
        (Twice(), "are one table"),
        (nn.Linear(2, 2, device="meta"), r"move the model there with model\.cpu\(\)"),
        (frozen(), "nothing to train"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        Task(model=model, local_learning_rate=0.1)


def test_an_own_loss_takes_the_place_of_the_schemas() -> None:
    own = Task(model=Logistic(schema()), local_learning_rate=0.1, loss=lambda outputs, batch: torch.zeros(1))
    assert own.loss_for(schema()) is own.loss
