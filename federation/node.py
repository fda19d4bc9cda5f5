"""What a silo does when a server asks it for a round, wherever the silo runs and whatever carries the request.

It does not take the server's word for what protects its users: who is drawn, the clip and the noise come from the
silo's own plan, and a request under any other is refused before a row is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from federation.clipping import clip_norms
from federation.cohort import LocalTraining
from federation.messages import Answer, MessageError, Raw, Request, agreement, read_weights
from federation.plan import FederatedPlan
from federation.population import Silo, check_users, randomness_of
from federation.task import Task
from privads.batch import Rows
from privads.charge import check_protected
from privads.training import working

RowsOfNode = Callable[[Mapping[str, Any]], Rows]
"""Makes a silo's rows from its configuration, such as ``lambda config: Logs(config["path"], schema)``; reads none."""


def rows_of(rows: Rows | RowsOfNode, config: Mapping[str, Any]) -> Rows:
    """Returns the rows of the silo that has this configuration."""
    return rows(config) if callable(rows) else rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """What a silo keeps of a run between two rounds. run, session, number: of the last request that it answered.

    sent: how often each of its users has sent an update, where the plan limits that.
    """

    run: str
    session: str
    number: int
    sent: Tensor | None

    def keep(self, file: Path) -> None:
        """Write it, for its owner alone."""
        working.write(file, asdict(self))

    @classmethod
    def kept(cls, file: Path) -> "Memory | None":
        """Returns what `keep` wrote, if it did."""
        return cls(**working.read(file)) if file.exists() else None


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

    def answer(
        self, request: Request, weights: Mapping[str, Raw], memory: Memory | None, *, lasting: bool
    ) -> tuple[Answer, Memory]:
        """Returns the answer, and what is to be remembered before it is sent.

        memory: of the last request of any run; None where there is none. lasting: whether it outlives the server's
        connection; where it does not, a silo that counts its users' updates cannot go on after a resume that it has not
        seen the beginning of. Raises `MessageError` for what it does not answer.
        """
        mine = memory if memory is not None and memory.run == request.run else None
        self._check(request, mine, lasting=lasting)
        given = read_weights(weights, self.task)
        silo, local = self._open(request.number)
        counts = self.plan.participations is not None
        if counts:
            silo.restore(torch.zeros(len(silo.sent), dtype=torch.int64) if mine is None else _sent(mine))
        sums = silo.sums(local, given, clip_norm=request.clip_norm)
        return Answer.of(sums, number=request.number, plan=self.plan), Memory(
            run=request.run,
            session=request.session,
            number=request.number,
            sent=torch.from_numpy(silo.sent.copy()) if counts else None,
        )

    def _check(self, request: Request, memory: Memory | None, *, lasting: bool) -> None:
        for what, digest in self._agreed.items():
            if getattr(request, what) != digest:
                raise MessageError(f"the server's {what} is not this node's: both must be made alike")
        if not 1 <= request.number <= self.plan.rounds:
            raise MessageError(f"the plan has no round {request.number}")
        least, most = clip_norms(self.plan, request.number)
        if not least <= request.clip_norm <= most:
            raise MessageError(f"the plan's clip norm of round {request.number} is not {request.clip_norm:g}")
        if memory is not None and memory.session == request.session and request.number <= memory.number:
            raise MessageError(f"round {request.number} was answered before")
        if memory is None and request.resumed and self.plan.participations is not None and not lasting:
            raise MessageError(
                "this node does not know how often its users sent an update: give it a folder to keep it"
            )

    def _open(self, number: int) -> tuple[Silo, LocalTraining]:
        randomness = randomness_of(self.number, number, **self._source)
        if self._opened is None:
            rows_per_user = self.task.rows_per_user
            self._opened = (
                Silo(self.rows, self.plan, rows_per_user=rows_per_user, randomness=randomness),
                LocalTraining(self.task, self.rows.schema),
            )
        self._opened[0].draw_from(randomness)
        return self._opened


def _sent(memory: Memory) -> Tensor:
    if memory.sent is None:
        raise MessageError("what this node kept of the run does not say how often its users sent an update")
    return memory.sent
