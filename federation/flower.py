"""A federated run over Flower: its nodes are the silos, and its message API carries what `federation.messages` says.

    server:  run = federation.flower.federate(task, plan, grid=grid, schema=schema, nodes=2, round_seconds=600, ...)
    node:    app = federation.flower.client_app(task, rows, plan)

The server's loop is `federation.server.serve`, the same as in one process; the noise, the charge and the optimizer are
there. Of Flower this uses messages, nodes and the grid, and none of its strategies, clipping or noise. This is the only
module that imports it.
"""

import logging
import math
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from accounting.ledger import Ledger
from federation.messages import Letter, MessageError, Raw, check_weights
from federation.node import Answered, Memory, Node, RowsOfNode, rows_of
from federation.nodes import Nodes, Reply
from federation.plan import FederatedPlan
from federation.rounds import ServerOptimizer, averaging
from federation.run import FederatedRun
from federation.server import Progress, serve
from federation.task import Task
from privads.attacks.canaries import Canaries
from privads.batch import Rows
from privads.logs.schema import Schema
from privads.training.fit import Checkpoint

if TYPE_CHECKING:
    from flwr.supercore.run import Run

logger = logging.getLogger(__name__)

_RAW = "privads.raw"
_REFUSED, _FAILED = 2, 0
_UNAVAILABLE = frozenset({3, 4, 5})
"""Flower's codes for a message that is gone, a reply that is, and a node that is not there."""

_CLOCKS_SECONDS = 60.0
"""How far the clocks of nodes and server may be apart."""

_NOT_COVERED = ("What the SuperLink sees: it is the server's, and holds every message as it was sent.",)
_NOT_COVERED_LOCAL = (
    "What users send in further runs: a node that keeps a folder answers one run, but one without counts anew in each "
    "run of Flower.",
)


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
    canaries: Canaries | None = None,
) -> FederatedRun:
    """Returns the run that trains ``task`` among the users of a grid's nodes as ``plan`` says.

    schema: of the rows of all nodes. nodes: how many there are; all must have registered within ``wait_seconds`` before
    anything is charged. round_seconds: how long a round is open; it ends before only where every node has answered.
    `math.inf` waits for all of them, for a simulation. canaries: refused, they are users of this process. A node that
    is late, fails or sends what cannot be used counts as zero. insecure_seed, secure: the nodes' apps must be given the
    same. All else is as for `federation.federate`.
    """
    check_weights(task)
    parties = Nodes(
        _GridPost(grid),
        name="Flower",
        schema=schema,
        nodes=nodes,
        round_seconds=round_seconds,
        wait_seconds=wait_seconds,
        not_covered=_NOT_COVERED + (_NOT_COVERED_LOCAL if plan.mechanism == "local" else ()),
    )
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
        canaries=canaries,
    )


class _GridPost:
    """A grid as `federation.nodes.Post`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Collection[int]:
        return list(self._grid.get_node_ids())

    def send(self, action: str, letters: Mapping[int, Letter], *, number: int, seconds: float) -> dict[str, int]:
        lives = None if math.isinf(seconds) else seconds + _CLOCKS_SECONDS
        contents = {id(one): _content(one) for one in letters.values()}  # one for all who are sent the same
        messages = [
            Message(contents[id(one)], node, f"train.{action}", ttl=lives, group_id=str(number))
            for node, one in letters.items()
        ]
        sent = set(self._grid.push_messages(messages))
        return {
            one.metadata.message_id: one.metadata.dst_node_id for one in messages if one.metadata.message_id in sent
        }

    def replies(self, names: Sequence[str]) -> Iterator[Reply]:
        try:
            found = list(self._grid.pull_messages(names))
        except (DecodeError, ValueError, TypeError, KeyError):  # in what a node sent, which is no message then
            for name in names if len(names) > 1 else ():
                yield from self.replies([name])
            if len(names) == 1:
                yield Reply(names[0], MessageError("Flower cannot read what it sent"))
            return
        for one in found:
            to = one.metadata.reply_to_message_id
            try:
                if one.has_error():
                    reason = " ".join((one.error.reason or "no reason given").split())
                    error = MessageError(f"error {one.error.code}: {reason[:300]}")
                    yield Reply(to, error, away=one.error.code in _UNAVAILABLE)
                else:
                    yield Reply(to, _letter(one.content))
            except MessageError as error:
                yield Reply(to, error)


def _content(letter: Letter) -> RecordDict:
    return RecordDict({name: _record(record) for name, record in letter.items()})


def _record(record: Mapping[str, Any]) -> ArrayRecord | ConfigRecord:
    if all(isinstance(one, Raw) for one in record.values()):
        return ArrayRecord({name: Array(one.dtype, one.shape, _RAW, one.data) for name, one in record.items()})
    return ConfigRecord(dict(record))


def _letter(content: RecordDict) -> Letter:
    """Returns what a message holds; refuses arrays in another form. Nothing is copied."""
    letter: dict[str, Mapping[str, Any]] = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            if any(one.stype != _RAW for one in record.values()):
                raise MessageError("its arrays are not those of this version of privads")
            letter[name] = {key: Raw(one.dtype, tuple(one.shape), one.data) for key, one in record.items()}
        else:
            letter[name] = dict(record)
    return letter


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

    def answer(message: Message, context: Context, act: Callable[[Node, Letter, Memory | None], Answered]) -> Message:
        number = int(context.node_config.get("partition-id", context.node_id))
        # Not by the node's number, which the server gives out: under another one it would count from nothing.
        place = context.node_config.get("partition-id")
        file = None if kept is None else kept / ("node" if place is None else f"node-{int(place)}")
        try:
            if number not in made:
                own = rows_of(rows, context.node_config)
                made[number] = Node(task, own, plan, number=number, insecure_seed=insecure_seed, secure=secure)
            memory = Memory.of(_letter(context.state)) if file is None else Memory.kept(file)
            letter, memory = act(made[number], _letter(message.content), memory)
            if file is None:  # Flower's state of the node, which lasts as long as Flower's run
                context.state.update(_content(memory.letter()))
            else:
                memory.keep(file)
            return Message(_content(letter), reply_to=message)
        except MessageError as error:
            return Message(Error(_REFUSED, str(error)), reply_to=message)
        except Exception as error:
            logger.exception("node %d could not answer", number)
            text = f"the node failed ({type(error).__name__}): its own log says why"
            return Message(Error(_FAILED, text), reply_to=message)

    @app.train("name")
    def name(message: Message, context: Context) -> Message:
        return answer(message, context, Node.name_rows)

    @app.train("sum")
    def sum_(message: Message, context: Context) -> Message:
        lasting = kept is not None
        return answer(message, context, lambda node, letter, memory: node.sum_updates(letter, memory, lasting=lasting))

    return app


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
