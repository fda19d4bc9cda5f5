"""The same task over Flower's grid: the same model, and no node, however it fails, changes what a run promises."""

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("flwr", reason="federation over Flower needs flwr: pip install 'privads[federation]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from benchmarks.faults import federated as faults
from benchmarks.faults.planting import Check, Fault, name_of, seen
from federation import flower
from federation.flower import InProcessGrid, client_app
from federation.plan import FederatedPlan
from federation.run import FederatedRun
from federation.server import federate
from federation.task import Task
from privads.batch import Batch, Rows
from privads.logs.logs import Logs
from privads.models import DCN, Logistic
from privads.training.fit import Checkpoint
from tests.federation.helpers import USERS, logs, plan, private_logs, trained, twin
from tests.privads.training.helpers import new_ledger


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


def task_of(log: Logs, model: Callable[..., nn.Module] = DCN, rows_per_user: int = 3) -> Task:
    """No user has more than five rows: with as many, and all users asked, nothing is drawn."""
    torch.manual_seed(0)
    return Task(model=model(log.schema), local_learning_rate=0.3, local_steps=2, rows_per_user=rows_per_user)


def adam(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=0.05)


def over_flower(
    log: Logs,
    found: FederatedPlan,
    *,
    silos: Sequence[Rows] | None = None,
    grid: Any = None,
    task: Task | None = None,
    **settings: Any,
) -> FederatedRun:
    task, silos = task or task_of(log), silos or [log]
    seed = settings.get("insecure_seed")
    grid = grid or InProcessGrid([client_app(task, one, found, insecure_seed=seed) for one in silos])
    given = {"round_seconds": 30.0, "nodes": len(silos), "wait_seconds": 0.1, **settings}
    return flower.federate(task, found, grid=grid, schema=log.schema, **given)


def difference(one: nn.Module, two: nn.Module) -> float:
    first, second = trained(one), trained(two)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(
    ("cohort", "silos", "optimizer"), [(USERS, 1, None), (USERS, 3, adam), (60, 1, adam), (60, 3, None)]
)
def test_with_the_noise_off_a_grid_gives_the_model_of_one_process(
    cohort: int, silos: int, optimizer: Any, log: Logs
) -> None:
    rows = [log] if silos == 1 else [*log.split(test_fraction=0.3), log]
    settings: Any = {"insecure_seed": 3} | ({} if optimizer is None else {"optimizer": optimizer})
    found = twin(cohort=cohort, rounds=4)
    here = federate(task_of(log), rows, found, **settings)
    there = over_flower(log, found, silos=rows, **settings)
    assert difference(here.model, there.model) < 1e-6
    assert difference(task_of(log).model, there.model) > 1e-3  # it learned


@pytest.mark.parametrize("settings", [{}, {"clip_quantile": 0.5}, {"neighbors": "replace", "mechanism": "local"}])
def test_with_one_seed_all_noise_is_that_of_one_process(settings: Any, log: Logs) -> None:
    found = plan(**settings)
    here = federate(task_of(log, Logistic), log, found, insecure_seed=3)
    there = over_flower(log, found, task=task_of(log, Logistic), insecure_seed=3)
    assert difference(here.model, there.model) < 1e-6
    assert there.clip_norm == pytest.approx(here.clip_norm, rel=1e-12)


@pytest.mark.parametrize("table_noise", ["lazy", "adafest"])
@pytest.mark.parametrize("noise", [False, True])
def test_rows_of_tables_travel_as_in_one_process(table_noise: str, noise: bool, log: Logs) -> None:
    rows, settings = [*log.split(test_fraction=0.3), log], {"table_noise": table_noise, "cohort": 20, "silos": 3}
    found = selecting(settings) if noise else twin(**settings)
    here = federate(task_of(log), rows, found, insecure_seed=3)
    there = over_flower(log, found, silos=rows, insecure_seed=3)
    assert difference(here.model, there.model) < 1e-6
    assert difference(task_of(log).model, there.model) > 1e-3


def selecting(settings: Mapping[str, Any]) -> FederatedPlan:
    more = {"selection_noise_multiplier": 4.0} if settings["table_noise"] == "adafest" else {}
    return plan(**settings, **more)


def test_a_node_is_sent_the_rows_that_its_own_cohort_reads_and_no_other(log: Logs) -> None:
    found, task = plan(table_noise="lazy", cohort=4), task_of(log, Logistic)
    apps, named, sent = [client_app(task, log, found) for _ in range(2)], dict[Any, bytes](), dict[Any, bytes]()

    def looking(place: int) -> Any:
        def look(message: Message, context: Context) -> Message:
            reply = apps[place](message, context)
            at = place, message.metadata.group_id
            if message.metadata.message_type == "train.name":
                named[at] = reply.content["rows"]["table.weight"].data
            else:
                sent[at] = message.content["rows"]["table.weight"].data
            return reply

        return look

    over_flower(log, found, silos=[log] * 2, grid=InProcessGrid([looking(0), looking(1)]), task=task)
    assert named == sent
    assert len(set(sent.values())) > 5  # of two nodes in five rounds


def test_a_node_that_named_no_rows_takes_no_part_in_the_round(log: Logs) -> None:
    found, task = twin(table_noise="lazy", cohort=USERS, rounds=2), task_of(log, Logistic, 5)
    good, bad = (client_app(task, log, found) for _ in range(2))
    asked = list[str]()

    def spoiled(message: Message, context: Context) -> Message:
        asked.append(message.metadata.message_type)
        return rejoined(bad(message, context), RecordDict({}))

    run = over_flower(log, found, silos=[log] * 2, grid=InProcessGrid([good, spoiled]), task=task)
    assert asked == ["train.name"] * 2
    assert difference(run.model, federate(task, log, found).model) < 1e-6


# The promises of a run, and faults that would break them


@pytest.fixture
def grid_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the checks of `benchmarks.faults.federated` run over a grid."""
    monkeypatch.setattr(
        faults, "federate", lambda task, log, found, **settings: over_flower(log, found, task=task, **settings)
    )


@pytest.mark.parametrize("check", list(dict.fromkeys(one.check for one in faults.FAULTS)), ids=name_of)
@pytest.mark.usefixtures("grid_instead")
def test_the_promise_holds_over_a_grid(check: Check, log: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's defects a, b, c, d and f are among what these would see."""
    assert check(log, monkeypatch)


# A sum that is not finite is refused by the server too, so that a silo which lets NaN pass does no harm.
SEEN = [one for one in faults.FAULTS if one.plant is not faults.not_a_number_passes]


@pytest.mark.parametrize("fault", SEEN, ids=lambda one: one.name)
@pytest.mark.usefixtures("grid_instead")
def test_the_fault_is_seen_over_a_grid(fault: Fault, log: Logs) -> None:
    assert seen(fault.check, log, fault.plant) == "fails"


class Still(nn.Module):
    """A model that no row moves, with a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        self.calls: Tensor = self.calls + 1
        return {"click": 0.0 * self.layer(batch.dense).sum(1)}


def test_updates_of_zero_are_updates(log: Logs) -> None:
    """Flower, defect e: a division by their norm."""
    task = task_of(log, lambda schema: Still())
    assert difference(over_flower(log, twin(), task=task).model, task.model) == 0.0


def test_integer_buffers_are_neither_sent_nor_noised(log: Logs) -> None:
    """Flower, defect h: they enter the norm, and get noise."""
    task, seen = task_of(log, lambda schema: Still()), set[str]()
    app = client_app(task, log, plan())

    def looking(message: Message, context: Context) -> Message:
        reply = app(message, context)
        for record in (*message.content.array_records.values(), *reply.content.array_records.values()):
            seen.update(record)
        return reply

    run = over_flower(log, plan(), grid=InProcessGrid([looking]), task=task)
    assert seen == {"layer.weight", "layer.bias"}
    assert run.model.calls == 0


# Nodes that fail


def rejoined(reply: Message, content: RecordDict) -> Message:
    reply.content = content
    return reply


def changed(reply: Message, **counts: Any) -> Message:
    content = reply.content
    return rejoined(reply, RecordDict({**content, "counts": ConfigRecord({**content["counts"], **counts})}))


def with_array(reply: Message, array: Array) -> Message:
    content = reply.content
    dense = content["dense"]
    name = next(iter(dense))
    return rejoined(reply, RecordDict({**content, "dense": ArrayRecord({**dense, name: array})}))


def first_array(reply: Message) -> Array:
    return next(iter(reply.content["dense"].values()))


def not_a_number(reply: Message) -> Message:
    one = first_array(reply)
    values = np.frombuffer(one.data, dtype="<f8").copy()
    values[0] = math.nan
    return with_array(reply, Array(one.dtype, one.shape, one.stype, values.tobytes()))


SPOILED: dict[str, Callable[[Message], Message]] = {
    "crashes": lambda reply: {}["user 17"],
    "answers for another round": lambda reply: changed(reply, number=99),
    "counts half a user": lambda reply: changed(reply, users=0.5),
    "sends no number": not_a_number,
    "sends a wrong shape": lambda reply: with_array(reply, Array(np.zeros((5, 5)))),
    "sends numpy's own form": lambda reply: with_array(reply, Array(np.zeros(first_array(reply).shape))),
    "sends a gigabyte in words": lambda reply: with_array(reply, Array("<f8", (2**27,), "privads.raw", b"")),
    "sends forty megabytes": lambda reply: with_array(
        reply, Array("<f8", (5_000_000,), "privads.raw", bytes(40_000_000))
    ),
    "sends something else": lambda reply: rejoined(reply, RecordDict({"hello": ConfigRecord({"a": 1})})),
    "sends nothing": lambda reply: rejoined(reply, RecordDict({})),
    "says that it failed": lambda reply: Message(metadata=reply.metadata, error=Error(0, "no")),
}


@pytest.mark.parametrize("how", list(SPOILED))
def test_a_node_that_fails_counts_as_zero_and_the_others_as_ever(
    how: str, log: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    """Flower, defect g: an error of one ends the round for all."""
    found, task = twin(cohort=USERS, rounds=2), task_of(log, Logistic, 5)
    good, bad = (client_app(task, log, found) for _ in range(2))

    def spoiled(message: Message, context: Context) -> Message:
        return SPOILED[how](bad(message, context))

    with caplog.at_level(logging.WARNING, logger="federation.flower"):
        run = over_flower(log, found, silos=[log] * 2, grid=InProcessGrid([good, spoiled]), task=task)
    assert difference(run.model, federate(task, log, found).model) < 1e-6
    assert run.rounds_done == 2
    assert sum("node 2 counts as zero" in one.getMessage() for one in caplog.records) == 2


class Odd(InProcessGrid):
    """A grid that delivers the second node's replies late, twice or not at all."""

    def __init__(self, apps: Sequence[Any], how: str) -> None:
        super().__init__(apps)
        self.how, self.held, self.earlier = how, list[Message](), list[Message]()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        of_two = [one for one in replies if one.metadata.src_node_id == 2]
        rest = [one for one in replies if one.metadata.src_node_id != 2]
        if self.how == "silent":
            return rest
        if self.how == "late":  # by one round
            self.held, ready = of_two or self.held, self.held if of_two else []
            return [*ready, *rest]
        if self.how == "twice":
            return [*replies, *replies]
        if self.how == "garbled" and of_two:
            raise ValueError("no object")
        if self.how == "away":
            return [*rest, *(Message(Error(5, "not there"), reply_to=one) for one in of_two)]
        return replies


@pytest.mark.parametrize("how", ["silent", "late", "away"])
def test_a_round_is_closed_by_the_clock_and_what_comes_later_is_not_used(how: str, log: Logs) -> None:
    found, task = twin(cohort=USERS, rounds=2), task_of(log, Logistic, 5)
    grid = Odd([client_app(task, log, found) for _ in range(2)], how)
    started = time.monotonic()
    run = over_flower(log, found, silos=[log] * 2, grid=grid, task=task, round_seconds=0.3)
    assert time.monotonic() - started >= 0.6
    assert difference(run.model, federate(task, log, found).model) < 1e-6


def test_what_flower_itself_cannot_read_counts_as_zero(log: Logs) -> None:
    found, task = twin(cohort=USERS, rounds=2), task_of(log, Logistic, 5)
    grid = Odd([client_app(task, log, found) for _ in range(3)], "garbled")
    run = over_flower(log, found, silos=[log] * 3, grid=grid, task=task)
    assert difference(run.model, federate(task, [log] * 2, found).model) < 1e-6


def test_many_nodes_are_looked_up_some_at_a_time(log: Logs) -> None:
    found, task = twin(cohort=4, rounds=2), task_of(log, Logistic)
    most = list[int]()

    class Counting(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            names = list(message_ids)
            most.append(len(names))
            return super().pull_messages(names)

    run = over_flower(log, found, silos=[log] * 70, grid=Counting([client_app(task, log, found)] * 70), task=task)
    assert run.rounds_done == 2
    assert most == [64, 6] * 2


def test_a_round_ends_before_its_time_only_where_every_node_has_answered(log: Logs) -> None:
    started = time.monotonic()
    over_flower(log, twin(rounds=2), silos=[log] * 2, task=task_of(log, Logistic), round_seconds=600.0)
    assert time.monotonic() - started < 300


def test_an_answer_that_comes_twice_is_used_once(log: Logs) -> None:
    found, task = twin(cohort=USERS, rounds=2), task_of(log, Logistic, 5)
    grid = Odd([client_app(task, log, found) for _ in range(2)], "twice")
    run = over_flower(log, found, silos=[log] * 2, grid=grid, task=task)
    assert difference(run.model, federate(task, [log, log], found).model) < 1e-6


def test_a_node_tells_the_server_nothing_of_its_rows_when_it_fails(log: Logs) -> None:
    def rows(config: Mapping[str, Any]) -> Rows:
        raise RuntimeError("cannot read the row of user 17")

    app = client_app(task_of(log, Logistic), rows, twin())
    replies = list[Message]()

    def looking(message: Message, context: Context) -> Message:
        replies.append(app(message, context))
        return replies[-1]

    over_flower(log, twin(rounds=1), grid=InProcessGrid([looking]), task=task_of(log, Logistic))
    assert replies[0].error.reason == "the node failed (RuntimeError): its own log says why"


@pytest.mark.parametrize(
    ("own", "what"),
    [({"clip_norm": 0.6}, "plan"), ({"cohort": 50}, "plan"), ({"rounds": 6}, "plan")],
)
def test_a_server_of_another_plan_gets_no_answer(
    own: Any, what: str, log: Logs, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_of(log, Logistic)
    grid = InProcessGrid([client_app(task, log, plan())])
    with caplog.at_level(logging.WARNING, logger="federation.flower"):
        over_flower(log, plan(**own), grid=grid, task=task)
    assert f"the server's {what} is not this node's" in caplog.text


# The server


def test_the_charge_waits_until_all_nodes_have_registered(tmp_path: Path) -> None:
    log, found, ledger = private_logs(tmp_path), plan(), new_ledger(tmp_path, epsilon=200.0)
    app = client_app(task_of(log, Logistic), log, found)
    with pytest.raises(TimeoutError, match=r"1 of 2 nodes had registered after 0.1 s.*nothing was charged"):
        over_flower(log, found, silos=[log] * 2, grid=InProcessGrid([app]), ledger=ledger)
    with pytest.raises(ValueError, match="nodes must be the number of nodes that registered, 2, got 1"):
        over_flower(log, found, silos=[log], grid=InProcessGrid([app] * 2), ledger=ledger)
    assert ledger.history("small") == []


def test_nodes_that_register_later_are_waited_for(log: Logs) -> None:
    class Slow(InProcessGrid):
        asked = 0

        def get_node_ids(self) -> Iterable[int]:
            self.asked += 1
            return list(super().get_node_ids())[: self.asked]

    task = task_of(log, Logistic)
    grid = Slow([client_app(task, log, twin()) for _ in range(3)])
    assert over_flower(log, twin(), silos=[log] * 3, grid=grid, task=task, wait_seconds=60.0).rounds_done == 5
    assert grid.asked == 3


@pytest.mark.parametrize("nodes", [0, True, 1.0])
def test_nodes_must_be_a_number(nodes: Any, log: Logs) -> None:
    with pytest.raises(ValueError, match="nodes must be a whole number"):
        over_flower(log, twin(), nodes=nodes)


def test_round_seconds_must_be_positive(log: Logs) -> None:
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="round_seconds must be positive"):
            over_flower(log, twin(), round_seconds=seconds)


def test_an_empty_cohort_is_noised_and_charged(tmp_path: Path) -> None:
    """Of 400 users at a rate of 1 / 2,000 none joins a round with probability 0.82."""
    log, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0)
    found, task = plan(population=2000, cohort=1, rounds=12), task_of(log, Logistic)
    app, touched, sent = client_app(task, log, found), list[int](), list[Array]()

    def looking(message: Message, context: Context) -> Message:
        reply = app(message, context)
        sent.append(message.content["weights"]["table.weight"])
        touched.append(reply.content["rows"]["table.weight"].shape[0])
        return reply

    run = over_flower(log, found, grid=InProcessGrid([looking]), task=task, ledger=ledger)
    empty = touched.index(0)
    now, after = ([*sent, None][number] for number in (empty, empty + 1))
    last = dict(run.model.named_parameters())["table.weight"].detach().numpy().tobytes()
    assert now is not None
    assert (last if after is None else after.data) != now.data  # noise alone moved it
    assert [one.state for one in ledger.history("small")] == ["committed"]


class KilledError(BaseException):
    """Stands for the end of the server's process."""


class Dying(InProcessGrid):
    """A grid whose server is killed while round ``at`` is under way, after the nodes have answered."""

    at = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if self.at and replies and replies[0].metadata.group_id == str(self.at):
            self.at = 0
            raise KilledError
        return replies


@pytest.mark.parametrize(("at", "table_noise"), [(1, "dense"), (3, "dense"), (5, "dense"), (3, "lazy")])
def test_a_server_that_is_killed_goes_on_under_its_own_charge(at: int, table_noise: str, tmp_path: Path) -> None:
    log, found, ledger = private_logs(tmp_path), plan(table_noise=table_noise), new_ledger(tmp_path, epsilon=200.0)
    task, file = task_of(log, Logistic), tmp_path / "kept" / "round"
    grid = Dying([client_app(task, log, found)])
    grid.at = at
    with pytest.raises(KilledError):
        over_flower(log, found, grid=grid, task=task, ledger=ledger, checkpoint=Checkpoint(path=file))
    answered = list[int]()
    app = grid._apps[1]
    grid._apps[1] = lambda message, context: answered.append(int(message.metadata.group_id)) or app(message, context)
    resumed = Checkpoint(path=file, resume=True)
    run = over_flower(log, found, grid=grid, task=task, ledger=ledger, checkpoint=resumed)
    assert run.rounds_done == found.rounds
    # Where rows are named, a round's result is kept once those of the next are settled: nobody was sent it before.
    assert sorted(set(answered)) == list(range(at - (table_noise == "lazy"), found.rounds + 1))
    assert len(answered) == len(set(answered)) * (2 if table_noise == "lazy" else 1)
    assert [one.state for one in ledger.history("small")] == ["committed"]


@pytest.mark.parametrize("keeps", [True, False])
def test_under_local_noise_users_are_counted_by_the_node(keeps: bool, tmp_path: Path) -> None:
    """The server starts again in another run of Flower: what Flower kept for the nodes is gone."""
    log, ledger = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0, neighbors="replace")
    found = plan(neighbors="replace", mechanism="local", participations=1, cohort=USERS)
    task, file, kept = task_of(log, Logistic), tmp_path / "kept" / "round", tmp_path / "node" if keeps else None
    grid = Dying([client_app(task, log, found, kept=kept)])
    grid.at = 2
    with pytest.raises(KilledError):
        over_flower(log, found, grid=grid, task=task, ledger=ledger, checkpoint=Checkpoint(path=file))
    app, answers = client_app(task, log, found, kept=kept), list[Message]()

    def looking(message: Message, context: Context) -> Message:
        answers.append(app(message, context))
        return answers[-1]

    again = InProcessGrid([looking])
    resumed = Checkpoint(path=file, resume=True)
    over_flower(log, found, grid=again, task=task, ledger=ledger, checkpoint=resumed)
    first, extra = ledger.history("small")
    assert "round 2 of entry" in extra.purpose
    assert 0 < extra.epsilon <= first.epsilon
    if not keeps:
        assert all("give it a folder" in (one.error.reason or "") for one in answers)
        return
    for one in answers:  # every user has sent their one update: there is neither a sum nor noise
        for array in one.content["dense"].values():
            assert not np.frombuffer(array.data, dtype="<f8").any()


def test_where_a_node_keeps_what_its_users_sent_is_not_the_servers_to_choose(tmp_path: Path) -> None:
    """The SuperLink gives out the numbers of nodes: under a new one a node would count from nothing."""
    log = private_logs(tmp_path)
    found = plan(neighbors="replace", mechanism="local", participations=1, cohort=USERS)
    app, answers = client_app(task_of(log, Logistic), log, found, kept=tmp_path / "node"), list[Message]()

    def numbered(number: int) -> Any:
        def answered(message: Message, context: Context) -> Message:
            state = RecordDict()
            own = Context(run_id=1, node_id=number, node_config={}, state=state, run_config={})
            answers.append(app(message, own))
            return answers[-1]

        return answered

    for number in (11, 12):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        ledger = new_ledger(folder, epsilon=200.0, neighbors="replace")
        over_flower(log, found, grid=InProcessGrid([numbered(number)]), task=task_of(log, Logistic), ledger=ledger)
    assert not any(one.has_error() for one in answers[: found.rounds])
    assert all("another run" in (one.error.reason or "") for one in answers[found.rounds :])


def test_a_resume_with_fewer_nodes_hides_no_assumption(tmp_path: Path) -> None:
    log, ledger, file = private_logs(tmp_path), new_ledger(tmp_path, epsilon=200.0), tmp_path / "kept" / "round"
    task, found = task_of(log, Logistic), plan(silos=1)
    grid = Dying([client_app(task, log, found) for _ in range(2)])
    grid.at = 3
    with pytest.raises(KilledError):
        over_flower(log, found, grid=grid, task=task, nodes=2, ledger=ledger, checkpoint=Checkpoint(path=file))
    one, resumed = InProcessGrid([client_app(task, log, found)]), Checkpoint(path=file, resume=True)
    report = over_flower(log, found, grid=one, task=task, ledger=ledger, checkpoint=resumed).report()
    assert any("more than 1 of the 2 silos" in one.text for one in report.assumptions if one.status == "asserted")


def test_the_report_says_that_it_ran_over_flower(log: Logs) -> None:
    report = over_flower(log, plan(), silos=[log] * 2, task=task_of(log, Logistic)).report()
    assert report.run.config["backend"] == "Flower, 2 nodes"
    assert any("SuperLink" in one for one in report.not_covered)
    assert any("a node whose software does not sample" in one for one in report.not_covered)
    assert "no user has rows in more than 1 of the 2 silos" in report.headline
    assert "the rows that each of 2 nodes was given" in report.data.split


def test_a_server_app_is_given_grid_and_configuration(log: Logs) -> None:
    kept = list[Any]()
    app = flower.server_app(lambda grid, config: kept.extend([grid, config]))
    grid = InProcessGrid([])
    app(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"rounds": 3}))
    assert kept == [grid, {"rounds": 3}]


def test_nobody_is_told_of_a_run_unless_asked() -> None:
    code = "import federation, flwr.supercore.telemetry as t; print(t.FLWR_TELEMETRY_ENABLED)"
    clean = {name: one for name, one in os.environ.items() if not name.startswith("FLWR_")}
    for asked in ("0", "1"):
        given = {"FLWR_TELEMETRY_ENABLED": "1"} if asked == "1" else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == [asked]


@pytest.mark.slow
def test_rays_simulation_gives_the_model_of_one_process(log: Logs) -> None:
    pytest.importorskip("ray", reason="Flower's simulation needs Ray: pip install 'privads[simulation]'")
    from flwr.simulation import run_simulation

    silos = [*log.split(test_fraction=0.3), log]
    found, task, runs = twin(cohort=60, rounds=3), task_of(log), list[FederatedRun]()
    here = federate(task, silos, found, insecure_seed=3)

    def main(grid: Any, config: Mapping[str, Any]) -> None:
        given = {"round_seconds": math.inf, "wait_seconds": 60.0, "insecure_seed": 3}
        runs.append(over_flower(log, found, silos=silos, grid=grid, task=task, **given))

    run_simulation(
        flower.server_app(main),
        client_app(task, lambda config: silos[config["partition-id"]], found, insecure_seed=3),
        num_supernodes=3,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )
    assert difference(here.model, runs[0].model) < 1e-6
