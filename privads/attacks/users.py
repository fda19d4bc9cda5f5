"""Canary users: made-up units whose rows go the way of all others, through the model, its gradients and clipping.

Canaries that push weights say nothing of gradients that are clipped wrongly, or not at all; these do. Each has values
at the ends of what the schema allows, categories of its own where there is room, and a label by the toss of a coin,
which nothing but itself can teach a model.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.attacks.canaries import WithCanaries
from privads.attacks.directions import Directions
from privads.attacks.ratios import Ratios, along
from privads.batch import Batch, Rows, taken
from privads.logs.labels import DelayedLabel, ValueLabel
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.tables import SparseSum, tables_of, watched
from privads.training.uses import reads

if TYPE_CHECKING:
    from privads.logs.schema import Schema

_SCORED_ROWS = 1 << 14
"""Most canaries whose loss is computed at a time."""

LOOKS = 20
"""How often in a run the directions of canaries' gradients are computed anew."""

CAPS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""What a canary's gradient may have been clipped to, in clip norms: where it is more than 1, the clipping is wrong."""


class WatchedUsers:
    """Canaries with rows of their own, as many each as the plan lets a unit bring, seen at every step.

    The attacker sees every noised sum, and knows what all but the canaries added to it. Scores are log-likelihood
    ratios along the gradient that a canary would have in its own rows of the tables, see `privads.attacks.ratios`.
    """

    threat_model = "sees every noised sum, and knows what all but the canaries added to it"

    def __init__(
        self,
        included: NDArray[np.bool_],
        plan: TrainPlan,
        made_up: Batch,
        loss: Loss,
        model: nn.Module,
        noised: Sequence[nn.Parameter],
    ) -> None:
        """made_up: a row for each canary, of which it has as many as a unit may bring to a batch."""
        self.included, self._plan, self._made_up = included, plan, made_up
        self._loss, self._model, self._noised = loss, model, noised
        self._rows: WithCanaries | None = None
        self._others, self._clip_norm, self._step = np.zeros(len(included)), 1.0, 0
        self._directions, self._lengths = self._look()
        self._ratios = Ratios(self._directions, len(included), plan, len(CAPS))

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them."""
        self._rows = _planted(rows, self.included, self._made_up, self._plan)
        return self._rows

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Returns the losses: the canaries' rows are rows."""
        return losses

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> Tensor | None:
        """Returns (units,) which are canaries."""
        found = torch.zeros(units, dtype=torch.bool, device=owners.device)
        if self._rows is not None:
            mine = torch.from_numpy(row_numbers >= self._rows.first).to(owners.device)
            found[owners[: len(mine)][mine]] = True
        return found

    def added(
        self, sums: Sequence[Tensor], apart: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> list[Tensor]:
        """Returns the sums, which hold the canaries' gradients like everyone's."""
        if self._step % max(1, self._plan.steps // LOOKS) == 0:
            self._directions, self._lengths = self._look()
        self._step += 1
        count, found = len(self.included), [apart.get(one) for one in self._noised]
        mine = [one.dense() if isinstance(one, SparseSum) else one for one in found]
        self._others = along(sums, self._directions, count) - along(mine, self._directions, count)
        self._clip_norm = clip_norm
        return list(sums)

    def in_tables(
        self, sums: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> Mapping[Tensor, Tensor | SparseSum]:
        """Returns the sums of tables with noise of their own, which hold the canaries' gradients too."""
        return sums

    def see(self, noised: Sequence[Tensor]) -> None:
        """Adds each canary's log-likelihood ratio of this step to its score."""
        seen = along(noised, self._directions, len(self.included)) - self._others
        amplitudes = np.minimum(np.array(CAPS)[:, None], self._lengths / self._clip_norm)
        self._ratios.add(seen / self._clip_norm, amplitudes)

    @property
    def blunt(self) -> bool:
        """Whether canaries' gradients are short beside the clip norm."""
        return self._ratios.blunt

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns the sums of the log-likelihood ratios."""
        return self._ratios.total

    def _look(self) -> tuple[list[Directions | None], NDArray[np.float64]]:
        """Returns, for each parameter, the directions of the canaries' gradients in the largest table, and how long
        those of all rows of a canary are along them: (canaries,).

        One backward pass over a row of each canary gives them. A row of the table that r canaries read has the sum of
        their gradients; divided by r^2, those that a canary has to itself count most.
        """
        tables = tables_of(self._model)
        table = max((one for one in self._noised if one in tables), key=len)
        batch, training = self._made_up.to(table.device), self._model.training
        self._model.eval()  # the hooks of the clipping look at training alone
        with torch.enable_grad(), watched(self._model) as calls:
            losses = self._loss(self._model(batch), batch)
            (gradient,) = torch.autograd.grad(losses.sum(), [table])
        self._model.train(training)
        found = [reads(module, inputs, batch.rows) for module, inputs in calls if module.weight is table]
        pairs = np.unique(np.concatenate([np.stack(one, axis=1) for one in found]), axis=0)  # (canary, row of table)
        direction, lengths = along_own_rows(gradient.numpy(force=True), pairs, batch.rows)
        rows = 1 if self._plan.combined == "mean" else self._plan.rows_per_unit
        return [direction.to(table.device) if one is table else None for one in self._noised], rows * lengths


def along_own_rows(
    gradient: NDArray[np.float64], pairs: NDArray[np.int64], count: int
) -> tuple[Directions, NDArray[np.float64]]:
    """Returns for each of ``count`` canaries a direction, of length 1 or 0, and its gradient's length along it.

    gradient: (rows, width) of the table, summed over canaries. pairs: (n, 2) canary and row that it reads, sorted.
    """
    canaries, read = pairs.T
    readers = np.bincount(read, minlength=len(gradient))[read][:, None]
    counts = np.bincount(canaries, minlength=count)
    within = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = count, int(counts.max(initial=0)), gradient.shape[1]
    places, own, wanted = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape)
    places[canaries, within] = read[:, None] * shape[2] + np.arange(shape[2])
    own[canaries, within] = gradient[read] / readers
    wanted[canaries, within] = gradient[read] / readers**2
    norms = np.linalg.norm(wanted, axis=(1, 2), keepdims=True)
    weights = np.divide(wanted, norms, out=np.zeros(shape), where=norms > 0)
    direction = Directions(
        of=torch.arange(count),
        places=torch.from_numpy(places.reshape(count, -1)),
        weights=torch.from_numpy(weights.reshape(count, -1)),
    )
    return direction, (own * weights).sum(axis=(1, 2))


class FinalUsers:
    """Canaries with rows of their own, seen in the final model alone.

    For tables whose noise is not drawn at every step. Scores are how much a canary's loss has fallen since the start.
    That is little to go by: a tenth of the noise goes unseen, and where the rows that are trained are selected, so does
    having none. What is proved is proved, but that nothing is says nothing of the claim.
    """

    threat_model = "sees the final model, and how it began"
    blunt = True

    def __init__(
        self, included: NDArray[np.bool_], plan: TrainPlan, made_up: Batch, loss: Loss, model: nn.Module
    ) -> None:
        """made_up: a row for each canary, of which it has as many as a unit may bring to a batch."""
        self.included, self._plan, self._made_up, self._loss = included, plan, made_up, loss
        self._begin = self._losses(model)

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them."""
        return _planted(rows, self.included, self._made_up, self._plan)

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Returns the losses: the canaries' rows are rows."""
        return losses

    def apart(self, row_numbers: NDArray[np.int64], owners: Tensor, units: int) -> None:
        """Nobody's sums are looked at."""

    def added(self, sums: Sequence[Tensor], apart: Mapping[Tensor, object], clip_norm: float) -> list[Tensor]:
        """Returns the sums, which hold the canaries' gradients like everyone's."""
        return list(sums)

    def in_tables(
        self, sums: Mapping[Tensor, Tensor | SparseSum], clip_norm: float
    ) -> Mapping[Tensor, Tensor | SparseSum]:
        """Returns the sums of tables with noise of their own, which hold the canaries' gradients too."""
        return sums

    def see(self, noised: Sequence[Tensor]) -> None:
        """Looks at nothing: the final model is all that is seen."""

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


def _planted(rows: Rows, included: NDArray[np.bool_], made_up: Batch, plan: TrainPlan) -> WithCanaries:
    of = np.repeat(np.flatnonzero(included), max(plan.rows_per_unit, plan.records))
    return WithCanaries(rows, taken(made_up, of), of)


def made_up(schema: "Schema", count: int, generator: np.random.Generator) -> Batch:
    """Returns ``count`` rows within the schema's ranges: an unusual user in each.

    Numbers are at one end of their range or the other. A category's bucket is one that no other canary has, where
    there are so many. Labels are 0 or 1, a level 1 or the highest, an amount 0 or the largest: one for all tasks.
    """
    fields = len(schema.categorical)
    ids = np.zeros((count, fields), dtype=np.int64)
    for place, (field, start) in enumerate(zip(schema.categorical.values(), schema.bucket_starts, strict=False)):
        room = np.arange(1, field.buckets)  # bucket 0 is for missing values
        drawn = generator.choice(room, size=count, replace=len(room) < count)
        ids[:, place] = start + drawn
    high = torch.from_numpy(generator.integers(0, 2, count).astype(bool))
    labels, hours = {}, {}
    for task, label in schema.labels.items():
        ends = 0.0, 1.0
        if isinstance(label, ValueLabel):
            ends = 1.0 if label.kind == "ordinal" else 0.0, label.most
        labels[task] = torch.where(high, ends[1], ends[0])
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
