"""A report in a few lines, for a terminal: what a command line and a script print at the end of a run."""

from accounting.report.audits import AuditResult
from accounting.report.phrase import bound, round_down
from accounting.report.record import LedgerBudget, Report
from accounting.report.scores import Interval, TaskMetrics, ValueMetrics

NOT_DEFINED = "not defined"


def summary(report: Report) -> str:
    """Returns two lines for each task and number, the claim, its audits, and what is left; no segments.

    Where the model has several, each is named, also where only one was judged.
    """
    shown = [task for task in report.metrics if task.segment is None]
    several = len(report.data.labels) > 1
    lines = [line for task in shown for line in in_lines(task, prefix=f"{task.task}: " if several else "")]
    lines += [line for one in report.values for line in _value_of(one, prefix=f"{one.task}: " if several else "")]
    audits = [_audit(report, one) for one in report.audit]
    return "\n".join([*lines, report.headline, *audits, _budget(report.budget)])


def _audit(report: Report, audit: AuditResult) -> str:
    guessed = "" if audit.guesses is None else f"; {audit.correct} of {audit.guesses} guesses were right"
    power = "" if audit.power is None else f", ideal canaries show {round_down(audit.power)} of a correct run"
    return f"audit: {audit.verdict}: {report.proved(audit)}{power}{guessed}"


def in_lines(task: TaskMetrics, *, prefix: str = "") -> list[str]:
    """Returns a task's scores in two lines."""
    scores, beside = task.scores, " (noisy)" if task.release else ""
    if task.reference is not None:
        best = task.reference.scores
        beside = f" ({task.reference.name}: {_value(best.auc)}, {_value(best.normalized_entropy)})"
    return [
        f"{prefix}AUC {_interval(scores.auc)}, normalized entropy {_interval(scores.normalized_entropy)}{beside}",
        f"{prefix}calibration {_interval(scores.calibration)} (predicted / observed)",
    ]


def _value_of(task: ValueMetrics, *, prefix: str) -> list[str]:
    return [
        f"{prefix}normalized Gini {_interval(task.normalized_gini)}, "
        f"relative squared error {_interval(task.relative_squared_error)}",
        f"{prefix}calibration {_interval(task.calibration)} (predicted / observed)",
    ]


def budget_left(budget: LedgerBudget) -> str:
    """Returns what the run left of the data set's limit, with its terms."""
    return bound(
        budget.left_epsilon,
        delta=budget.left_delta,
        unit=budget.unit,
        neighbors=budget.neighbors,
        released=f"data set {budget.dataset}",
        relation="=",
    )


def _budget(budget: LedgerBudget | None) -> str:
    return f"budget left: {'no ledger was charged' if budget is None else budget_left(budget)}"


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return _value(interval)
    return f"{_value(interval)} [{interval.low:.3f}, {interval.high:.3f}]"


def _value(interval: Interval) -> str:
    return NOT_DEFINED if interval.value is None else f"{interval.value:.3f}"
