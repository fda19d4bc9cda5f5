"""The server's side of a run whose silos are nodes elsewhere: ask, close each round by the clock, check what comes.

What carries the letters is a `Post`, such as Flower's grid (`federation.flower`). A node that is late, fails or sends
what cannot be used counts as zero, and changes nothing for the others.
"""

import logging
import math
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from federation.messages import Letter, MessageError, Request, agreement, read_named, read_sums
from federation.plan import FederatedPlan
from federation.sums import SentRows, UserSums, Weights
from federation.task import Task, names_of_tables
from privads.logs.schema import Schema
from privads.training.tables import Runs
from privads.training.working import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 1.0
_FEW, _AT_ONCE, _AT_ONCE_BYTES = 64, 64, 1 << 26


@dataclass(frozen=True, eq=False)
class Reply:
    """What came back to the message named ``to``: a letter, or what is wrong. away: nobody was there to answer."""

    to: str
    letter: Letter | MessageError
    away: bool = False


class Post(Protocol):
    """What carries letters to nodes and back."""

    def nodes(self) -> Collection[int]:
        """Returns the nodes that have registered."""
        ...

    def send(self, action: str, letters: Mapping[int, Letter], *, number: int, seconds: float) -> dict[str, int]:
        """Returns {name of a message: node} of those that were sent. seconds: how long an answer is waited for."""
        ...

    def replies(self, names: Sequence[str]) -> Iterator[Reply]:
        """Yields the replies that are there to the messages of these names."""
        ...


class Nodes:
    """The nodes that a post reaches, each a silo of any number of users: `federation.parties.SparseParties`.

    name: of the post, for the report. Who takes part is fixed by `check`: a node that registers later is not asked. A
    round of a plan of table_noise "lazy" is two exchanges, each ``round_seconds`` long at most; a node is sent the rows
    that its own cohort named, and learns nothing of what another's reads.
    """

    features = None

    def __init__(
        self,
        post: Post,
        *,
        name: str,
        schema: Schema,
        nodes: int,
        round_seconds: float,
        wait_seconds: float,
        not_covered: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
            raise ValueError(f"nodes must be a whole number of at least 1, got {nodes!r}")
        if not round_seconds > 0:
            raise ValueError(f"round_seconds must be positive, got {round_seconds}")
        self._post, self.schema, self.silos = post, schema, nodes
        self.round_seconds, self.wait_seconds = round_seconds, wait_seconds
        self.backend = f"{name}, {nodes} {'node' if nodes == 1 else 'nodes'}"
        self._not_covered = not_covered
        self._asked: tuple[int, ...] = ()
        self._run, self._session, self._resumed = uuid.uuid4().hex, secrets.token_hex(8), False
        self._opened: tuple[Task, FederatedPlan, dict[str, str]] | None = None
        self._named: dict[int, dict[str, Tensor]] = {}

    @property
    def split(self) -> str:
        """Which rows are trained on, in words."""
        return f"the rows that each of {self.silos} nodes was given by who runs it"

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What reaching them in this way leaves open, for the report."""
        return (
            *self._not_covered,
            "Users of a node whose software does not sample, clip and sum as the plan says: every node sees to its own "
            "users, and none can undo what protects another's.",
            "Whether and when a node answers: one that is late or fails counts as zero, also where its rows are why.",
        )

    def check(self) -> None:
        """Wait until all nodes have registered. Raises TimeoutError where some do not, ValueError where more do."""
        ends, pause = time.monotonic() + self.wait_seconds, _PAUSE_SECONDS
        while len(found := sorted(self._post.nodes())) < self.silos:
            if time.monotonic() >= ends:
                raise TimeoutError(
                    f"{len(found)} of {self.silos} nodes had registered after {self.wait_seconds:g} s: start the "
                    "others, or raise wait_seconds; nothing was charged"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if len(found) > self.silos:
            raise ValueError(
                f"nodes must be the number of nodes that registered, {len(found)}, got {self.silos}: stop those that "
                "do not belong to the run, or count them in nodes and population"
            )
        self._asked = tuple(found)

    def open(self, task: Task, plan: FederatedPlan, *, insecure_seed: int | None, secure: bool) -> None:
        """Note what every request must say; the nodes read rows when they are asked first."""
        agreed = agreement(task, plan, self.schema, insecure_seed=insecure_seed, secure=secure)
        self._opened = task, plan, agreed

    def named(self, number: int) -> dict[str, Tensor]:
        """Returns, per table, the rows that the cohorts of round ``number`` will read; kept for each node apart."""
        task, plan, _ = self._ready
        rows = dict(task.model.named_parameters())
        tables = {name: len(rows[name]) for name in names_of_tables(task.model)}
        asked = dict.fromkeys(self._asked, self._request(number, plan.clip_norm).letter({}))

        def read(found: Letter) -> dict[str, Tensor]:
            return read_named(found, number, tables)

        size = 8 * sum(tables.values())
        self._named = dict(self._answers("name", asked, number, read, size=size))
        none = torch.zeros(0, dtype=torch.int64)
        return {name: Runs.of(torch.cat([none, *(one[name] for one in self._named.values())])).keys for name in tables}

    def sums(self, number: int, weights: Weights, *, clip_norm: float) -> Iterator[UserSums]:
        """Yields the sum of each node that answers round ``number`` in time, as it comes in."""
        task, plan, _ = self._ready
        nothing = task.nothing(weights, sparse=plan.mechanism == "central")
        request = self._request(number, clip_norm)
        if any(isinstance(one, SentRows) for one in weights.values()):
            asked = {node: request.letter(_own(weights, named)) for node, named in self._named.items()}
        else:
            asked = dict.fromkeys(self._asked, request.letter(weights))
        size = 8 * sum(one.shape.numel() for one in weights.values())
        counting = plan.table_noise == "adafest"

        def read(found: Letter) -> UserSums:
            return read_sums(found, number, nothing, counting=counting)

        for _, found in self._answers("sum", asked, number, read, size=size):
            yield found

    def standing(self) -> dict[str, Any]:
        """Returns what a resume needs to know: under which name the nodes know the run."""
        return {"run": self._run, "silos": self.silos}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on under the run's name, in a session of its own. The report tells of the most nodes that there were."""
        if "run" not in standing:
            raise CheckpointError("the checkpoint is of a run in one process: resume it there")
        self._run, self._resumed = standing["run"], True
        self.silos = max(self.silos, standing["silos"])

    @property
    def _ready(self) -> tuple[Task, FederatedPlan, dict[str, str]]:
        if self._opened is None:
            raise RuntimeError("open comes first")
        return self._opened

    def _request(self, number: int, clip_norm: float) -> Request:
        return Request(
            run=self._run,
            session=self._session,
            resumed=self._resumed,
            number=number,
            clip_norm=float(clip_norm),
            **self._ready[2],
        )

    def _answers(
        self, action: str, asked: Mapping[int, Letter], number: int, read: Callable[[Letter], T], *, size: int
    ) -> Iterator[tuple[int, T]]:
        """Yields each node with what it answered, as it comes in and until the time is over.

        Few nodes are looked up one by one, so that what one sends cannot take another's with it; of many, so many at a
        time that their answers, of ``size`` bytes at most, fit into a bounded memory.
        """
        at_once = 1 if len(asked) <= _FEW else max(1, min(_AT_ONCE, _AT_ONCE_BYTES // max(size, 1)))
        closes = time.monotonic() + self.round_seconds  # fixed before anybody is asked
        waiting = self._post.send(action, asked, number=number, seconds=self.round_seconds)
        refused = dict.fromkeys(set(asked) - set(waiting.values()), "it could not be asked")
        away = len(refused)
        pause = _PAUSE_SECONDS
        while waiting or (away and math.isfinite(closes)):
            last = time.monotonic() >= closes
            for reply in self._pulled(list(waiting), at_once):
                node = waiting.pop(reply.to, None)
                if node is None:  # it answered before, or what it was not asked
                    continue
                away += reply.away
                try:
                    if isinstance(reply.letter, MessageError):
                        raise reply.letter
                    found = read(reply.letter)
                except MessageError as error:
                    refused[node] = str(error)
                    continue
                yield node, found
            if last:
                break
            if waiting or away:
                time.sleep(max(0.0, min(pause, closes - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        for node in waiting.values():
            refused[node] = "it did not answer in time"
        for node, text in refused.items():
            logger.warning("round %d: node %d counts as zero: %s", number, node, text)

    def _pulled(self, names: Sequence[str], at_once: int) -> Iterator[Reply]:
        for first in range(0, len(names), at_once):
            yield from self._post.replies(names[first : first + at_once])


def _own(weights: Weights, named: Mapping[str, Tensor]) -> dict[str, Tensor | SentRows]:
    """Returns the weights with only those rows of tables that a node named itself."""
    return {
        name: SentRows(named[name], one.at(named[name]), one.rows) if isinstance(one, SentRows) else one
        for name, one in weights.items()
    }
