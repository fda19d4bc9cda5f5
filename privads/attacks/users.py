"""Canary users: made-up units whose rows go the way of all others, through the model, its gradients and the clipping.

Canaries that push weights say nothing of gradients that are clipped wrongly, or not at all; these do. Each has values of
its own where the schema leaves room, at the ends of what is allowed, and a label that the model does not begin at, so
that what a model has learned from it is to be seen.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.canaries import WithCanaries, taken
from privads.batch import Batch, Rows
from privads.logs.labels import DelayedLabel, ValueLabel
from privads.training.plan import TrainPlan
from privads.training.probe import Loss

if TYPE_CHECKING:
    from privads.logs.schema import Schema

_SCORED_ROWS = 1 << 14
"""Most canaries whose loss is computed at a time."""


class Users:
    """Canaries with rows of their own, as many each as the plan lets a unit bring.

    The attacker sees the model that is handed out. Scores are how much a canary's loss has fallen since the start.
    """

    threat_model = "sees the final model, and how it began"

    def __init__(
        self, included: NDArray[np.bool_], plan: TrainPlan, made_up: Batch, loss: Loss, model: nn.Module
    ) -> None:
        """made_up: a row for each canary, of which it has as many as a unit may bring to a batch."""
        self.included, self._plan, self._made_up, self._loss = included, plan, made_up, loss
        self._begin = self._losses(model)

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them."""
        of = np.repeat(np.flatnonzero(self.included), max(self._plan.rows_per_unit, self._plan.records))
        return WithCanaries(rows, taken(self._made_up, of), of)

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Returns the losses: the canaries' rows are rows."""
        return losses

    def added(self, sums: Sequence[Tensor], clip_norm: float) -> list[Tensor]:
        """Returns the sums, which hold the canaries' gradients like everyone's."""
        return list(sums)

    def see(self, noised: Sequence[Tensor]) -> None:
        """Looks at nothing: the final model is enough."""

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns how much each canary's loss has fallen."""
        return self._begin - self._losses(model)

    def _losses(self, model: nn.Module) -> NDArray[np.float64]:
        device, training = next(model.parameters()).device, model.training
        numbers = np.arange(self._made_up.rows)
        found = []
        model.eval()
        with torch.no_grad():
            for start in range(0, len(numbers), _SCORED_ROWS):
                batch = taken(self._made_up, numbers[start : start + _SCORED_ROWS]).to(device)
                found.append(self._loss(model(batch), batch).double().numpy(force=True))
        model.train(training)
        return np.concatenate(found)


def made_up(schema: "Schema", count: int, generator: np.random.Generator) -> Batch:
    """Returns ``count`` rows within the schema's ranges: an unusual user in each.

    Numbers are at one end of their range or the other. A category's bucket is one that no other canary has, where
    there are so many. Labels are 1, the largest count or amount, the highest level.
    """
    fields = len(schema.categorical)
    ids = np.zeros((count, fields), dtype=np.int64)
    for place, (field, start) in enumerate(zip(schema.categorical.values(), schema.bucket_starts, strict=False)):
        room = np.arange(1, field.buckets)  # bucket 0 is for missing values
        drawn = generator.choice(room, size=count, replace=len(room) < count)
        ids[:, place] = start + drawn
    labels, hours = {}, {}
    for task, label in schema.labels.items():
        labels[task] = torch.full((count,), label.most if isinstance(label, ValueLabel) else 1.0)
        if isinstance(label, DelayedLabel) and label.waiting:
            hours[task] = torch.tensor([[0.0, label.within_hours]]).repeat(count, 1)
    return Batch(
        dense=torch.from_numpy(2.0 * generator.integers(0, 2, (count, len(schema.numeric))) - 1.0).float(),
        ids=torch.from_numpy(ids.flatten()),
        offsets=torch.arange(count * fields + 1),
        labels=labels,
        observed={task: torch.ones(count, dtype=torch.bool) for task in schema.tasks},
        weights=torch.ones(count),
        hours=hours,
    )
