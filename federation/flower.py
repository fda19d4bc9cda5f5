"""A federated run over Flower: its nodes are the silos, and its message API carries what `federation.messages` says.

    server:  run = federation.flower.federate(task, plan, grid=grid, schema=schema, nodes=2, round_seconds=600, ...)
    node:    app = federation.flower.client_app(task, rows, plan)

The server's loop is `federation.server.serve`, the same as in one process; the noise, the charge and the optimizer are
there. Of Flower this uses messages, nodes and the grid, and none of its strategies, clipping or noise. This is the only
module that imports it.
"""

import logging
import math
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from accounting.ledger import Ledger
from federation.messages import Answer, MessageError, Raw, Request, agreement, check_weights, packed_weights
from federation.node import Memory, Node, RowsOfNode, rows_of
from federation.plan import FederatedPlan
from federation.rounds import ServerOptimizer, averaging
from federation.run import FederatedRun
from federation.server import Progress, serve
from federation.sums import UserSums
from federation.task import Task
from privads.batch import Rows
from privads.logs.schema import Schema
from privads.training.fit import Checkpoint

if TYPE_CHECKING:
    from flwr.supercore.run import Run

logger = logging.getLogger(__name__)

_RAW = "privads.raw"
_REQUEST, _WEIGHTS, _COUNTS, _STATE, _SENT = "request", "weights", "counts", "privads", "sent"
_PARTS = ("dense", "rows", "values")
_REFUSED, _FAILED = 2, 0
_UNAVAILABLE = frozenset({3, 4, 5})
"""Flower's codes for a message that is gone, a reply that is, and a node that is not there."""

_CLOCKS_SECONDS = 60.0
"""How far the clocks of nodes and server may be apart."""

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 1.0
_PULLED_BYTES = 1 << 26
_PULLED_MESSAGES = 64


def federate(
    task: Task,
    plan: FederatedPlan,
    *,
    grid: Grid,
    schema: Schema,
    nodes: int,
    round_seconds: float,
    wait_seconds: float = 600.0,
    ledger: Ledger | None = None,
    optimizer: ServerOptimizer = averaging,
    progress: Progress | None = None,
    insecure_seed: int | None = None,
    secure: bool = False,
    checkpoint: Checkpoint | None = None,
) -> FederatedRun:
    """Returns the run that trains ``task`` among the users of a grid's nodes as ``plan`` says.

    schema: of the rows of all nodes. nodes: how many there are; all must have registered within ``wait_seconds`` before
    anything is charged. round_seconds: how long a round is open; it ends before only where every node has answered.
    `math.inf` waits for all of them, for a simulation. A node that is late, fails or sends what cannot be used counts
    as zero. insecure_seed, secure: the nodes' apps must be given the same. All else is as for `federation.federate`.
    """
    check_weights(task)
    parties = Nodes(grid, schema=schema, nodes=nodes, round_seconds=round_seconds, wait_seconds=wait_seconds)
    return serve(
        task,
        parties,
        plan,
        ledger=ledger,
        optimizer=optimizer,
        progress=progress,
        insecure_seed=insecure_seed,
        secure=secure,
        checkpoint=checkpoint,
    )


class Nodes:
    """The nodes of a Flower grid, each a silo of any number of users: `federation.server.Parties`.

    Who takes part is fixed by `check`: a node that registers later is not asked.
    """

    features = None

    def __init__(self, grid: Grid, *, schema: Schema, nodes: int, round_seconds: float, wait_seconds: float) -> None:
        if not isinstance(nodes, int) or isinstance(nodes, bool) or nodes < 1:
            raise ValueError(f"nodes must be a whole number of at least 1, got {nodes!r}")
        if not round_seconds > 0:
            raise ValueError(f"round_seconds must be positive, got {round_seconds}")
        self._grid, self.schema, self.silos = grid, schema, nodes
        self.round_seconds, self.wait_seconds = round_seconds, wait_seconds
        self._asked: tuple[int, ...] = ()
        self._run, self._session, self._resumed = uuid.uuid4().hex, secrets.token_hex(8), False
        self._task: Task | None = None
        self._sparse, self._agreed = True, dict[str, str]()

    @property
    def backend(self) -> str:
        """How they are reached, in words."""
        return f"Flower, {self.silos} {'node' if self.silos == 1 else 'nodes'}"

    @property
    def split(self) -> str:
        """Which rows are trained on, in words."""
        return f"the rows that each of {self.silos} nodes was given by who runs it"

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What reaching them over Flower leaves open, for the report."""
        return (
            "What the SuperLink sees: it is the server's, and holds every message as it was sent.",
            "Users of a node whose software does not sample, clip and sum as the plan says: every node sees to its own "
            "users, and none can undo what protects another's.",
            "Whether and when a node answers: one that is late or fails counts as zero, also where its rows are why.",
        )

    def check(self) -> None:
        """Wait until all nodes have registered. Raises TimeoutError where some do not, ValueError where more do."""
        ends, pause = time.monotonic() + self.wait_seconds, _PAUSE_SECONDS
        while len(found := sorted(self._grid.get_node_ids())) < self.silos:
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
        self._task, self._sparse = task, plan.mechanism == "central"
        self._agreed = agreement(task, plan, self.schema, insecure_seed=insecure_seed, secure=secure)

    def sums(self, number: int, weights: Mapping[str, Tensor], *, clip_norm: float) -> Iterator[UserSums]:
        """Yields the sum of each node that answers round ``number`` in time, as it comes in."""
        if self._task is None:
            raise RuntimeError("open comes first")
        closes = time.monotonic() + self.round_seconds  # fixed before anybody is asked
        nothing = self._task.nothing(weights, sparse=self._sparse)
        at_once = _at_once(weights)
        waiting = self._ask(number, weights, clip_norm)
        away, refused = len(self._asked) - len(waiting), dict[int, str]()
        pause = _PAUSE_SECONDS
        while waiting or (away and math.isfinite(closes)):
            last = time.monotonic() >= closes
            for reply in self._pulled(list(waiting), at_once):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None:  # it answered before, or what it was not asked
                    continue
                if reply.has_error() and reply.error.code in _UNAVAILABLE:
                    away += 1
                    continue
                try:
                    found = _answer_of(reply).sums(number, nothing)
                except MessageError as error:
                    refused[node] = str(error)
                    continue
                yield found
            if last:
                break
            if waiting or away:
                time.sleep(max(0.0, min(pause, closes - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if away or waiting or refused:
            logger.warning("round %d: %d of %d nodes did not answer in time", number, away + len(waiting), self.silos)
        for node, text in refused.items():
            logger.warning("round %d: what node %d answered counts as zero: %s", number, node, text)

    def standing(self) -> dict[str, Any]:
        """Returns what a resume needs to know: under which name the nodes know the run."""
        return {"run": self._run}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on under the run's name, in a session of its own."""
        self._run, self._resumed = standing["run"], True

    def _ask(self, number: int, weights: Mapping[str, Tensor], clip_norm: float) -> dict[str, int]:
        """Returns which node was sent which message."""
        request = Request(
            run=self._run,
            session=self._session,
            resumed=self._resumed,
            number=number,
            clip_norm=float(clip_norm),
            **self._agreed,
        )
        content = RecordDict({_REQUEST: ConfigRecord(vars(request).copy()), _WEIGHTS: _record(packed_weights(weights))})
        lives = None if math.isinf(self.round_seconds) else self.round_seconds + _CLOCKS_SECONDS
        messages = [Message(content, node, "train", ttl=lives, group_id=str(number)) for node in self._asked]
        sent = set(self._grid.push_messages(messages))
        return {
            one.metadata.message_id: one.metadata.dst_node_id for one in messages if one.metadata.message_id in sent
        }

    def _pulled(self, identities: Sequence[str], at_once: int) -> Iterator[Message]:
        """Yields the replies that are there, holding only so many at a time."""
        for first in range(0, len(identities), at_once):
            yield from self._grid.pull_messages(identities[first : first + at_once])


def _at_once(weights: Mapping[str, Tensor]) -> int:
    """Returns how many replies are held at a time: their float64 sums take at most as many bytes as given above."""
    size = 8 * sum(one.numel() for one in weights.values())
    return max(1, min(_PULLED_MESSAGES, _PULLED_BYTES // max(size, 1)))


def _record(arrays: Mapping[str, Raw]) -> ArrayRecord:
    return ArrayRecord({name: Array(one.dtype, one.shape, _RAW, one.data) for name, one in arrays.items()})


def _arrays(record: Any) -> dict[str, Raw]:
    """Returns the arrays of a record; refuses what is none. Nothing is copied."""
    if not isinstance(record, ArrayRecord) or any(one.stype != _RAW for one in record.values()):
        raise MessageError("its arrays are not those of this version of privads")
    return {name: Raw(one.dtype, tuple(one.shape), one.data) for name, one in record.items()}


def _answer_of(reply: Message) -> Answer:
    """Returns what a node sent; refuses errors and what has another form."""
    if reply.has_error():
        reason = " ".join((reply.error.reason or "no reason given").split())
        raise MessageError(f"error {reply.error.code}: {reason[:300]}")
    content = reply.content
    if set(content) != {_COUNTS, *_PARTS} or set(content[_COUNTS]) != {"number", "users", "within"}:
        raise MessageError("not an answer to a request of this version of privads")
    counts = cast(Any, content[_COUNTS])
    dense, rows, values = (_arrays(content[part]) for part in _PARTS)
    return Answer(**counts, dense=dense, rows=rows, values=values)


def client_app(
    task: Task,
    rows: Rows | RowsOfNode,
    plan: FederatedPlan,
    *,
    kept: Path | None = None,
    insecure_seed: int | None = None,
    secure: bool = False,
) -> ClientApp:
    """Returns the app of a node: it draws its users, trains, clips and sums as ``plan`` says, and sends the sum.

    rows: of all users of the node, whose unit is the user; or what makes them from the node's configuration. Nothing of
    them is read before the first request that fits plan, task and schema. kept: a folder in which the node keeps, for
    its owner alone, how often each user has sent an update; mechanism "local" needs it to go on after a server that was
    killed has started again. insecure_seed, secure: as the server has them. From a seed nodes draw by the
    ``partition-id`` of their configuration, as the silos of a population do by their place.

    What goes wrong is told to the server without its text where that could be of private rows.
    """
    app = ClientApp()
    made: dict[int, Node] = {}

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config.get("partition-id", context.node_id))
        file = None if kept is None else kept / f"node-{number}"
        try:
            if number not in made:
                own = rows_of(rows, context.node_config)
                made[number] = Node(task, own, plan, number=number, insecure_seed=insecure_seed, secure=secure)
            return Message(_answered(made[number], message, context, file), reply_to=message)
        except MessageError as error:
            return Message(Error(_REFUSED, str(error)), reply_to=message)
        except Exception as error:
            logger.exception("node %d could not answer", number)
            text = f"the node failed ({type(error).__name__}): its own log says why"
            return Message(Error(_FAILED, text), reply_to=message)

    return app


def _answered(node: Node, message: Message, context: Context, file: Path | None) -> RecordDict:
    """Returns the node's answer; what it must remember is kept before."""
    content = message.content
    if set(content) != {_REQUEST, _WEIGHTS}:
        raise MessageError("not a request for a round of this version of privads")
    request = Request.of(cast(Any, content[_REQUEST]))
    memory = _remembered(context) if file is None else Memory.kept(file)
    answer, memory = node.answer(request, _arrays(content[_WEIGHTS]), memory, lasting=file is not None)
    if file is None:
        _remember(context, memory)
    else:
        memory.keep(file)
    counts = ConfigRecord({"number": answer.number, "users": answer.users, "within": answer.within})
    return RecordDict({_COUNTS: counts, **{part: _record(getattr(answer, part)) for part in _PARTS}})


def _remembered(context: Context) -> Memory | None:
    """Returns what the node kept in Flower's state, which lasts as long as Flower's run."""
    if _STATE not in context.state:
        return None
    sent = context.state.get(_SENT)
    return Memory(
        **cast(Any, context.state[_STATE]),
        sent=None if sent is None else _arrays(sent)[_SENT].tensor(_SENT, torch.int64, (None,)),
    )


def _remember(context: Context, memory: Memory) -> None:
    fields = {"run": memory.run, "session": memory.session, "number": memory.number}
    context.state[_STATE] = ConfigRecord(cast(Any, fields))
    if memory.sent is not None:
        context.state[_SENT] = _record({_SENT: Raw.of(memory.sent)})


def server_app(main: Callable[[Grid, Mapping[str, Any]], object]) -> ServerApp:
    """Returns the app that Flower starts on the server: it calls ``main(grid, run_config)``.

    main: opens the ledger, calls `federate`, and saves the run: what it returns is dropped.
    """
    app = ServerApp()

    @app.main()
    def call(grid: Grid, context: Context) -> None:
        main(grid, context.run_config)

    return app


class InProcessGrid(Grid):
    """A grid whose nodes are apps of this process: no SuperLink, no Ray, no sockets. Node k has ``partition-id`` k.

    An app is run when its reply is pulled, in the order of the nodes; what it raises becomes an error reply, as
    Flower's own nodes do it. A node's state lasts as long as the grid.
    """

    def __init__(self, client_apps: Sequence[ClientApp]) -> None:
        self._apps = {number + 1: app for number, app in enumerate(client_apps)}
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": len(self._apps)},
                state=RecordDict(),
                run_config={},
            )
            for node in self._apps
        }
        self._pending: dict[str, Message] = {}
        self._run: Run | None = None
        try:  # a message is made in its name; inside a server app Flower has set it
            TaskIdentity.run_id  # noqa: B018
        except RuntimeError:
            TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: "Run") -> None:
        """Note Flower's run, which this grid has no use for."""
        self._run = run

    @property
    def run(self) -> "Run":
        """What `set_run` was given."""
        if self._run is None:
            raise RuntimeError("an in-process grid is in no run of Flower")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes, from 1."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Returns the messages' names; each waits until its reply is pulled."""
        names = []
        for one in messages:
            name = uuid.uuid4().hex
            one.metadata.__dict__["_message_id"] = name  # as Flower's own grids set it
            self._pending[name] = one
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to these messages, each once."""
        return [self._reply(self._pending.pop(name)) for name in message_ids if name in self._pending]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies to ``messages``; none is ever waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _reply(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self._apps[node](message, self._contexts[node])
        except Exception as error:
            return Message(Error(_REFUSED, f"{type(error)}:<'{error}'>"), reply_to=message)
