"""Metrics of a run's held-out rows, released with noise: planned before the run, charged and read after it."""

from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from accounting.budget import Budget, BudgetExceeded
from accounting.ledger import Ledger, LedgerError
from accounting.report.scores import Interval, Scores, TaskMetrics
from privads.batch import Rows
from privads.config import ConfigError
from privads.evaluation.calibrate import Calibration, Counts, isotonic, platt
from privads.evaluation.histogram import HistogramMetrics
from privads.evaluation.release import MetricsPlan, MetricsRelease
from privads.logs.database import check_database
from privads.logs.logs import Logs
from privads.logs.reader import LogError
from privads.run_config import RunConfig
from privads.training.finished import Finished

FITS = {"platt": platt, "isotonic": isotonic}


class _Replaceable(Finished, Protocol):
    """A finished run that is a dataclass, as both kinds are."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


R = TypeVar("R", bound=_Replaceable)


def plan_held_out(config: RunConfig, test: Logs | None) -> MetricsPlan | None:
    """Returns what [evaluation] asks for, from public facts only; None where it is not there.

    Refuses whatever could be refused only after training, when the run is paid for.
    """
    table = config.evaluation
    if table is None:
        return None
    if test is None:
        raise ConfigError("[evaluation] needs held-out rows: add data.test_after or data.test_fraction")
    delta = config.plan.delta if table.delta is None else table.delta
    if delta is None:
        raise ConfigError("missing key 'evaluation.delta': a privacy budget has no default")
    check_database()
    budget = Budget(epsilon=table.epsilon, delta=delta, unit=config.plan.unit)
    if config.features is None or test.features is not None:  # else what the model reads is not known yet
        test.schema.check_history(budget.unit)
    return MetricsPlan.of(test.source, budget, rows_per_unit=table.rows_per_unit, segments=table.segments)


def with_released(
    run: R, config: RunConfig, test: Logs | None, plan: MetricsPlan | None, *, ledger: Ledger | None
) -> R:
    """Returns the run with the metrics and calibrations that [evaluation] asks for; as it is where that asks for none.

    plan: what `plan_held_out` made of it.
    """
    if test is None or plan is None or config.evaluation is None:
        return run
    seed, calibration = config.run.insecure_seed, config.evaluation.calibration
    released, maps = released_on(run, test, plan, ledger=ledger, insecure_seed=seed, calibration=calibration)
    return replace(run, released=released, calibrations=maps)


def released_on(
    run: Finished,
    rows: Rows,
    plan: MetricsPlan,
    *,
    ledger: Ledger | None,
    insecure_seed: int | None = None,
    calibration: str | None = None,
) -> tuple[tuple[TaskMetrics, ...], dict[str, Calibration]]:
    """Returns (metrics of held-out ``rows``, {task: calibration}), an entry of their own in the ledger; they may be
    shown to whoever may see the run. What goes wrong costs the metrics, and not the run.

    calibration: of `FITS`, fitted to what the metrics are read from, for nothing more.
    """
    try:
        found = plan.run(run, rows, ledger=ledger, insecure_seed=insecure_seed)
    except BudgetExceeded as error:
        raise BudgetExceeded(f"the run was saved without metrics, which did not fit: {error}") from None
    except (LedgerError, ValueError, OSError) as error:
        raise LogError(f"the run was saved without metrics: {error}") from None
    fit = None if calibration is None else FITS[calibration]
    maps = {} if fit is None else {task: fit(Counts.of_histogram(one)) for task, one in found.histograms.items()}
    return as_records(found), maps


def as_records(found: MetricsRelease) -> tuple[TaskMetrics, ...]:
    """Returns what was released as a report holds it."""
    return tuple(
        TaskMetrics(
            task=one.task,
            released=True,
            release=found.cost,
            segment=None if one.column is None else f"{one.column} = {one.value}",
            rows=max(0, round(one.metrics.rows)),
            positives=max(0, round(one.metrics.positives)),
            scores=_scores(one.metrics),
        )
        for one in found.readings
    )


def _scores(metrics: HistogramMetrics) -> Scores:
    names = ("auc", "log_loss", "normalized_entropy", "calibration")
    return Scores(**{name: Interval.model_validate(getattr(metrics, name), from_attributes=True) for name in names})
