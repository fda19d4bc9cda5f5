"""How metrics and plain numbers are printed."""

import math
from collections.abc import Iterable

from accounting.report.phrase import NOT_STATED
from accounting.report.record import Report
from accounting.report.scores import Interval, Scores, TaskMetrics, ValueMetrics

Row = tuple[str, ...]

LONGEST = 20_000
"""Characters of one text on a page or in Markdown; the rest of a longer one is in report.json alone."""

_SCORES = {
    "AUC": "auc",
    "log loss": "log_loss",
    "normalized entropy": "normalized_entropy",
    "calibration (predicted / observed)": "calibration",
}
_OF_VALUES = {
    "mean of the numbers": "mean",
    "calibration (predicted / observed)": "calibration",
    "relative squared error (1: their mean)": "relative_squared_error",
    "normalized Gini": "normalized_gini",
}


def scores(task: TaskMetrics) -> list[Row]:
    """Returns (metric, this model, reference) rows of one task."""

    def cell(of: Scores | None, name: str) -> str:
        return NOT_STATED if of is None else interval(getattr(of, name))

    other = task.reference.scores if task.reference else None
    return [(label, cell(task.scores, name), cell(other, name)) for label, name in _SCORES.items()]


def value_scores(task: ValueMetrics) -> list[Row]:
    """Returns (metric, this model) rows of one number."""
    return [(label, interval(getattr(task, name))) for label, name in _OF_VALUES.items()]


def curve(task: TaskMetrics) -> list[Row]:
    """Returns (mean predicted, observed rate, rows) of the calibration curve."""
    return [
        (
            interval(Interval(value=at.mean_predicted), ends=False),
            interval(Interval(value=at.observed_rate, low=at.low, high=at.high)),
            f"{at.rows:,}",
        )
        for at in task.curve
    ]


def name(task: TaskMetrics) -> str:
    """Returns what the scores are about."""
    return task.task if task.segment is None else f"{task.task}, {task.segment}"


def counted(task: TaskMetrics) -> str:
    """Returns how many rows there are, as a sentence."""
    return f"{'about ' if task.release else ''}{task.rows:,} rows, {task.positives:,} positives."


def covered(report: Report, task: TaskMetrics | ValueMetrics) -> str:
    """Returns whether a promise covers these figures, as a sentence."""
    if isinstance(task, TaskMetrics) and task.release is not None:
        return f"Noisy: read from noisy counts, with intervals that hold their noise. By themselves: {task.release}."
    if report.guarantee is None:
        return "Computed without noise."
    if task.released:
        return "Released through the mechanism: epsilon covers these figures."
    return "Computed without noise: epsilon does not cover these figures."


def interval(of: Interval, *, ends: bool = True) -> str:
    """Returns ``value [low, high]`` with as many decimals as the value and its interval need.

    >>> interval(Interval(value=0.741, low=0.733, high=0.749))
    '0.741 [0.733, 0.749]'
    """
    if of.value is None:
        return "not defined"
    width = of.high - of.low if of.low is not None and of.high is not None else 0.0
    decimals = 3 if abs(of.value) >= 0.1 or of.value == 0 else 2 - math.floor(math.log10(abs(of.value)))
    if width > 0:
        decimals = max(decimals, 1 - math.floor(math.log10(width)))
    decimals = min(decimals, 9)
    value, low, high = (NOT_STATED if end is None else f"{end:.{decimals}f}" for end in (of.value, of.low, of.high))
    return f"{value} [{low}, {high}]" if ends else value


def number(value: float | int | None) -> str:
    """Returns a plain number; whole ones in full."""
    if value is None:
        return NOT_STATED
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def shortened(text: str) -> str:
    """Returns a text that a page can hold: a longer one is cut, and says so."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}… (cut: {len(text):,} characters are in report.json)"


def listed(names: Iterable[str] | None) -> str:
    """Returns names in one line; None is not stated, and no name is "none"."""
    if names is None:
        return NOT_STATED
    return ", ".join(names) or "none"
