"""Registered users, in one silo or several: who joins a round, how often they did, and what their silo adds up."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.canaries import AuditedTraining, Watch
from federation.cohort import LocalTraining, of_users
from federation.identity import Identified, allowed, fingerprint, key_of
from federation.plan import FederatedPlan
from federation.sums import UserSums, Weights
from federation.task import Task
from privads.attacks.canaries import WithCanaries
from privads.batch import Rows
from privads.logs.schema import Schema
from privads.noise import Randomness
from privads.training.sampling import Draw, Numbers, PoissonSampler
from privads.training.tables import Runs
from privads.training.working import CheckpointError

Population = Rows | Sequence[Rows]
"""The rows of all users, or those of each silo; a user is a unit of them."""


def silos_of(population: Population) -> tuple[Rows, ...]:
    """Returns the silos; rows by themselves are one. Raises ValueError where public facts differ; reads no row."""
    silos = tuple(population) if isinstance(population, Sequence) else (population,)
    if not silos:
        raise ValueError("a population must have at least one silo, got none")
    for one in silos:
        if not all(hasattr(one, name) for name in ("schema", "take")):  # asking for units would read rows
            raise ValueError(f"a {type(one).__name__} is no source of users' rows: pass Logs, or your own privads.Rows")
        if one.schema != silos[0].schema:
            raise ValueError("all silos must have one schema: their fields, labels and data set are the task's")
    return silos


def check_users(schema: Schema, plan: FederatedPlan) -> None:
    """Raises ValueError where the rows of ``schema`` have no users, or others than the plan protects."""
    if not schema.unit:
        raise ValueError("users need unit columns: add unit = [COLUMN] to the schema")
    if plan.budget is not None:
        schema.check_unit(plan.budget.unit)
        schema.check_history(plan.budget.unit)


def randomness_of(silo: int, number: int, *, insecure_seed: int | None, secure: bool = False) -> Randomness:
    """Returns the randomness of a silo in round ``number``; from a seed the same wherever and whenever it is made."""
    if insecure_seed is None:
        return Randomness(secure=secure)
    return Randomness(insecure_seed=int(np.random.SeedSequence([insecure_seed, silo, number]).generate_state(1)[0]))


class Silo:
    """The users of one silo, who join every round independently with the plan's sampling rate.

    Reads whose the rows are. A user of more rows than ``rows_per_user`` brings a random choice of them. Where the plan
    limits how often a user sends an update, one who did so that often is left out of what is drawn, and so are users
    who are not among the ``allowed`` (users,), None for all: other silos use their rows.
    """

    def __init__(
        self,
        rows: Rows,
        plan: FederatedPlan,
        *,
        rows_per_user: int,
        randomness: Randomness,
        allowed: NDArray[np.bool_] | None = None,
    ) -> None:
        self.rows, self.plan, self._units, self._randomness = rows, plan, rows.units, randomness
        self._sampler = PoissonSampler(
            self._units,
            sampling_rate=plan.sampling_rate,
            rows_per_unit=rows_per_user,
            generator=randomness.generator,
        )
        users = int(self._units.max()) + 1 if len(self._units) else 0
        self.sent: Numbers = np.zeros(users, dtype=np.int64)  # by each user so far
        self.drawn: Draw | None = None  # the cohort whose rows were named
        if allowed is not None and isinstance(rows, WithCanaries):  # of users behind those that silos may share
            allowed = np.concatenate([allowed, np.ones(len(np.unique(rows.of)), dtype=bool)])
        if allowed is not None and len(allowed) != users:
            raise ValueError(f"a silo of {users} users was told of {len(allowed)}: tell of each")
        self._allowed = allowed
        self.who = "" if plan.participations is None else fingerprint(rows)

    def draw_from(self, randomness: Randomness) -> None:
        """Take all that is drawn from now on from here."""
        self._randomness, self._sampler.generator = randomness, randomness.generator

    def draw(self) -> Draw:
        """Returns who takes part in a round, with their rows."""
        drawn, most = self._sampler.draw(), self.plan.participations
        users = np.zeros(drawn.units, dtype=np.int64)
        users[drawn.owners] = self._units[drawn.row_numbers]  # every unit of the rows has one
        if most is not None or self._allowed is not None:
            may = np.ones(len(users), dtype=bool) if self._allowed is None else self._allowed[users]
            if most is not None:
                may &= self.sent[users] < most
            drawn = of_users(drawn, may)
            users = users[may]
        self.sent[users] += 1
        return drawn

    def named(self, local: LocalTraining | AuditedTraining) -> dict[str, Tensor]:
        """Returns, per table, the rows that a fresh cohort will read; the next `sums` are those of this cohort."""
        self.drawn = self.draw()
        return local.named(self.rows, self.drawn)

    def sums(self, local: LocalTraining | AuditedTraining, weights: Weights, *, clip_norm: float) -> UserSums:
        """Returns the sum over a cohort of its users' clipped updates: the one whose rows were named, or a fresh one.

        Under mechanism "local" each user adds N(0, (noise_multiplier clip_norm)^2) to every number of every table; n
        such noises are one of sqrt(n) times the size.
        """
        drawn, self.drawn = self.drawn or self.draw(), None
        with _fresh_dropout(self._randomness):
            found = local.cohort_sums(self.rows, drawn, weights, clip_norm=clip_norm)
        if self.plan.mechanism == "central":
            return found
        return found.noised(self.plan.noise_multiplier * clip_norm * math.sqrt(found.users), self._randomness)

    def restore(self, sent: Tensor, who: str) -> None:
        """Go on from how often each user had sent an update. who: the users by whose numbers that was counted."""
        if len(sent) != len(self.sent) or who != self.who:
            raise CheckpointError("a silo's users are not those that the run was on: start a new run")
        self.sent = sent.numpy().copy()


class Members:
    """The silos of a population, all in this process: `federation.parties.SparseParties`.

    shared_units: the unit columns name a user alike in all silos, and at most the plan's ``silos`` of them use the rows
    of one (`federation.identity`).
    """

    def __init__(self, population: Population, *, shared_units: bool = False) -> None:
        self._rows, self.limited = silos_of(population), shared_units
        self._silos: list[Silo] = []
        self._local: LocalTraining | AuditedTraining | None = None
        self._watch: Watch | None = None
        self._source: dict[str, Any] = {}

    @property
    def schema(self) -> Schema:
        """Of all silos."""
        return self._rows[0].schema

    @property
    def silos(self) -> int:
        """How many there are."""
        return len(self._rows)

    @property
    def backend(self) -> str:
        """How they are reached, in words."""
        return "this process"

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What reaching them in this way leaves open: nothing."""
        return ()

    @property
    def split(self) -> str:
        """Which rows are trained on, in words."""
        return "; ".join(dict.fromkeys(getattr(one, "split_text", "all rows") for one in self._rows))

    @property
    def features(self) -> Any:
        """The fitted transforms by which the rows are read, if any."""
        return getattr(self._rows[0], "features", None)

    def check(self) -> None:
        """Refuse files that are missing and columns that do not fit; reads no row."""
        for one in self._rows:
            one.check()
            if self.limited and not isinstance(one, Identified):
                raise ValueError(
                    f"a {type(one).__name__} cannot tell which users silos share: give it a method identifiers(key), "
                    "or leave out shared_units"
                )

    def plant(self, watch: Watch) -> None:
        """Have canaries among the users."""
        self._watch = watch

    def open(self, task: Task, plan: FederatedPlan, *, insecure_seed: int | None, secure: bool) -> None:
        """Read whose the rows are."""
        local = LocalTraining(task, self.schema, counting=plan.table_noise == "adafest")
        self._local = local if self._watch is None else self._watch.over(local)
        self._source = {"insecure_seed": insecure_seed, "secure": secure}
        may: list[NDArray[np.bool_]] | list[None] = [None] * len(self._rows)
        if self.limited and len(self._rows) > plan.silos:
            key = key_of(self.schema.dataset)
            may = allowed([one.identifiers(key) for one in self._rows if isinstance(one, Identified)], silos=plan.silos)
        self._silos = [
            Silo(
                rows if self._watch is None else self._watch.planted(rows, silo),
                plan,
                rows_per_user=task.rows_per_user,
                randomness=randomness_of(silo, 0, **self._source),
                allowed=may[silo],
            )
            for silo, rows in enumerate(self._rows)
        ]

    def named(self, number: int) -> dict[str, Tensor]:
        """Returns, per table, the rows that the cohorts of round ``number`` will read."""
        each = []
        for place, silo in enumerate(self._silos):
            silo.draw_from(randomness_of(place, number, **self._source))
            each.append(silo.named(self._ready))
        names = {name for one in each for name in one}
        return {name: Runs.of(torch.cat([one[name] for one in each if name in one])).keys for name in sorted(names)}

    def sums(self, number: int, weights: Weights, *, clip_norm: float) -> Iterator[UserSums]:
        """Yields the clipped sum of each silo for round ``number``."""
        for place, silo in enumerate(self._silos):
            silo.draw_from(randomness_of(place, number, **self._source))
            yield silo.sums(self._ready, weights, clip_norm=clip_norm)

    @property
    def _ready(self) -> LocalTraining | AuditedTraining:
        if self._local is None:
            raise RuntimeError("open comes first")
        return self._local

    def standing(self) -> dict[str, Any]:
        """Returns what a resume needs to know: which silos use whose rows, and where the plan limits that how often
        each user of a silo has sent an update. Of other plans nothing is kept, or decided, by who the users are."""
        counted = [one for one in self._silos if one.plan.participations is not None]
        return {
            "silos": len(self._rows),
            "limited": self.limited,
            "sent": [torch.from_numpy(one.sent) for one in counted],
            "who": [one.who for one in counted],
        }

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what `standing` was, after `open`."""
        if standing.get("silos") != len(self._rows):
            raise CheckpointError("the checkpoint is of a run with another number of silos: give the same")
        if standing["limited"] != self.limited:
            raise CheckpointError("the checkpoint is of a run with another shared_units: resume with the same")
        for silo, sent, who in zip(self._silos, standing["sent"], standing["who"], strict=False):
            silo.restore(sent, who)


@contextlib.contextmanager
def _fresh_dropout(randomness: Randomness) -> Iterator[None]:
    """Dropout draws from torch's own generator: a seed that others know would undo what sampling hides."""
    before = torch.random.get_rng_state()
    torch.manual_seed(int(randomness.generator.integers(2**62)))
    try:
        yield
    finally:
        torch.random.set_rng_state(before)
