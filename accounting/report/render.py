"""A report as Markdown and as one self-contained HTML file.

Both show the same blocks in the same order, worst news first: headline, what it protects, what it does not
cover, assumptions, budget, the details. Markdown needs nothing beyond the core; HTML needs jinja2 for its
template and matplotlib for the calibration plots, the extra `report`.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from pydantic import JsonValue

from accounting.report.fields import Verdict
from accounting.report.guarantee import Guarantee
from accounting.report.phrase import NOT_STATED, bound
from accounting.report.record import Assumption, LedgerBudget, Report, Status
from accounting.report.scores import Interval, Scores, TaskMetrics, ValueMetrics
from accounting.report.started import StartedFrom

Row = tuple[str, ...]

VERDICTS: dict[Verdict, str] = {
    "private": "Private",
    "conditional": "Private on conditions",
    "violated": "Promise broken",
    "not private": "Not private",
}
_STATUSES: dict[Status, str] = {  # worst first
    "violated": "does not hold",
    "asserted": "rests on a person's word",
    "checked": "tested on this run",
    "enforced": "holds by construction",
}
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


class MissingExtra(ImportError):  # noqa: N818 - named for what to do about it
    """An optional dependency is not installed; the message says how to install it."""


def markdown(report: Report) -> str:
    """Returns the report as GitHub-flavored Markdown; needs neither jinja2 nor matplotlib."""
    parts = [
        f"# Privacy report: {_md(report.run.id)}",
        f"**{_md(report.headline)}**",
        _md(protects(report)),
        "## Not covered by epsilon",
        "\n".join(f"- {_md(line)}" for line in report.not_covered) or NOT_STATED,
        "## Assumptions",
        _md_table(("status", "assumption", "by"), [(a.status, a.text, a.by) for a in assumptions(report)]),
    ]
    for title, rows in facts(report).items():
        parts += [f"## {title}", _md_table(("", ""), rows)]
        if title == "Mechanism":
            parts += ["The whole event, as the accountant reads it:", _md_json(report.mechanism.event)]
        if title == "Model":
            parts += ["## Metrics", *(_md_task(report, task) for task in report.metrics)]
            parts += [_md_value(report, one) for one in report.values]
            parts += [] if report.metrics or report.values else [NOT_STATED]
    parts += ["The exact configuration:", _md_json(report.run.config)]
    return "\n\n".join(parts) + "\n"


def html(report: Report) -> str:
    """Returns the report as one HTML file: no scripts, nothing loaded from elsewhere, every value escaped."""
    try:
        import jinja2

        from accounting.report.plot import calibration_plot
    except ImportError as error:
        raise MissingExtra('a report in HTML needs jinja2 and matplotlib: pip install "privads[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("accounting.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = [calibration_plot(task) if task.curve else "" for task in report.metrics]
    return environment.get_template("report.html").render(
        report=report,
        headline=report.headline_parts,
        verdict=VERDICTS[report.verdict],
        protects=protects(report),
        assumptions=assumptions(report),
        statuses=[(s, n, why) for s, why in _STATUSES.items() if (n := len(report.with_status(s)))],
        facts=facts(report),
        bar=budget_bar(report.budget) if report.budget else None,
        metrics=[
            {
                "name": name(task),
                "task": task,
                "scores": scores(task),
                "about": f"{counted(task)} {covered(report, task)}",
                "curve": curve(task),
            }
            for task in report.metrics
        ],
        values=[{"task": one, "scores": value_scores(one), "covered": covered(report, one)} for one in report.values],
        plots=plots,
        indented=_indented,
    )


def protects(report: Report) -> str:
    """Returns who is protected from what, in plain words, and what stands in the way of it."""
    if report.guarantee is None:
        return "It protects nobody: no noise was added, and whoever sees the model may learn about single units."
    hindrances = []
    if report.with_status("violated"):
        hindrances.append("Nothing is promised: an assumption is violated.")
    if report.run.insecure_seed is not None:
        hindrances.append("Whoever knows the seed can compute the noise and subtract it.")
    claim = report.guarantee.protects()
    said = [*hindrances, f"Without that: {claim}"] if hindrances else [claim]
    if report.run.costs_before:
        said.append(
            "This counts this run alone: the weights that it began with had learned from data before, and whoever is "
            "in the data of both runs loses more."
        )
    return " ".join(said)


def assumptions(report: Report) -> list[Assumption]:
    """Returns the assumptions, worst status first."""
    return sorted(report.assumptions, key=lambda assumption: list(_STATUSES).index(assumption.status))


def facts(report: Report) -> dict[str, list[Row]]:
    """Returns the blocks of the report as (name, value) rows, in reading order."""
    return {
        "Budget": _budget_rows(report),
        "Guarantee": _guarantee_rows(report.guarantee),
        "Mechanism": _mechanism_rows(report),
        "Data": _data_rows(report),
        "Model": _model_rows(report),
        "Run": _run_rows(report),
    }


def _guarantee_rows(promise: Guarantee | None) -> list[Row]:
    if promise is None:
        return [("claim", "none: trained without differential privacy")]
    lower, unsampled = promise.epsilon_lower, promise.epsilon_without_amplification
    by = promise.accountant
    return [
        ("claim", promise.phrase()),
        ("lower end", NOT_STATED if lower is None else promise.phrase_of(lower, relation=">=")),
        *(
            ("at another delta", promise.phrase_of(at.epsilon, delta=at.delta))
            for at in promise.profile
            if at.delta != promise.delta
        ),
        ("without sampling", NOT_STATED if unsampled is None else promise.phrase_of(unsampled)),
        ("unit", f"{promise.unit} (columns: {_listed(promise.unit_columns)})"),
        ("neighbors", f"{promise.neighbors.replace('-', '/')}: {promise.neighbors_definition}"),
        ("released", promise.released),
        ("accountant", f"{by.method}, grid {_number(by.grid)}, {by.library} {by.version}"),
    ]


def _budget_rows(report: Report) -> list[Row]:
    budget = report.budget
    if budget is None:
        return [("ledger", "none was charged")]

    def amount(epsilon: float, delta: float | None, released: str, relation: str) -> str:
        return bound(
            epsilon,
            delta=delta,
            unit=budget.unit,
            neighbors=budget.neighbors,
            released=released,
            relation=relation,
        )

    this_run = bound(
        budget.this_run_epsilon,
        delta=budget.this_run_delta,
        unit=budget.charged_unit,
        neighbors=budget.charged_neighbors,
        released=report.guarantee.released if report.guarantee else "this run",
    )
    return [
        ("limit", amount(budget.limit_epsilon, budget.limit_delta, "everything ever released", "=")),
        ("before", amount(budget.spent_before_epsilon, budget.spent_before_delta, "other releases", "<=")),
        ("this run", this_run),
        ("left", amount(budget.left_epsilon, budget.left_delta, "not yet released", "=")),
        ("rule", f"{budget.rule}{_rule_note(budget)}"),
        ("data set", budget.dataset),
        ("ledger entry", budget.entry),
        ("ledger head", budget.head),
    ]


def _rule_note(budget: LedgerBudget) -> str:
    if budget.rule in ("basic", NOT_STATED):
        return ""
    return ": losses add up, not epsilons, and the limit's delta is spent once, by turning their sum into epsilon"


def _mechanism_rows(report: Report) -> list[Row]:
    what = report.mechanism
    return [
        ("sampler", what.sampler),
        ("sampling rate", _number(what.sampling_rate)),
        ("steps", _number(what.steps)),
        (f"batch, expected {what.sampled}", _number(what.batch)),
        ("rows per unit, at most", _number(what.rows_per_unit)),
        ("clipping", what.clipping),
        ("clip norm", _number(what.clip_norm)),
        ("noise multiplier", _number(what.noise_multiplier)),
        ("noise std, in gradient units", _number(what.noise_std)),
        ("noise multipliers of counts", _listed(tuple(_number(one) for one in what.other_noise_multipliers))),
        ("noise of tables", what.table_noise),
        ("randomness", what.randomness),
        ("floating point", what.floating_point),
    ]


def _data_rows(report: Report) -> list[Row]:
    data = report.data
    return [
        ("data set", data.dataset),
        ("declared public", "yes" if data.public else "no"),
        ("population, declared", _number(data.population)),
        ("unit columns", _listed(data.unit_columns)),
        ("split", data.split),
        ("labels", _listed(data.labels)),
        ("fields", f"{data.categorical} categorical, {data.numeric} numeric"),
        *((("fitted features", data.features),) if data.features is not None else ()),
        ("schema SHA-256", data.schema_sha256 or NOT_STATED),
    ]


def _model_rows(report: Report) -> list[Row]:
    model = report.model
    return [
        ("name", model.name),
        ("parameters", _number(model.parameters)),
        ("optimizer", model.optimizer),
        ("learning rate", _number(model.learning_rate)),
        ("averaging", model.averaging),
        *((("calibration, after the metrics below", model.calibration),) if model.calibration is not None else ()),
        *((key, json.dumps(value, ensure_ascii=False)) for key, value in sorted(model.settings.items())),
    ]


def _run_rows(report: Report) -> list[Row]:
    run = report.run
    insecure = "none: noise and batches cannot be repeated"
    return [
        ("run", run.id),
        ("created", run.created_at.isoformat(sep=" ", timespec="seconds")),
        ("time taken", NOT_STATED if run.seconds is None else f"{run.seconds:,.1f} s"),
        ("seed (initialization, bootstrap)", NOT_STATED if run.seed is None else str(run.seed)),
        ("insecure seed", insecure if run.insecure_seed is None else f"{run.insecure_seed}: noise is known"),
        *_start_rows(run.started_from),
        ("privads", run.library_version),
        ("python", run.python),
        *sorted(run.versions.items()),
        ("report version", report.report_version),
    ]


def _start_rows(runs: tuple[StartedFrom, ...]) -> list[Row]:
    """Returns a row for each run that is in the weights this one began with, the latest first."""
    if not runs:
        return [("started from", "new weights, or weights that the report does not know")]
    return [
        (
            "which had started from" if number else "started from",
            f"run {one.run}, {'public ' if one.public else ''}data set {one.dataset} "
            f"({VERDICTS[one.verdict].lower()}): {one.cost}, {one.charged}",
        )
        for number, one in enumerate(runs)
    ]


class BudgetBar(NamedTuple):
    """Widths in percent of the limit, and the words for those who cannot see them."""

    before: float
    this_run: float
    words: str


def budget_bar(budget: LedgerBudget) -> BudgetBar:
    """Returns the bar; this run's part is by how much it lowered what is left, as the ledger composes."""
    before = min(budget.spent_before_epsilon / budget.limit_epsilon, 1.0)
    spent = min(max(1 - budget.left_epsilon / budget.limit_epsilon, before), 1.0)
    words = (
        f"{before:.0%} of the limit was spent before, {spent - before:.0%} went to this run, {1 - spent:.0%} is left"
    )
    return BudgetBar(round(100 * before, 2), round(100 * (spent - before), 2), words)


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


def _number(value: float | int | None) -> str:
    if value is None:
        return NOT_STATED
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _indented(value: JsonValue) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _md(text: str) -> str:
    return re.sub(r"([\\|*~`]|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#\w]+;)|\b_|_\b)", r"\\\1", text)


def _md_table(header: Row, rows: Iterable[Row]) -> str:
    lines = [header, ("---",) * len(header), *(tuple(map(_md, row)) for row in rows)]
    lines = lines if len(lines) > 2 else [*lines, (NOT_STATED,) * len(header)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _md_json(value: JsonValue) -> str:
    return f"```json\n{_indented(value)}\n```"


def _md_value(report: Report, task: ValueMetrics) -> str:
    about = f"{task.rows:,} rows. {covered(report, task)}"
    return "\n\n".join([f"### {_md(task.task)}", about, _md_table(("", "this model"), value_scores(task))])


def _md_task(report: Report, task: TaskMetrics) -> str:
    reference = _md(task.reference.name) if task.reference else "reference"
    parts = [
        f"### {_md(name(task))}",
        f"{counted(task)} {_md(covered(report, task))}",
        _md_table(("", "this model", reference), scores(task)),
    ]
    if task.curve:
        parts += [_md_table(("mean predicted", "observed rate", "rows"), curve(task))]
    return "\n\n".join(parts)
