"""A silo answers a request that fits its own plan, each round once, and reads no row for any other."""

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from federation.identity import Identifiers
from federation.messages import Letter, MessageError, Raw, Request, agreement
from federation.node import Memory, Node, rows_of
from federation.plan import FederatedPlan
from federation.sums import SentRows
from federation.task import Task
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.models import Logistic
from privads.training.working import CheckpointError
from tests.federation.helpers import USERS, logs, plan, private_logs, twin


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return logs(tmp_path_factory.mktemp("log"))


class Closed:
    """Rows that must not be read."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def check(self) -> None:
        """Nothing is missing."""

    @property
    def units(self) -> NoReturn:
        raise AssertionError("a row was read")

    take = reference = units


def task(log: Any) -> Task:
    torch.manual_seed(0)
    return Task(model=Logistic(log.schema), local_learning_rate=0.5, rows_per_user=3)


def request(log: Any, found: FederatedPlan, *, weights: bool = True, **change: Any) -> Letter:
    agreed = agreement(task(log), found, log.schema, insecure_seed=None, secure=False)
    given = {"run": "one", "session": "first", "resumed": False, "number": 1, "clip_norm": found.clip_norm}
    sent = {name: one.detach() for name, one in task(log).model.named_parameters()} if weights else {}
    return Request(**{**agreed, **given, **change}).letter(sent)


def node(rows: Any, found: FederatedPlan, **settings: Any) -> Node:
    return Node(task(rows), rows, found, number=0, **settings)


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "0"}, "the server's plan is not this node's"),
        ({"task": "0"}, "the server's task is not this node's"),
        ({"model": "0"}, "the server's model is not this node's"),
        ({"schema": "0"}, "the server's schema is not this node's"),
        ({"version": "0"}, "the server's version is not this node's"),
        ({"randomness": "0"}, "the server's randomness is not this node's"),
        ({"number": 0}, "the plan has no round 0"),
        ({"number": 6}, "the plan has no round 6"),
        ({"clip_norm": 5.0}, "clip norm of round 1 is not 5"),
        ({"clip_norm": 0.4}, "clip norm of round 1 is not 0.4"),
        ({"clip_norm": float("nan")}, "clip norm of round 1 is not nan"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_no_row_read(
    change: Any, message: str, fixed: bool, log: Logs
) -> None:
    closed, found = Closed(log.schema), plan(**({} if fixed else {"clip_quantile": 0.5}))
    with pytest.raises(MessageError, match=message):
        node(closed, found).sum_updates(request(log, found, **change), None, lasting=False)


def test_the_weights_are_looked_at_before_the_rows(log: Logs) -> None:
    with pytest.raises(MessageError, match="another model"):
        node(Closed(log.schema), plan()).sum_updates(request(log, plan(), weights=False), None, lasting=False)


def test_rows_are_opened_by_the_first_request_that_fits(log: Logs) -> None:
    with pytest.raises(AssertionError, match="a row was read"):
        node(Closed(log.schema), plan()).sum_updates(request(log, plan()), None, lasting=False)


@pytest.mark.parametrize(("number", "factor", "fits"), [(2, 1.22, True), (2, 1.23, False), (3, 1.23, True)])
def test_a_clip_norm_that_follows_a_quantile_moves_by_a_fifth_of_its_logarithm_a_round(
    number: int, factor: float, fits: bool, log: Logs
) -> None:
    """exp(0.2) = 1.2214 (Andrew et al. 2021, section 3.1)."""
    found = plan(clip_quantile=0.5)
    for one in (factor, 1 / factor):
        asked = request(log, found, number=number, clip_norm=0.5 * one)
        if fits:
            node(log, found).sum_updates(asked, None, lasting=False)
        else:
            with pytest.raises(MessageError, match="clip norm"):
                node(log, found).sum_updates(asked, None, lasting=False)


def test_a_round_is_answered_once(log: Logs) -> None:
    one, found = node(log, plan()), plan()
    _, memory = one.sum_updates(request(log, found, number=2), None, lasting=False)
    for number in (1, 2):
        with pytest.raises(MessageError, match="was answered before"):
            one.sum_updates(request(log, found, number=number), memory, lasting=False)
    one.sum_updates(request(log, found, number=3), memory, lasting=False)


def test_after_a_resume_a_round_is_drawn_anew(log: Logs) -> None:
    one, found = node(log, plan()), plan()
    first, memory = one.sum_updates(request(log, found), None, lasting=False)
    again, _ = one.sum_updates(request(log, found, session="second", resumed=True), memory, lasting=False)
    assert any(one.data != again["dense"][name].data for name, one in first["dense"].items())


def local(**settings: Any) -> FederatedPlan:
    return plan(neighbors="replace", mechanism="local", participations=1, cohort=USERS // 2, **settings)


def test_what_users_have_sent_is_counted_across_sessions(log: Logs) -> None:
    """At a rate of one half, five rounds leave one in 32 users unasked; who was asked once is never again."""
    found, memory = local(), None
    totals = []
    for number, session in ((1, "first"), (2, "first"), (2, "second"), (3, "second")):
        fresh = node(log, found)  # each request may find another process
        asked = request(log, found, number=number, session=session, resumed=session == "second")
        _, memory = fresh.sum_updates(asked, memory, lasting=False)
        assert memory.sent is not None
        totals.append(int(memory.sent.sum()))
        assert int(memory.sent.max()) == 1
    assert totals == sorted(totals)
    assert totals[-1] > 0.8 * USERS


def test_a_node_that_has_forgotten_what_its_users_sent_does_not_go_on(log: Logs) -> None:
    found = local()
    asked = request(log, found, number=3, resumed=True)
    with pytest.raises(MessageError, match="give it a folder"):
        node(log, found).sum_updates(asked, None, lasting=False)
    node(log, found).sum_updates(asked, None, lasting=True)  # it kept nothing as it was never asked
    node(log, plan()).sum_updates(request(log, plan(), number=3, resumed=True), None, lasting=False)


def test_a_server_that_gives_the_run_another_name_gets_no_more_updates(log: Logs) -> None:
    """Under local noise nobody trusts the server: were counts those of a run's name, it could choose them."""
    found = local(rounds=2)
    one = node(log, found)
    _, memory = one.sum_updates(request(log, found), None, lasting=True)
    for lasting in (True, False):
        with pytest.raises(MessageError, match="sent updates in another run"):
            one.sum_updates(request(log, found, run="two", session="new"), memory, lasting=lasting)
    _, memory = node(log, plan()).sum_updates(request(log, plan()), None, lasting=True)
    node(log, plan()).sum_updates(request(log, plan(), run="two"), memory, lasting=True)  # nothing is counted


class Renamed:
    """A log whose users have other numbers: the first one is gone, and another one came."""

    def __init__(self, log: Logs) -> None:
        self.schema, self.check, self._log = log.schema, log.check, log
        self.units, self.take, self.reference = log.units, log.take, log.reference

    def identifiers(self, key: bytes) -> Identifiers:
        return np.roll(self._log.identifiers(key), -1, axis=0)


def test_what_users_have_sent_is_not_counted_for_others(log: Logs) -> None:
    found = local()
    _, memory = node(log, found).sum_updates(request(log, found), None, lasting=True)
    asked = request(log, found, number=2)
    node(log, found).sum_updates(asked, memory, lasting=True)
    with pytest.raises(CheckpointError, match="users are not those"):
        node(Renamed(log), found).sum_updates(asked, Memory.of(memory.letter()), lasting=True)


@pytest.mark.parametrize("moved", [1, 1000])
def test_a_cohort_whose_rows_have_become_others_is_not_summed(moved: int, log: Logs) -> None:
    """A user whose rows lie with two owners would be clipped in each of them."""
    found = plan(table_noise="lazy", cohort=USERS)
    _, memory = node(log, found).name_rows(request(log, found, weights=False), None)
    other = Renamed(log)
    other.units = np.sort(np.concatenate([log.units[moved:], np.full(min(moved, 1), log.units.max())]))
    sent = Request.of(request(log, found, weights=False))
    rows = {name: one.detach() for name, one in task(log).model.named_parameters()}
    named = {
        name: SentRows(torch.arange(len(one)), one, len(one)) if "table" in name else one for name, one in rows.items()
    }
    node(log, found).sum_updates(sent.letter(named), memory, lasting=False)
    with pytest.raises(MessageError, match="the round is lost"):
        node(other, found).sum_updates(sent.letter(named), memory, lasting=False)


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    kept = Memory(run="one", session="first", number=3, sent=torch.tensor([0, 2, 1]), who="abc")
    file = tmp_path / "kept" / "node"
    assert Memory.kept(file) is None
    kept.keep(file)
    found = Memory.kept(file)
    assert found is not None
    assert found.sent is not None
    assert torch.equal(found.sent, torch.tensor([0, 2, 1]))
    assert (found.run, found.session, found.number, found.who) == ("one", "first", 3, "abc")
    assert file.stat().st_mode & 0o077 == 0


def test_private_rows_are_not_trained_on_without_privacy_or_from_a_seed(tmp_path: Path) -> None:
    log = private_logs(tmp_path)
    with pytest.raises(MessageError, match="not public"):
        node(log, twin())
    with pytest.raises(MessageError, match="insecure_seed is refused"):
        node(log, plan(), insecure_seed=1)


def test_rows_may_be_made_from_the_configuration(log: Logs) -> None:
    assert rows_of(log, {}) is log
    assert rows_of(lambda config: config["rows"], {"rows": log}) is log


def test_a_cohort_whose_rows_were_named_is_the_one_that_trains(log: Logs) -> None:
    """Another process may get the second request: what it is sent are rows that the cohort of the first reads."""
    found = plan(table_noise="lazy", cohort=4)
    named, memory = node(log, found).name_rows(request(log, found, weights=False), None)
    kept = Memory.of(memory.letter())
    assert kept is not None
    whole = dict(task(log).model.named_parameters())["table.weight"].detach()
    ids = named["rows"]["table.weight"].tensor("rows", torch.int64, (None,))
    asked = request(log, found)
    some = {
        **asked,
        "weights": {name: one for name, one in asked["weights"].items() if name != "table.weight"},
        "rows": named["rows"],
        "values": {"table.weight": Raw.of(whole[ids])},
    }
    answer, _ = node(log, found).sum_updates(some, kept, lasting=False)
    assert answer["rows"]["table.weight"].data == named["rows"]["table.weight"].data


def test_rows_are_named_once_and_before_they_are_read(log: Logs) -> None:
    found = plan(table_noise="lazy")
    one, asked = node(log, found), request(log, found)
    with pytest.raises(MessageError, match="rows of round 1 were not named"):
        one.sum_updates(asked, None, lasting=False)
    _, memory = one.name_rows(asked, None)
    with pytest.raises(MessageError, match="rows of round 1 were named before"):
        one.name_rows(asked, memory)
    with pytest.raises(MessageError, match="rows of round 1 were not named"):
        one.sum_updates(request(log, found, session="second", resumed=True), memory, lasting=False)
    _, memory = one.sum_updates(asked, memory, lasting=False)
    assert memory.drawn is None
    with pytest.raises(MessageError, match="no rows named before a round"):
        node(log, plan()).name_rows(request(log, plan()), None)


def test_what_flower_keeps_is_read_back() -> None:
    for kept in (
        Memory(run="one", session="first"),
        Memory(run="one", session="first", number=2, named=3, sent=torch.tensor([0, 2])),
        Memory(run="one", session="first", drawn=(torch.tensor([4, 5]), torch.tensor([0, 0]), 2)),
    ):
        found = Memory.of({**kept.letter(), "other": {}})
        assert found is not None
        assert repr(found) == repr(kept)
    assert Memory.of({"other": {}}) is None
