"""Whether the ledger knows the run that a report is about: its entry, its event, its figures, and the head noted."""

import json
import math
import re
from bisect import bisect_left
from collections.abc import Sequence

from accounting.ledger import Entry, Snapshot
from accounting.report.record import Report

TOLERANCE = 1e-6
"""Relative: a charge is the claim rounded up, and libraries of different versions differ by less."""

_AGAIN = re.compile(r": steps [0-9]+ to [0-9]+ of entry ([0-9]+) again$")


class NotAnchored(ValueError):  # noqa: N818 - named for what is the case
    """The ledger does not bear a report out; the message says in what."""


def executed_again(purpose: str, *, first: int, last: int, entry: int) -> str:
    """Returns the purpose of a charge for steps that a resumed run executes again; ``entry`` paid for them before."""
    return f"{purpose}: steps {first} to {last} of entry {entry} again"


def find_entries(report: Report, ledger: Snapshot) -> tuple[Entry, ...]:
    """Returns the ledger's entries that paid for the run of a report, or raises `NotAnchored`.

    The first is the one that the report names. Where it pays for steps that were executed again, the charge of the
    whole run is the second.

    Checked: the head that the report noted is the hash of a row of the ledger, so nothing up to it was cut off or
    rewritten; the entry was there then, and is there now, for the same data set; its rows were opened, so it is spent;
    event, epsilon, delta, unit and neighbors are the same; and the report claims no less than was charged. Of a run
    that went on, the event and the claim are those of the whole run's charge.
    """
    budget = report.budget
    if budget is None:
        raise NotAnchored("the report names no entry of a ledger")
    noted = ledger.rows.get(budget.head)
    if noted is None:
        raise NotAnchored(
            f"no row of {ledger.shown} has the hash {budget.head} that the report noted as its head: the report is "
            "about another ledger, or rows were cut off or rewritten"
        )
    entries = ledger.entries.get(budget.dataset, ())
    found = _entry(entries, budget.entry)
    if found is None or found.id > noted:
        raise NotAnchored(f"{ledger.shown} has no entry {budget.entry} of data set {budget.dataset!r} up to that head")
    before = _AGAIN.search(found.purpose)
    whole = found if before is None else _entry(entries, before[1]) or found
    for one in (found, whole):
        if one.state not in ("opened", "committed"):
            raise NotAnchored(f"entry {one.id} of {ledger.shown} is {one.state}: no rows were opened under it")
    if json.loads(whole.event) != report.mechanism.event:
        raise NotAnchored(f"entry {whole.id} of {ledger.shown} was charged for another event than the report's")
    charged = {
        "epsilon": (found.epsilon, budget.this_run_epsilon),
        "delta": (found.delta, budget.this_run_delta),
        "unit": (found.unit, budget.charged_unit),
        "neighbors": (found.neighbors, budget.charged_neighbors),
    }
    for name, (ours, theirs) in charged.items():
        if ours != theirs:
            raise NotAnchored(f"entry {found.id} of {ledger.shown} was charged {name} {ours}, the report says {theirs}")
    _check_claim(report, whole)
    return (found,) if whole is found else (found, whole)


def _entry(entries: Sequence[Entry], stated: str) -> Entry | None:
    """Returns the entry of that number; entries are in the order of theirs."""
    if not re.fullmatch(r"[0-9]{1,18}", stated):
        return None
    place = bisect_left(entries, int(stated), key=lambda one: one.id)
    return entries[place] if place < len(entries) and str(entries[place].id) == stated else None


def _check_claim(report: Report, found: Entry) -> None:
    claim = report.guarantee
    if claim is None or claim.delta != found.delta:
        return
    if claim.epsilon < found.epsilon and not math.isclose(claim.epsilon, found.epsilon, rel_tol=TOLERANCE):
        raise NotAnchored(
            f"the report claims epsilon {claim.epsilon}, but entry {found.id} was charged {found.epsilon}"
        )
