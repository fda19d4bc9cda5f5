"""Canary users of a federated run: made-up users of its silos, who are drawn by the plan's own sampler like all others.

Each is put in by the toss of a fair coin, into as many silos as the plan lets a user be in. Nobody else is drawn,
clipped or noised any differently, and what a run costs is the same: its claim is about every user, whoever else there
is. An audit guesses from the noised means of the rounds which canaries were put in (`privads.attacks`).
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from federation.cohort import LocalTraining, of_users
from federation.parties import Parties, PlantedParties
from federation.plan import FederatedPlan
from federation.sums import UserSums, Weights
from federation.task import Task, names_of_tables
from privads.attacks.canaries import Canaries, WithCanaries, entropy
from privads.attacks.directions import Directions, check_room, one_weight_each, shared
from privads.attacks.ratios import Ratios, along
from privads.attacks.users import CAPS, LOOKS, along_own_rows, made_up
from privads.batch import Batch, Rows, padding, taken
from privads.logs.schema import Schema
from privads.training.sampling import Draw
from privads.training.tables import SparseSum

Amplitudes = NDArray[np.float64] | float


class _Sends(Protocol):
    """What canaries bring to a round."""

    @property
    def rows(self) -> Batch:
        """A row for each canary."""
        ...

    @property
    def directions(self) -> Sequence[Directions | None]:
        """Of each watched parameter, along which canaries are looked for."""
        ...

    def amplitudes(self, clip_norm: float) -> Amplitudes:
        """How far one that is drawn goes along its direction, in clip norms: (supposed, canaries), or one number."""
        ...

    def begin(self, number: int, weights: Weights) -> None:
        """Look at what round ``number``, from 0, starts at."""
        ...

    def sums(
        self, local: LocalTraining, rows: WithCanaries, draw: Draw, weights: Weights, clip_norm: float
    ) -> UserSums:
        """Returns what the canaries of a draw add to the sum."""
        ...


class Pushes:
    """Canaries that add exactly ``clip_norm`` along a direction of their own, made behind the clipping."""

    def __init__(self, count: int, task: Task, schema: Schema, watched: Mapping[str, Tensor], seed: int) -> None:
        generator, parameters = np.random.default_rng(seed), list(watched.values())
        rooms = [one.numel() for one in parameters]
        check_room(count, sum(rooms), what="weights")
        self.rows = padding(schema, count)
        self.directions = one_weight_each(parameters, shared(count, rooms), generator)
        self._task, self._named = task, dict(zip(watched, self.directions, strict=True))

    def amplitudes(self, clip_norm: float) -> float:
        """Returns 1: a canary's contribution is as long as a user's may be."""
        return 1.0

    def begin(self, number: int, weights: Weights) -> None:
        """Directions stay what they are."""

    def sums(
        self, local: LocalTraining, rows: WithCanaries, draw: Draw, weights: Weights, clip_norm: float
    ) -> UserSums:
        """Returns the sum of the canaries' pushes; they name no row of a table, and their rows are not trained on."""
        amounts = torch.from_numpy(rows.canaries_in(draw.row_numbers, self.rows.rows).clip(max=1) * clip_norm)
        found = self._task.nothing(weights)
        dense, tables = dict(found.dense), dict(found.tables)
        for name, direction in self._named.items():
            if direction is None:
                continue
            whole = torch.zeros(weights[name].shape, dtype=torch.float64)
            whole = direction.add(whole, amounts[direction.of])
            if name in dense:
                dense[name] = whole
            else:
                (ids,) = torch.nonzero(whole.any(1), as_tuple=True)
                tables[name] = SparseSum(ids, whole[ids], len(whole))
        return UserSums(users=draw.units, within=draw.units, dense=dense, tables=tables)


class MadeUpUsers:
    """Canaries with a row of their own, trained on and clipped like everybody's.

    They are looked for along what they would send of the largest table, `LOOKS` times in a run: the attacker knows the
    model that was sent, and so what each canary's update is.
    """

    def __init__(self, count: int, task: Task, schema: Schema, plan: FederatedPlan, seed: int) -> None:
        self.rows = made_up(schema, count, np.random.default_rng(seed))
        self._every = max(1, plan.rounds // LOOKS)
        self._local = LocalTraining(task, schema)
        weights = {name: one.detach() for name, one in task.model.named_parameters() if one.requires_grad}
        self._names = list(weights)
        tables = names_of_tables(task.model)
        if not tables:
            raise ValueError("canaries of kind 'user' are looked for in a table, and this model trains none")
        self._table = max(tables, key=lambda name: len(weights[name]))
        self._look(weights)

    def amplitudes(self, clip_norm: float) -> NDArray[np.float64]:
        """Returns how far each goes, were its update clipped to so many clip norms: (supposed, canaries)."""
        found: NDArray[np.float64] = self._lengths * np.minimum(1 / clip_norm, np.array(CAPS)[:, None] / self._norms)
        return found

    def begin(self, number: int, weights: Weights) -> None:
        """Look anew at what canaries would send."""
        if number and number % self._every == 0:
            self._look(weights)

    def sums(
        self, local: LocalTraining, rows: WithCanaries, draw: Draw, weights: Weights, clip_norm: float
    ) -> UserSums:
        """Returns the clipped sum of the canaries' updates."""
        return local.cohort_sums(rows, draw, weights, clip_norm=clip_norm)

    def _look(self, weights: Weights) -> None:
        count, size = self.rows.rows, self._local.users_at_once
        sent, norms = [], []
        with torch.random.fork_rng(devices=[]):  # dropout of a look must not change that of the cohort
            for first in range(0, count, size):
                batch = taken(self.rows, np.arange(first, min(first + size, count)))
                updates = self._local.updates(batch, torch.arange(batch.rows), batch.rows, weights)
                table = updates.tables[self._table]
                sent.append((table.owners + first, table.ids, table.values))
                norms.append(updates.norms())
        owners, ids, values = (torch.cat(one) for one in zip(*sent, strict=True))
        total = torch.zeros(weights[self._table].shape, dtype=torch.float64).index_add_(0, ids, values.double())
        pairs = torch.stack([owners, ids], dim=1).numpy()
        direction, self._lengths = along_own_rows(total.numpy(), pairs, count)
        self.directions = [direction if name == self._table else None for name in self._names]
        self._norms = torch.cat(norms).clamp(min=1e-30).numpy()


class Watch:
    """What an audited run carries along: it plants canaries, watches the rounds' noised means, and scores each canary.

    Scores are sums of log-likelihood ratios over rounds (`privads.attacks.ratios`).
    """

    threat_model = "sees the noised mean of every round, and knows what all but the canaries added to it"

    def __init__(
        self, included: NDArray[np.bool_], plan: FederatedPlan, names: Sequence[str], sends: _Sends, *, silos: int
    ) -> None:
        """names: of the parameters whose noise a round's mean shows, in the order of the directions of ``sends``."""
        self.included, self._plan, self._names, self._sends, self._silos = included, plan, names, sends, silos
        self._others, self._round, self._begun = np.zeros(len(included)), 0, False
        supposed = np.shape(sends.amplitudes(1.0))
        self._ratios = Ratios(sends.directions, len(included), plan, supposed[0] if supposed else 1)

    def planted(self, rows: Rows, silo: int) -> WithCanaries:
        """Returns a silo's rows with those of its canaries behind them.

        Canary i is in the silos i, i + 1, ..., around again, as many as the plan lets a user be in.
        """
        numbers = np.flatnonzero(self.included)
        mine = numbers[(silo - numbers) % self._silos < min(self._plan.silos, self._silos)]
        return WithCanaries(rows, taken(self._sends.rows, mine), mine)

    def over(self, local: LocalTraining) -> "AuditedTraining":
        """Returns the training of a silo's draw, of whose canaries this watch takes note."""
        return AuditedTraining(self, local)

    def sums(
        self, local: LocalTraining, rows: WithCanaries, draw: Draw, weights: Weights, clip_norm: float
    ) -> UserSums:
        """Returns the clipped sum over a draw, and remembers what of it is not the canaries'."""
        if not self._begun:
            self._sends.begin(self._round, weights)
            self._begun = True
        theirs = canaries_of(rows, draw)
        others = local.cohort_sums(rows, of_users(draw, ~theirs), weights, clip_norm=clip_norm)
        mine = self._sends.sums(local, rows, of_users(draw, theirs), weights, clip_norm)
        watched = [None if direction is None else others.of(name) for name, direction in self._directions]
        self._others += along(watched, self._sends.directions, len(self.included))
        return others + mine

    @property
    def _directions(self) -> list[tuple[str, Directions | None]]:
        return list(zip(self._names, self._sends.directions, strict=True))

    def see(self, mean: Mapping[str, Tensor], clip_norm: float) -> None:
        """Adds each canary's log-likelihood ratio of this round to its score."""
        watched = [None if direction is None else mean[name] for name, direction in self._directions]
        total = along(watched, self._sends.directions, len(self.included)) * self._plan.cohort
        self._ratios.add((total - self._others) / clip_norm, self._sends.amplitudes(clip_norm))
        self._others, self._round, self._begun = np.zeros_like(self._others), self._round + 1, False

    @property
    def blunt(self) -> bool:
        """Whether what canaries send is short beside the clip norm."""
        return self._ratios.blunt

    def scores(self, model: nn.Module) -> NDArray[np.float64]:
        """Returns the sums of the log-likelihood ratios."""
        return self._ratios.total


class AuditedTraining:
    """Stands for `LocalTraining` in a silo with canaries."""

    def __init__(self, watch: Watch, local: LocalTraining) -> None:
        self._watch, self._local = watch, local

    def named(self, rows: Rows, draw: Draw) -> dict[str, Tensor]:
        """Returns, per table, the rows that the users of a draw will read; pushes are never in tables that owe."""
        others = of_users(draw, ~canaries_of(rows, draw))
        return self._local.named(rows, others)

    def cohort_sums(self, rows: Rows, draw: Draw, weights: Weights, *, clip_norm: float) -> UserSums:
        """Returns the clipped sum over the users of a draw, canaries among them."""
        if not isinstance(rows, WithCanaries):
            raise TypeError("the rows of a silo with canaries are WithCanaries")
        return self._watch.sums(self._local, rows, draw, weights, clip_norm)


def canaries_of(rows: Rows, draw: Draw) -> NDArray[np.bool_]:
    """Returns (units,) which places of a draw hold a canary."""
    found = np.zeros(draw.units, dtype=bool)
    if isinstance(rows, WithCanaries):
        found[draw.owners[draw.row_numbers >= rows.first]] = True
    return found


def watch_for(
    canaries: Canaries, parties: Parties, task: Task, plan: FederatedPlan, *, insecure_seed: int | None
) -> Watch:
    """Returns the watch of these canaries, planted; refuses what a run cannot be audited by. Reads no row."""
    canaries.check(plan.budget)
    if not isinstance(parties, PlantedParties):
        raise ValueError("canaries are users of silos in this process: audit with federation.federate, not over nodes")
    if plan.mechanism == "local":
        raise ValueError("canaries need noise of the server, mechanism 'central': users who noise send it to be seen")
    if canaries.kind == "row":
        raise ValueError("canaries of a federated run are of kind 'gradient' or 'user', not 'row'")
    generator = entropy(insecure_seed)
    included = canaries.tossed(generator)
    seed = int(generator.integers(2**62))
    weights = {name: one.detach() for name, one in task.model.named_parameters() if one.requires_grad}
    if canaries.kind == "user":
        if plan.table_noise != "dense":
            raise ValueError(
                "canaries of kind 'user' are looked for in tables that get their noise at every round: plan with "
                "table_noise 'dense', or plant canaries of kind 'gradient'"
            )
        sends: _Sends = MadeUpUsers(canaries.count, task, parties.schema, plan, seed)
        names = list(weights)
    else:
        apart = () if plan.table_noise == "dense" else names_of_tables(task.model)
        watched = {name: one for name, one in weights.items() if name not in apart}
        sends, names = Pushes(canaries.count, task, parties.schema, watched, seed), list(watched)
    watch = Watch(included, plan, names, sends, silos=parties.silos)
    parties.plant(watch)
    return watch
