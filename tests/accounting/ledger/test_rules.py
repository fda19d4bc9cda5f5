"""The book's rules hold for every row of a log, whoever wrote it: a forged row is named although its hash fits."""

import copy
import time
from typing import Any

import pytest

from accounting.ledger import Ledger
from accounting.ledger.store import Step
from tests.accounting.ledger.helpers import ADS, budget, charge, refusal, write


@pytest.fixture
def busy(sqlite_url: str) -> Ledger:
    """Rows: 1 init; 2 reserve, 3 open, 4 commit; 5 reserve, 6 abort; 7 reserve. Then charges of 0.4 are spent."""
    limits = {"budget": budget(), "also": [budget(unit="user-day", neighbors="replace-label")]}
    ledger = Ledger.init(sqlite_url, dataset=ADS, block="day", **limits)  # type: ignore[arg-type]
    ledger.commit(ledger.open_rows(ledger.reserve(ADS, charge(key="first"))))
    ledger.abort(ledger.reserve(ADS, charge(key="second")))
    ledger.reserve(ADS, charge(key="third", epsilon=0.3))
    return ledger


def body(ledger: Ledger, **changes: Any) -> dict[str, Any]:
    """The body of row 7, changed; `cost` changes its one cost."""
    found = copy.deepcopy(ledger.export(ADS)[6]["body"])
    found["costs"][0].update(changes.pop("cost", {}))
    return {**found, **changes}


def holder(ledger: Ledger, seq: int = 7) -> dict[str, Any]:
    return {"holder": ledger.export(ADS)[seq - 1]["body"]["holder"]}


FORGERIES: dict[str, Any] = {
    "overspent": lambda it: [("reserve", body(it, cost={"loss": 700_000_000}))],
    "delta overspent": lambda it: [("reserve", body(it, delta=10**12, cost={"delta": 10**12}))],
    "delta not paid": lambda it: [("reserve", body(it, cost={"delta": 0}))],
    "paid less than it states": lambda it: [("reserve", body(it, cost={"loss": 299_999_999}))],
    "more than a float holds": lambda it: [("reserve", body(it, epsilon=10**400, cost={"loss": 10**400}))],
    "negative": lambda it: [("reserve", body(it, cost={"loss": -5}))],
    "nothing": lambda it: [("reserve", body(it, cost={"loss": 0}))],
    "no amount": lambda it: [("reserve", body(it, cost={"loss": None}))],
    "a float": lambda it: [("reserve", body(it, cost={"loss": 0.5}))],
    "a truth value": lambda it: [("reserve", body(it, cost={"loss": True}))],
    "charged to no column": lambda it: [("reserve", body(it, costs=[]))],
    "charged to another column": lambda it: [("reserve", body(it, cost={"unit": "example"}))],
    "labels charged to the rest": lambda it: [("reserve", body(it, neighbors="replace-label"))],
    "charged twice to a column": lambda it: [("reserve", body(it, costs=body(it)["costs"] * 2))],
    "a block that does not exist": lambda it: [("reserve", body(it, blocks=["2026-W47"]))],
    "no holder": lambda it: [("reserve", {**body(it), "holder": None})],
    "nothing known": lambda it: [("reserve", {})],
    "same key": lambda it: [("reserve", body(it), "first")],
    "repeated": lambda it: [("reserve", body(it), "third")],
    "limit raised": lambda it: [("init", it.export(ADS)[0]["body"], None)],
    "refund after opening": lambda it: [("open", holder(it), "third"), ("abort", holder(it), "third")],
    "release after opening": lambda it: [
        ("open", holder(it), "third"),
        ("release", {"by": "a", "reason": "b"}, "third"),
    ],
    "opened by another": lambda it: [("open", holder(it, 2), "third")],
    "resumed without a lease": lambda it: [
        ("open", holder(it), "third"),
        ("resume", {"lease": "x", "holder": "y"}, "third"),
    ],
    "entry that does not exist": lambda it: [("open", holder(it), "tenth")],
    "no key": lambda it: [("open", holder(it), None)],
    "unknown kind": lambda it: [("refund", holder(it), "third")],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_row_that_breaks_the_rules_is_found_although_its_hash_fits(busy: Ledger, forgery: str) -> None:
    steps = FORGERIES[forgery](busy)
    write(busy, [Step(kind=kind, dataset=ADS, key=key[0] if key else "fourth", body=it) for kind, it, *key in steps])
    for ask in (busy.verify, lambda: busy.balance(ADS), lambda: Ledger.open(busy.url).reserve(ADS, charge())):
        assert f"row {7 + len(steps)}:" in refusal(ask)


def test_an_honest_row_written_the_same_way_passes(busy: Ledger) -> None:
    """So that the forgeries above fail for their fault, not for the way in which they were written."""
    write(busy, [Step(kind="reserve", dataset=ADS, key="fourth", body=body(busy, purpose="train another"))])
    assert busy.verify().entries == 8
    assert busy.balance(ADS).spent_epsilon == 0.7


def test_an_entry_is_moved_in_its_own_data_set_only(busy: Ledger) -> None:
    Ledger.init(busy.url, dataset="other", budget=budget())
    write(busy, [Step(kind="open", dataset="other", key="third", body=holder(busy))])
    assert "row 9:" in refusal(busy.verify)


def _ruled(content: dict[str, Any], rule: str, **column: Any) -> None:
    content.update(rule=rule, columns=[{**content["columns"][0], **column}])


LIMITS: dict[str, Any] = {
    "no columns": lambda it: it.update(columns=[]),
    "a column twice": lambda it: it.update(columns=it["columns"][:1] * 2),
    "an unknown rule": lambda it: it.update(rule="moments"),
    "an unknown block": lambda it: it.update(block="year"),
    "more loss than epsilon": lambda it: it["columns"][0].update(loss=2 * 10**9),
    "an order without its rule": lambda it: it["columns"][0].update(order=8.0),
    "an order that does not exist": lambda it: _ruled(it, "rdp", loss=1, order=0.5),
    "a divergence beyond epsilon": lambda it: _ruled(it, "rdp", loss=482 * 10**6, order=20.0),
    "a rho beyond epsilon": lambda it: _ruled(it, "zcdp", loss=2436 * 10**4),
    "more than a float holds": lambda it: it["columns"][0].update(epsilon=10**400, loss=10**400),
    "a float": lambda it: it["columns"][0].update(epsilon=1.0, loss=1.0),
    "other neighbors": lambda it: it["columns"][0].update(neighbors="nearby"),
    "nothing": lambda it: it.clear(),
}


@pytest.mark.parametrize("forgery", LIMITS)
def test_forged_limits_are_found(busy: Ledger, forgery: str) -> None:
    content = copy.deepcopy(busy.export(ADS)[0]["body"])
    LIMITS[forgery](content)
    write(busy, [Step(kind="init", dataset="new", body=content)])
    assert "row 8:" in refusal(busy.verify)


@pytest.mark.parametrize(
    ("rule", "column"), [("rdp", {"loss": 481 * 10**6, "order": 20.0}), ("zcdp", {"loss": 2435 * 10**4})]
)
def test_honest_limits_written_the_same_way_pass(busy: Ledger, rule: str, column: dict[str, Any]) -> None:
    content = copy.deepcopy(busy.export(ADS)[0]["body"])
    _ruled(content, rule, **column)
    write(busy, [Step(kind="init", dataset="new", body=content)])
    assert busy.verify().entries == 8


def test_many_leases_are_replayed_in_time_that_grows_with_their_number(busy: Ledger) -> None:
    """Each lease used to look at all others: 20,000 took half a minute, and then every reading did."""
    write(busy, [Step(kind="open", dataset=ADS, key="third", body=holder(busy))])
    one = holder(busy)
    write(busy, [Step(kind="lease", dataset=ADS, key="third", body={**one, "lease": str(n)}) for n in range(20_000)])
    start = time.process_time()
    assert busy.history(ADS)[-1].state == "opened"
    assert time.process_time() - start < 5
