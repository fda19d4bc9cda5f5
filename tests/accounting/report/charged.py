"""A ledger with runs on it, and the reports that such runs would write."""

import json
from typing import Any

from accounting import mechanisms
from accounting.budget import Budget
from accounting.ledger import Charge, Entry, Ledger
from accounting.report.record import Report
from tests.accounting.report import sample

ADS = "ads-2026q4"
RUN = mechanisms.approximate_dp(epsilon=1.5, delta=1e-6)  # known at once


def ledger(url: str, dataset: str = ADS, *, epsilon: float = 50.0, **fields: Any) -> Ledger:
    return Ledger.init(
        url,
        dataset=dataset,
        budget=Budget(epsilon=epsilon, delta=9e-5, unit="user", **fields.pop("limit", {})),
        **fields,
    )


def run(book: Ledger, dataset: str = ADS, *, purpose: str = "train dcn", **fields: Any) -> Entry:
    """A committed run."""
    charge = Charge(event=mechanisms.to_json(RUN), delta=1e-6, unit="user", purpose=purpose, **fields)
    return book.commit(book.open_rows(book.reserve(dataset, charge)))


def report_of(book: Ledger, entry: Entry, **blocks: Any) -> Report:
    """The report of that run: its figures are the ledger's."""
    budget = sample.BLOCKS["budget"].model_copy(
        update={
            "dataset": entry.dataset,
            "this_run_epsilon": entry.epsilon,
            "this_run_delta": entry.delta,
            "entry": str(entry.id),
            "head": book.head(),
        }
    )
    mechanism = sample.BLOCKS["mechanism"].model_copy(update={"event": json.loads(entry.event)})
    promise = sample.guarantee(epsilon=entry.epsilon, epsilon_lower=None)
    return sample.report(**{"budget": budget, "mechanism": mechanism, "guarantee": promise, **blocks})


def changed(report: Report, block: str, **fields: Any) -> Report:
    """The report with other facts in one block."""
    return report.model_copy(update={block: getattr(report, block).model_copy(update=fields)})
