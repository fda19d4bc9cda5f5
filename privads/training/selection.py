"""Embedding tables of which only selected rows are noised and stepped: DP-AdaFEST and DP-FEST.

A unit u that reads n_u rows of the tables adds ``v_u = indicator of those rows / sqrt(n_u)``, so ``||v_u||_2 <= 1``.
Of V rows

    M = {j : sum_u v_u[j] + N(0, s^2) >= tau}

is private at the cost of one Gaussian of noise multiplier s, and so may decide which rows are touched at all: the
clipped sums are restricted to M, rows of M are noised whether a unit reads them or not, and any elementwise optimizer
steps them (Ghazi et al. 2023, arXiv 2311.08357, algorithm 1). "adafest" selects at every step from the batch
(`select_anew`), "fest" once from all units (`uses.touched_by_all`, `select_once`). Every step's model is private, not
only the last one; the price is that a row which few units read is rarely trained.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privads.noise import Randomness
from privads.training.tables import SparseSum

Select = Callable[[Tensor, SparseSum], Tensor]
"""(table (rows, dim), counts (rows, 1) of this step's units) -> ids (n,) of the rows to step, each once, ascending."""

SELECTABLE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
)
"""Optimizers that treat each weight by itself, and whose state of a row starts at 0 or is made at once."""

_DRAWN = 1 << 20
"""Most gaps drawn at a time, to bound memory."""


# The law of selection


def default_threshold(*, rows: int, batch: int, noise_std: float) -> float:
    """Returns ``tau = s Q^-1(min(1/2, batch / V))``, with Q the upper tail of the standard normal.

    A row that no unit reads passes with probability ``Q(tau / s) = batch / V``, so a step selects at most about
    ``batch`` such rows: no more than a batch of one id each would read. rows: V, of all tables together; batch:
    expected units (of fest: how many unread rows may be selected); noise_std: s.

    >>> round(default_threshold(rows=10_000_000, batch=4096, noise_std=1.0), 2)
    3.35
    """
    if rows < 1 or batch < 1:
        raise ValueError(f"rows and batch must be at least 1, got {rows} and {batch}")
    return -noise_std * NormalDist().inv_cdf(min(0.5, batch / rows))


def selected_rows(counts: SparseSum, *, threshold: float, noise_std: float, randomness: Randomness) -> Tensor:
    """Returns ids (n,), ascending, of ``{j : counts_j + N(0, noise_std^2) >= threshold}`` among all of a table's rows.

    Noise is drawn for the rows that have a count. Of the others each passes by itself with probability
    ``p = Q(threshold / noise_std)``, so which of them do is drawn from the gaps between successes, which are
    geometric: the cost is that of the counts and of the selected rows, however many rows the table has.

    counts: of (rows, 1). The same law as dense thresholding, up to the 2^-52 resolution of the uniform numbers.
    """
    if not (noise_std > 0 and math.isfinite(noise_std) and math.isfinite(threshold)):
        raise ValueError(f"selection needs a positive noise_std and a finite threshold, got {noise_std}, {threshold}")
    ids, values = counts.ids.numpy(force=True), counts.values.double().flatten()
    noisy = values + randomness.normal_like(values, noise_std=noise_std)
    passed = (noisy >= threshold).numpy(force=True)
    chance = math.erfc(threshold / (noise_std * math.sqrt(2))) / 2
    empty = _successes(counts.rows - len(ids), chance, randomness)
    # Rank r among the rows without a count is row r + k, where k rows with a count lie below it.
    empty += np.searchsorted(ids - np.arange(len(ids)), empty, side="right")
    return torch.from_numpy(np.sort(np.concatenate([ids[passed], empty]))).to(counts.ids.device)


def _successes(trials: int, chance: float, randomness: Randomness) -> NDArray[np.int64]:
    """Returns which of ``trials`` succeed, ascending, each by itself with probability ``chance`` = p.

    The next success is ``1 + G`` trials on, for G geometric: ``P[G >= g] = (1 - p)^g``.
    """
    if trials < 1 or chance <= 0:
        return np.zeros(0, dtype=np.int64)
    if chance >= 1:
        return np.arange(trials)
    found, last = [], -1
    while last < trials:
        expected = chance * (trials - 1 - last)
        drawn = min(int(expected + 6 * math.sqrt(expected)) + 8, _DRAWN)
        gaps = randomness.geometric(drawn, rate=-math.log1p(-chance))  # infinitely far is far enough
        found.append(last + np.cumsum(np.minimum(gaps, trials).astype(np.int64) + 1))
        last = int(found[-1][-1])
    places = np.concatenate(found)
    return places[: np.searchsorted(places, trials)]


def select_anew(randomness: Randomness, *, threshold: float, noise_std: float) -> Select:
    """Returns what selects at each step from the rows that the step's units read: adafest."""
    return lambda _, counts: selected_rows(counts, threshold=threshold, noise_std=noise_std, randomness=randomness)


def select_once(
    touched: Mapping[Tensor, SparseSum], randomness: Randomness, *, threshold: float, noise_std: float
) -> Select:
    """Returns what selects the same rows at every step, chosen now from what all units read: fest.

    touched: of every table, from `touched_by_all`.
    """
    law = partial(selected_rows, threshold=threshold, noise_std=noise_std, randomness=randomness)
    return select_these({weight: law(counts) for weight, counts in touched.items()})


def select_these(fixed: Mapping[Tensor, Tensor]) -> Select:
    """Returns what selects the same rows of each table at every step."""
    return lambda weight, _: fixed[weight]


def select_touched(_: Tensor, counts: SparseSum) -> Tensor:
    """Returns the rows that have a count: what the twin without privacy steps. Not private."""
    return counts.ids


class Selecting(Protocol):
    """What a selection asks of a plan: `privads.TrainPlan`, or `federation.FederatedPlan`, whose batch is a cohort."""

    @property
    def table_noise(self) -> str:
        """Which rows are noised."""
        ...

    @property
    def batch(self) -> int:
        """Expected units per step."""
        ...

    @property
    def selection_noise_multiplier(self) -> float | None:
        """Of the counts of used rows; None without privacy."""
        ...

    @property
    def selection_threshold(self) -> float | None:
        """A row is used where its count is at least this; None for `default_threshold`."""
        ...


def selection(
    plan: Selecting, rows: int, randomness: Randomness, *, touched: Mapping[Tensor, SparseSum] | None = None
) -> Select:
    """Returns what selects rows as the plan says; rows: V, of all tables together.

    touched: what all units read, for "fest", which without it has not chosen yet.
    """
    noise_std = plan.selection_noise_multiplier
    if noise_std is None:
        return select_touched
    threshold = plan.selection_threshold
    if threshold is None:
        threshold = default_threshold(rows=rows, batch=plan.batch, noise_std=noise_std)
    if plan.table_noise == "adafest":
        return select_anew(randomness, threshold=threshold, noise_std=noise_std)
    return select_once(touched or {}, randomness, threshold=threshold, noise_std=noise_std)


# The step


def check_selectable(tables: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError unless the optimizer can step some rows of a table as it would step all. tables: with names."""
    known = ", ".join(one.__name__ for one in SELECTABLE)
    for group in optimizer.param_groups:
        held = [tables[one] for one in group["params"] if one in tables]
        if not held:
            continue
        if type(optimizer) not in SELECTABLE:
            raise ValueError(
                f"table_noise 'adafest' and 'fest' step {held[0]!r} with one of {known}, not "
                f"{type(optimizer).__name__}: use one of them, or plan with table_noise='dense'"
            )
        if group.get("dampening"):
            raise ValueError(
                f"table_noise 'adafest' and 'fest' need dampening 0 on {held[0]!r}, got {group['dampening']}: "
                "it treats a weight's first step unlike the others, and rows have theirs at different steps"
            )
        if group.get("plain_sgd") and (type(optimizer) is not torch.optim.SGD or group["momentum"]):
            raise ValueError(
                f"the group of {held[0]!r} was made for table_noise 'lazy': under 'adafest' and 'fest' "
                f"{type(optimizer).__name__} steps tables by its own rule, so give it model.parameters()"
            )


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows ``ids`` (n,) of a table, as the parameter ``rows`` (n, dim) that stands in for it during a step."""

    weight: nn.Parameter
    ids: Tensor
    rows: nn.Parameter


class SelectedTables:
    """Lets any of `SELECTABLE` step the selected rows of tables, each with its own state. tables: with their names.

    Guarantees (each with a test of its own):
    - every selected row's gradient is ``(clipped sum + N(0, noise_std^2)) / batch``, whether a unit read it or not;
    - of other rows neither weight nor state changes: no decay of either, as if the step had not been;
    - after a step, also one that raises, the optimizer holds the tables and states of their full size; what a step
      that raised would have written to the tables is dropped.

    State without a row of its own, such as Adam's count of steps, is the table's. A step reads and writes the selected
    rows of weight and state once; only the state's first step costs room and time of the table's size.
    """

    def __init__(
        self,
        tables: Mapping[nn.Parameter, str],
        optimizer: torch.optim.Optimizer,
        randomness: Randomness,
        *,
        batch: int,
        select: Select,
    ) -> None:
        check_selectable(tables, optimizer)
        self._names, self._optimizer, self._randomness = tables, optimizer, randomness
        self._batch, self.select = batch, select
        self._tables = dict.fromkeys(
            one for group in optimizer.param_groups for one in group["params"] if one in tables
        )

    def __contains__(self, parameter: object) -> bool:
        return any(parameter is one for one in self._tables)

    def flush(self) -> None:
        """Do nothing: no row owes noise, after any step."""

    def detach(self) -> None:
        """Do nothing: the model has no hooks."""

    def chosen(self) -> list[Tensor]:
        """Returns the rows of each table that were selected once for all, in the order of the tables."""
        return [self.select(one, SparseSum.nothing(one, 1)) for one in self._names]

    @contextmanager
    def stepping(
        self, sums: Mapping[Tensor, Tensor | SparseSum], touched: Mapping[Tensor, SparseSum], *, noise_std: float
    ) -> Iterator[None]:
        """Within it the inner optimizer's ``step()`` steps the selected rows in place of the tables.

        sums: clipped sums, with norm at most C of each unit. touched: (rows, 1) of each table, ``sum_u v_u`` of the
        batch. A table may be missing from both: it is selected from and noised all the same. noise_std: of the sums.
        """
        check_selectable(self._names, self._optimizer)  # a scheduler may have changed a group
        groups, state = self._optimizer.param_groups, self._optimizer.state
        with torch.no_grad():
            parts = {one: self._part(one, sums.get(one), touched.get(one), noise_std) for one in self._tables}
        held = [group["params"] for group in groups]
        try:
            for weight, part in parts.items():
                if weight in state:
                    state[part.rows] = {name: _rows_of(value, part) for name, value in state[weight].items()}
            for group, parameters in zip(groups, held, strict=True):
                group["params"] = [parts[one].rows if one in parts else one for one in parameters]
            yield
        finally:
            for group, parameters in zip(groups, held, strict=True):
                group["params"] = parameters
            stepped = {weight: state.pop(part.rows, {}) for weight, part in parts.items()}
        with torch.no_grad():
            for weight, part in parts.items():
                weight.index_copy_(0, part.ids, part.rows)
                for name, value in stepped[weight].items():
                    state[weight][name] = _put_back(state[weight].get(name), value, part)

    def _part(
        self, weight: nn.Parameter, summed: Tensor | SparseSum | None, counts: SparseSum | None, noise_std: float
    ) -> _Part:
        ids = self.select(weight, SparseSum.nothing(weight, 1) if counts is None else counts)
        part = _Part(weight, ids, nn.Parameter(weight.index_select(0, ids)))
        gradient = _sums_at(summed, part)
        if noise_std:
            gradient += self._randomness.normal_like(gradient, noise_std=noise_std)
        part.rows.grad = gradient.div_(self._batch).to(part.rows.dtype)
        return part


def _sums_at(summed: Tensor | SparseSum | None, part: _Part) -> Tensor:
    """Returns (n, dim) the sum at each selected row, in memory of its own."""
    if isinstance(summed, Tensor):
        return summed.index_select(0, part.ids)
    if summed is None:
        return torch.zeros_like(part.rows)
    return summed.at(part.ids)


def _rows_of(value: Any, part: _Part) -> Any:
    """Returns the selected rows of a state of the table's shape, and a copy of any other."""
    if not isinstance(value, Tensor):
        return value
    return value.index_select(0, part.ids) if value.shape == part.weight.shape else value.clone()


def _put_back(full: Any, value: Any, part: _Part) -> Any:
    """Returns the table's state after its selected rows' has become ``value``."""
    if not isinstance(value, Tensor) or value.shape != part.rows.shape:
        return value
    full = torch.zeros_like(part.weight) if full is None else full
    return full.index_copy_(0, part.ids, value)
