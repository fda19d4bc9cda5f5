"""What a silo does when a server asks it for a round, wherever the silo runs and whatever carries the request.

It does not take the server's word for what protects its users: who is drawn, the clip and the noise come from the
silo's own plan, and a request under any other is refused before a row is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from federation.clipping import clip_norms
from federation.cohort import LocalTraining
from federation.messages import (
    Letter,
    MessageError,
    Raw,
    Request,
    agreement,
    named_letter,
    read_weights,
    sums_letter,
)
from federation.plan import FederatedPlan
from federation.population import Silo, check_users, randomness_of
from federation.task import Task
from privads.batch import Rows
from privads.charge import check_protected
from privads.training import working
from privads.training.clipping import UnsupportedModel
from privads.training.sampling import Draw, Numbers

_DRAWN = ("drawn_rows", "drawn_owners")

RowsOfNode = Callable[[Mapping[str, Any]], Rows]
"""Makes a silo's rows from its configuration, such as ``lambda config: Logs(config["path"], schema)``; reads none."""


def rows_of(rows: Rows | RowsOfNode, config: Mapping[str, Any]) -> Rows:
    """Returns the rows of the silo that has this configuration."""
    return rows(config) if callable(rows) else rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """What a silo keeps of a run between two requests. run, session: of the last one that it answered.

    number: the last round whose sums it sent, 0 for none. named: the last round whose rows it named, and ``drawn`` the
    cohort that will read them: the numbers of their rows, who owns each, and how many there are. sent: how often each
    user has sent an update, where the plan limits that. who: those users, by `federation.identity.fingerprint`.
    """

    run: str
    session: str
    number: int = 0
    named: int = 0
    sent: Tensor | None = None
    who: str = ""
    drawn: tuple[Tensor, Tensor, int] | None = None

    def keep(self, file: Path) -> None:
        """Write it, for its owner alone."""
        working.write(file, vars(self))

    def letter(self) -> Letter:
        """Returns it as records, for a place that keeps letters."""
        drawn = () if self.drawn is None else self.drawn[:2]
        arrays = dict(zip(_DRAWN, drawn, strict=False)) | ({} if self.sent is None else {"sent": self.sent})
        facts = {name: getattr(self, name) for name in ("run", "session", "number", "named", "who")}
        units = {} if self.drawn is None else {"units": self.drawn[2]}
        return {"memory": facts | units, "memory_arrays": {name: Raw.of(one) for name, one in arrays.items()}}

    @classmethod
    def of(cls, letter: Letter) -> "Memory | None":
        """Returns what `letter` wrote, if it did; other records are left alone."""
        if "memory" not in letter:
            return None
        facts, arrays = dict(letter["memory"]), letter["memory_arrays"]
        found = {name: one.tensor(name, torch.int64, (None,)) for name, one in arrays.items()}
        drawn = (found[_DRAWN[0]], found[_DRAWN[1]], facts.pop("units")) if "units" in facts else None
        return cls(**facts, sent=found.get("sent"), drawn=drawn)

    @classmethod
    def kept(cls, file: Path) -> "Memory | None":
        """Returns what `keep` wrote, if it did."""
        return cls(**working.read(file)) if file.exists() else None


Answered = tuple[Letter, Memory]
"""What a silo sends, and what it must remember before it does."""


class Node:
    """A silo that answers a server's requests. number: by which it is told from others, for a seed of randomness.

    Nothing of ``rows`` is read before the first request that it does not refuse. Raises `MessageError` for rows that
    the plan does not fit.
    """

    def __init__(
        self,
        task: Task,
        rows: Rows,
        plan: FederatedPlan,
        *,
        number: int,
        insecure_seed: int | None = None,
        secure: bool = False,
    ) -> None:
        try:
            check_protected(rows.schema, insecure_seed=insecure_seed, private=plan.private)
            check_users(rows.schema, plan)
            rows.check()
        except ValueError as error:  # of public facts: no row was read
            raise MessageError(str(error)) from None
        self.task, self.rows, self.plan, self.number = task, rows, plan, number
        self._source: dict[str, Any] = {"insecure_seed": insecure_seed, "secure": secure}
        self._agreed = agreement(task, plan, rows.schema, **self._source)
        self._opened: tuple[Silo, LocalTraining] | None = None

    def name_rows(self, letter: Letter, memory: Memory | None) -> Answered:
        """Returns the rows of tables that a fresh cohort will read, and what is to be remembered before they are sent.

        memory: of the last request of any run; None where there is none. Raises `MessageError` for what it does not
        answer.
        """
        request, mine = self._checked(letter, memory)
        if self.plan.table_noise != "lazy":
            raise MessageError("the plan has no rows named before a round")
        if request.number <= mine.named:
            raise MessageError(f"the rows of round {request.number} were named before")
        silo, local = self._open(request.number)
        named = silo.named(local)
        drawn = None if silo.drawn is None else _packed(silo.drawn)
        return named_letter(request.number, named), replace(mine, named=request.number, drawn=drawn)

    def sum_updates(self, letter: Letter, memory: Memory | None, *, lasting: bool) -> Answered:
        """Returns the clipped sums of a round, and what is to be remembered before they are sent.

        lasting: whether the memory outlives the server's connection; where it does not, a silo that counts its users'
        updates cannot go on after a resume that it has not seen the beginning of.
        """
        request, mine = self._checked(letter, memory)
        if request.number <= mine.number:
            raise MessageError(f"round {request.number} was answered before")
        counts, fresh = self.plan.participations is not None, memory is None or memory.run != request.run
        if fresh and counts and request.resumed and not lasting:
            raise MessageError(
                "this node does not know how often its users sent an update: give it a folder to keep it"
            )
        lazy = self.plan.table_noise == "lazy"
        if lazy and (mine.named != request.number or mine.drawn is None):
            raise MessageError(f"the rows of round {request.number} were not named")
        given = read_weights(letter, self.task)
        silo, local = self._open(request.number)
        if counts:
            none = torch.zeros(len(silo.sent), dtype=torch.int64)
            silo.restore(none if mine.sent is None else mine.sent, silo.who if mine.sent is None else mine.who)
        silo.drawn = _unpacked(mine.drawn) if lazy and mine.drawn is not None else None
        if silo.drawn is not None and not _of_users(silo.drawn, self.rows.units):
            raise MessageError("this node's rows are not those of which it named some: the round is lost")
        sums = silo.sums(local, given, clip_norm=request.clip_norm)
        sent = torch.from_numpy(silo.sent.copy()) if counts else None
        mine = replace(mine, number=request.number, sent=sent, who=silo.who, drawn=None)
        return sums_letter(sums, request.number, self.plan), mine

    def _checked(self, letter: Letter, memory: Memory | None) -> tuple[Request, Memory]:
        """Returns the request, and what is remembered of its run; refuses one that does not fit the silo's own plan."""
        request = Request.of(letter)
        for what, digest in self._agreed.items():
            if getattr(request, what) != digest:
                raise MessageError(f"the server's {what} is not this node's: both must be made alike")
        if not 1 <= request.number <= self.plan.rounds:
            raise MessageError(f"the plan has no round {request.number}")
        least, most = clip_norms(self.plan, request.number)
        if not least <= request.clip_norm <= most:
            raise MessageError(f"the plan's clip norm of round {request.number} is not {request.clip_norm:g}")
        if memory is None or (memory.run != request.run and memory.sent is None):
            memory = Memory(run=request.run, session=request.session)
        elif memory.run != request.run and self.plan.participations is not None:
            raise MessageError(
                "this node's users have sent updates in another run, and the plan's limit is about all that they send: "
                "another run costs them again, so give the node a new folder to keep it"
            )
        elif memory.session != request.session:  # another session may ask again
            memory = Memory(run=request.run, session=request.session, sent=memory.sent, who=memory.who)
        return request, memory

    def _open(self, number: int) -> tuple[Silo, LocalTraining]:
        randomness = randomness_of(self.number, number, **self._source)
        if self._opened is None:
            counting, rows_per_user = self.plan.table_noise == "adafest", self.task.rows_per_user
            local = LocalTraining(self.task, self.rows.schema, counting=counting)
            try:
                local.check_apart(self.rows.schema)
            except UnsupportedModel as error:  # of made-up rows
                raise MessageError(str(error)) from None
            self._opened = (Silo(self.rows, self.plan, rows_per_user=rows_per_user, randomness=randomness), local)
        self._opened[0].draw_from(randomness)
        return self._opened


def _packed(drawn: Draw) -> tuple[Tensor, Tensor, int]:
    return torch.from_numpy(drawn.row_numbers), torch.from_numpy(drawn.owners), drawn.units


def _of_users(drawn: Draw, units: Numbers) -> bool:
    """Whether the rows of each owner are those of one user, and of no other owner: else one would be clipped twice."""
    if drawn.row_numbers.max(initial=-1) >= len(units):
        return False
    pairs = np.unique(np.stack([drawn.owners, units[drawn.row_numbers]]), axis=1)
    return all(len(np.unique(one)) == pairs.shape[1] for one in pairs)


def _unpacked(drawn: tuple[Tensor, Tensor, int]) -> Draw:
    rows, owners, units = drawn
    return Draw(row_numbers=rows.numpy(), owners=owners.numpy(), units=units, sampled=units)
