"""A report in a few lines, for a terminal: what a command line and a script print at the end of a run."""

from accounting.report.phrase import bound
from accounting.report.record import Interval, LedgerBudget, Report, TaskMetrics

NOT_DEFINED = "not defined"


def summary(report: Report) -> str:
    """Returns two lines for each task, the claim, and what is left of the budget; segments are in the report."""
    shown = [task for task in report.metrics if task.segment is None]
    lines = [line for task in shown for line in in_lines(task, prefix=f"{task.task}: " if len(shown) > 1 else "")]
    return "\n".join([*lines, report.headline, _budget(report.budget)])


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


def _budget(budget: LedgerBudget | None) -> str:
    if budget is None:
        return "budget left: no ledger was charged"
    left = bound(
        budget.left_epsilon,
        delta=budget.left_delta,
        unit=budget.unit,
        neighbors=budget.neighbors,
        released=f"data set {budget.dataset}",
        relation="=",
    )
    return f"budget left: {left}"


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return _value(interval)
    return f"{_value(interval)} [{interval.low:.3f}, {interval.high:.3f}]"


def _value(interval: Interval) -> str:
    return NOT_DEFINED if interval.value is None else f"{interval.value:.3f}"
