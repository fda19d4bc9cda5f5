"""What an audited run carries along: it plants canaries, watches the noised sums, and scores each canary at the end."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom
from torch import Tensor, nn

from privads.attacks.canaries import Canaries, WithCanaries, entropy, taken
from privads.attacks.directions import Directions, one_row_each, one_weight_each, shared
from privads.attacks.users import Users, made_up
from privads.batch import Batch, Rows, padding
from privads.training.plan import TrainPlan
from privads.training.probe import Loss
from privads.training.tables import tables_of

PRIOR_DRAWS = 100
"""The plan's noise counts as so many observations when the noise of a parameter is estimated."""


class Watch(Protocol):
    """What the engine asks of an audit. None of it changes what is drawn, clipped or noised of anybody else."""

    threat_model: str
    """What the attacker sees."""

    @property
    def included(self) -> NDArray[np.bool_]:
        """(canaries,) which were put in: secret until the scores are made."""
        ...

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them."""
        ...

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Takes note of the canaries in a batch; returns its losses (rows,), without those of rows that are not rows."""
        ...

    def added(self, sums: Sequence[Tensor], clip_norm: float) -> list[Tensor]:
        """Returns a batch's sums, one for each noised parameter, with what its canaries add."""
        ...

    def see(self, noised: Sequence[Tensor]) -> None:
        """Looks at the same sums after the noise."""
        ...

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns (canaries,) how much what was seen, and the final model, speak for each one's having been put in."""
        ...


class Pushes:
    """Canaries that add ``clip_norm`` along a direction of their own whenever the plan's sampler draws them.

    Their rows are padding, whose loss is 0. The attacker sees every noised sum and knows what everyone else added to
    it, which the claim allows; what is left is ``y = b + noise`` in units of the clip norm, where b is how many of the
    canary's rows were drawn. Scores add up the log-likelihood ratios of all steps, for the plan's sampling rate q and
    number of records k,

        log E[exp((2 y b - b^2) / (2 s^2))],    b ~ Binomial(k, q),

    with s the noise that each parameter is seen to get: where it is less than planned, the scores are the better.

    """

    threat_model = "sees every noised sum, and knows what all others added to it"

    def __init__(
        self, included: NDArray[np.bool_], directions: Sequence[Directions | None], plan: TrainPlan, row: Batch
    ) -> None:
        """row: of padding, what a canary has for a row."""
        self.included, self._directions, self._plan, self._row = included, directions, plan, row
        count, parameters = len(included), len(directions)
        self._rows: WithCanaries | None = None
        self._counts = np.zeros(count, dtype=np.int64)
        self._others, self._clip_norm = np.zeros(count), 1.0
        self._scores = np.zeros(count)
        self._parameter = np.zeros(count, dtype=np.int64)
        for number, one in enumerate(directions):
            if one is not None:
                self._parameter[one.of.numpy(force=True)] = number
        self._squares = np.full(parameters, PRIOR_DRAWS * plan.noise_multiplier**2)
        self._observations = np.full(parameters, float(PRIOR_DRAWS))
        self._drawn = np.arange(plan.records + 1)
        self._log_chance = binom.logpmf(self._drawn, plan.records, plan.sampling_rate)

    def planted(self, rows: Rows) -> Rows:
        """Returns the rows with those of the canaries behind them: one each, or as many as the plan has records."""
        of = np.repeat(np.flatnonzero(self.included), self._plan.records)
        self._rows = WithCanaries(rows, taken(self._row, np.zeros(len(of), dtype=np.int64)), of)
        return self._rows

    def drawn(self, row_numbers: NDArray[np.int64], losses: Tensor) -> Tensor:
        """Counts the canaries in a batch, and takes their rows' losses out."""
        if self._rows is None:
            return losses
        self._counts += self._rows.canaries_in(row_numbers, len(self.included))
        mine = np.zeros(len(losses), dtype=bool)
        mine[: len(row_numbers)] = row_numbers >= self._rows.first
        return losses.masked_fill(torch.from_numpy(mine).to(losses.device), 0.0)

    def added(self, sums: Sequence[Tensor], clip_norm: float) -> list[Tensor]:
        """Returns the sums with ``clip_norm`` along the direction of every canary that was drawn."""
        self._others, self._clip_norm = self._along(sums), clip_norm
        amounts = torch.from_numpy(self._counts * clip_norm)
        found = [
            one if direction is None else direction.add(one, amounts.to(one)[direction.of])
            for one, direction in zip(sums, self._directions, strict=True)
        ]
        self._counts = np.zeros_like(self._counts)
        return found

    def see(self, noised: Sequence[Tensor]) -> None:
        """Adds each canary's log-likelihood ratio of this step to its score."""
        seen = (self._along(noised) - self._others) / self._clip_norm
        self._squares += np.bincount(self._parameter, seen**2, minlength=len(self._squares))
        self._observations += np.bincount(self._parameter, minlength=len(self._squares))
        variance = np.maximum(self._squares / self._observations, 1e-12)[self._parameter]
        b = self._drawn[:, None]
        exponent = b * (seen - b / 2) / variance + self._log_chance[:, None]  # (records + 1, canaries)
        self._scores += logsumexp(exponent, axis=0)

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns the sums of the log-likelihood ratios."""
        return self._scores

    def _along(self, values: Sequence[Tensor]) -> NDArray[np.float64]:
        found = np.zeros(len(self.included))
        for value, direction in zip(values, self._directions, strict=True):
            if direction is not None:
                found[direction.of.numpy(force=True)] = direction.along(value.detach()).numpy(force=True)
        return found


def watch_for(
    canaries: Canaries,
    plan: TrainPlan,
    model: nn.Module,
    loss: Loss | None,
    rows: Rows,
    noised: Sequence[nn.Parameter],
    *,
    insecure_seed: int | None,
) -> Watch:
    """Returns the watch of these canaries; refuses what a run cannot be audited by. Reads no row.

    noised: the parameters whose sums are noised whole at every step.
    """
    if not plan.private:
        raise ValueError("a run without privacy makes no claim to audit: leave out the canaries")
    generator = entropy(insecure_seed)
    included = canaries.tossed(generator)
    if canaries.kind == "user":
        if loss is None:
            raise ValueError("canaries of kind 'user' are scored by the loss: give make_private the loss")
        return Users(included, plan, made_up(rows.schema, canaries.count, generator), loss, model)
    tables = tables_of(model)
    rooms = [one.numel() if canaries.kind == "gradient" else len(one) * (one in tables) for one in noised]
    if sum(rooms) < canaries.count:
        what = "weights" if canaries.kind == "gradient" else "rows of tables"
        raise ValueError(
            f"each of {canaries.count} canaries needs a direction of its own, and {sum(rooms)} {what} of this model get "
            "their noise at every step: plant fewer, or canaries of kind 'user'"
        )
    make = one_weight_each if canaries.kind == "gradient" else one_row_each
    directions = make(noised, shared(canaries.count, rooms), generator)
    return Pushes(included, directions, plan, padding(rows.schema))
