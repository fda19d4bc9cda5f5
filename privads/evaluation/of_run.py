"""`Judging`: a finished run's folder and the rows to judge it by, before they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from accounting.budget import Budget
from accounting.ledger import Ledger
from accounting.report.record import Report
from privads.config import ConfigError
from privads.evaluation.release import MetricsPlan, MetricsRelease
from privads.logs.logs import Logs
from privads.logs.schema import Schema
from privads.training.checkpoint import load, load_features, read_report


@dataclass(frozen=True, kw_only=True, eq=False)
class Judging:
    """What is to be released of ``rows`` about a run's model, from public facts; nothing was read, nothing charged."""

    report: Report
    model: nn.Module
    rows: Logs
    plan: MetricsPlan
    ledger: Ledger | None

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        epsilon: float,
        delta: float | None = None,
        data: str | None = None,
        ledger: str | None = None,
        rows_per_unit: int = 1,
        segments: Mapping[str, Sequence[str]] | None = None,
    ) -> Judging:
        """Returns the judging of the run in ``folder``.

        delta, data, ledger: by default the run's own: its delta, the rows that it held out, its ledger. The unit is the
        run's, where it protects one, and else the schema's.
        """
        model, schema = load(folder)
        features, report = load_features(folder), read_report(folder)
        promise, source = report.guarantee, schema if features is None else features.source
        config = report.run.config if isinstance(report.run.config, dict) else {}
        delta = promise.delta if delta is None and promise is not None else delta
        if delta is None:
            raise ConfigError("the privacy budget has no default, and the run states none: give --delta")
        budget = Budget(epsilon=epsilon, delta=delta, unit=source.protected_unit if promise is None else promise.unit)
        rows = Logs(data, source) if data is not None else _held_out(config, source)
        rows = rows if features is None else rows.with_features(features)
        rows.schema.check_history(budget.unit)
        rows.check()
        opened = _opened(ledger or _stated(config, "ledger", "url"), source)
        plan = MetricsPlan.of(source, budget, rows_per_unit=rows_per_unit, segments=segments)
        return cls(report=report, model=model, rows=rows, plan=plan, ledger=opened)

    def run(self) -> MetricsRelease:
        """Returns the metrics: charges the ledger, reads and scores the rows, in this order."""
        return self.plan.run(self.model, self.rows, ledger=self.ledger)


def _held_out(config: Mapping[str, Any], source: Schema) -> Logs:
    """Returns the rows that a run held out, as its report says."""
    path, after, share = (_stated(config, "data", key) for key in ("path", "test_after", "test_fraction"))
    if path is None or (after is None and share is None):
        raise ConfigError("the run held out no rows: name those to judge it by, --data FILE")
    logs = Logs(path, source)
    if after is not None:
        return logs.split(after=after)[1]
    return logs.split(test_fraction=share, salt=_stated(config, "data", "salt") or "privads")[1]


def _opened(url: str | None, source: Schema) -> Ledger | None:
    """Returns the ledger, which knows the data set; None on public data without one."""
    if url is None:
        if not source.public:
            raise ConfigError(f"data set {source.dataset!r} is private, and the run names no ledger: give --ledger URL")
        return None
    if "***" in url:
        raise ConfigError(f"the report keeps no password of {url}: give --ledger URL")
    ledger = Ledger.open(url)
    ledger.balance(source.dataset)
    return ledger


def _stated(config: Mapping[str, Any], table: str, key: str) -> Any:
    """Returns a value of the run's configuration; None where it does not say."""
    found = config.get(table)
    return found.get(key) if isinstance(found, Mapping) else None
