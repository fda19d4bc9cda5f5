"""`Task`: what a user trains, on which of their rows and for how long; one value for every backend."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from federation.sums import UserSums, Weights
from privads.logs.schema import Schema
from privads.models import losses
from privads.models.layers import FusedTable
from privads.training.clipping import UnsupportedModel
from privads.training.probe import Loss

_NUMBERS = ("local_learning_rate", "local_steps", "rows_per_user", "local_rows")


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Local training: ``local_steps`` steps of plain SGD from the model that was sent, on one user's rows alone.

    A step takes ``theta <- theta - local_learning_rate * mean over rows of the gradient``; the update that a user
    sends is ``theta_sent - theta_local``: a server's SGD of step 1 is federated averaging (McMahan et al. 2017).

    model: as `privads.models` has them, ``forward(batch) -> {task: logit (rows,)}``; its parameters that require a
    gradient are trained, and nothing else of it changes: buffers, such as counters, are neither sent nor noised.
    loss: (outputs, batch) -> (rows,), without a mean; by default that of the schema's labels.
    rows_per_user: most rows that a user trains on in a round, a fresh random choice where there are more.
    local_rows: rows of a local step: step s takes the user's rows s b, s b + 1, ..., around again at the end; None
    takes all of them at each step.
    """

    model: nn.Module
    local_learning_rate: float
    local_steps: int = 1
    rows_per_user: int = 32
    local_rows: int | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        for name in ("local_steps", "rows_per_user", "local_rows"):
            value = getattr(self, name)
            if name == "local_rows" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not 0 < self.local_learning_rate < math.inf:
            raise ValueError(f"local_learning_rate must be positive, got {self.local_learning_rate}")
        check_model(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers of the local training, for reports, checkpoints and parties that must agree on them."""
        return {name: getattr(self, name) for name in _NUMBERS}

    def nothing(self, weights: Weights, *, sparse: bool = True) -> UserSums:
        """Returns the sum over nobody. sparse: with the rows of tables that users touched, not with whole tables."""
        return UserSums.nothing(weights, tables=[name for name in names_of_tables(self.model) if sparse])

    def loss_for(self, schema: Schema) -> Loss:
        """Returns the task's own loss, or that of the schema's labels."""
        return losses.for_schema(schema) if self.loss is None else self.loss


def tables_of(model: nn.Module) -> dict[str, FusedTable]:
    """Returns {name: layer} of the tables of which a user holds only the rows that their own rows name."""
    return {name: one for name, one in model.named_modules() if isinstance(one, FusedTable)}


def names_of_tables(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that are tables and are trained."""
    return [f"{name}.weight" for name, one in tables_of(model).items() if one.weight.requires_grad]


def check_model(model: nn.Module) -> None:
    """Raises `UnsupportedModel` where users' models could not be trained side by side, or not from their rows alone."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise UnsupportedModel(f"layer {name!r} keeps statistics of rows, padding among them: use nn.LayerNorm")
        if any(isinstance(one, UninitializedParameter) for one in module.parameters(recurse=False)):
            raise UnsupportedModel(f"layer {name!r} has no shape yet: give its sizes")
        if isinstance(module, FusedTable) and type(module) is not FusedTable:
            raise UnsupportedModel(f"layer {name!r} is a subclass of FusedTable: use FusedTable itself")
    held: dict[int, str] = {}
    tables = {f"{name}.weight" if name else "weight" for name in tables_of(model)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = held.setdefault(id(parameter), name)
        if other != name and tables & {other, name}:
            raise UnsupportedModel(f"{name!r} and {other!r} are one table: use one layer in both places")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise UnsupportedModel("users are trained on the processor: move the model there with model.cpu()")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UnsupportedModel("the model has no parameter that requires a gradient: there is nothing to train")
