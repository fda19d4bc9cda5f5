"""How well a model predicts, as a report holds it."""

from accounting.report.fields import Count, FiniteOrNone, Record, Text


class Interval(Record):
    """A value with its interval. NaN and None alike: not defined (no positives, say)."""

    value: FiniteOrNone
    low: FiniteOrNone = None
    high: FiniteOrNone = None


class Scores(Record):
    """How well a model predicts one task. ``calibration``: mean prediction / observed rate."""

    auc: Interval
    log_loss: Interval
    normalized_entropy: Interval
    calibration: Interval


class Reference(Record):
    """The scores of something known, on the same rows: the Bayes optimum, a model trained without privacy."""

    name: Text
    scores: Scores


class CurvePoint(Record):
    """One bin of the calibration curve."""

    mean_predicted: float
    observed_rate: float
    low: FiniteOrNone = None
    high: FiniteOrNone = None
    rows: Count


class TaskMetrics(Record):
    """The scores of one task, or of the rows of one segment. ``released``: they went through a mechanism, so an epsilon
    covers them: the run's, or that of ``release``, where they were released by themselves, with noise.
    """

    task: Text
    released: bool
    release: Text | None = None
    segment: Text | None = None
    rows: Count
    positives: Count
    scores: Scores
    reference: Reference | None = None
    curve: tuple[CurvePoint, ...] = ()


class ValueMetrics(Record):
    """How well a model predicts the mean of a number. ``calibration``: sum predicted / sum observed."""

    task: Text
    released: bool
    rows: Count
    mean: Interval
    """Of the numbers themselves."""
    calibration: Interval
    relative_squared_error: Interval
    """Over the variance of the numbers: 1 is predicting their mean."""
    normalized_gini: Interval
    """1 for the right order, 0 for none."""
