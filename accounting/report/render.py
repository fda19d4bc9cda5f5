"""A report as Markdown and as one self-contained HTML file.

Both show the same blocks in the same order, worst news first: headline, what it protects, what it does not
cover, assumptions, audits, budget, the details. Markdown needs nothing beyond the core; HTML needs jinja2 for its
template and matplotlib for the plots, the extra `report`.
"""

from typing import NamedTuple

from accounting.report.facts import NEVER_AUDITED, VERDICTS, audit_rows, facts
from accounting.report.figures import Row, counted, covered, curve, name, scores, value_scores
from accounting.report.marks import escaped, indented, json_block, table
from accounting.report.page import MissingExtra, page
from accounting.report.phrase import NOT_STATED
from accounting.report.record import INTERVAL, Assumption, LedgerBudget, Report, Status
from accounting.report.scores import TaskMetrics, ValueMetrics

_STATUSES: dict[Status, str] = {  # worst first
    "violated": "does not hold",
    "asserted": "rests on a person's word",
    "checked": "tested on this run",
    "enforced": "holds by construction",
}


def markdown(report: Report) -> str:
    """Returns the report as GitHub-flavored Markdown; needs neither jinja2 nor matplotlib."""
    parts = [
        f"# Privacy report: {escaped(report.run.id)}",
        f"**{escaped(report.headline)}**",
        escaped(protects(report)),
        "## Not covered by epsilon",
        "\n".join(f"- {escaped(line)}" for line in report.not_covered) or NOT_STATED,
        "## Covered",
        "\n".join(f"- {escaped(line)}" for line in report.covered) or NOT_STATED,
        "## Assumptions",
        table(("status", "assumption", "by"), [(a.status, a.text, a.by) for a in assumptions(report)]),
        "## Audit",
        *(f"### {escaped(title)}\n\n{table(('', ''), rows)}" for title, rows in audits(report)),
        *([] if report.audit else [NEVER_AUDITED]),
    ]
    for title, rows in facts(report).items():
        parts += [f"## {title}", table(("", ""), rows)]
        if title == "Mechanism":
            parts += ["The whole event, as the accountant reads it:", json_block(report.mechanism.event)]
        if title == "Model":
            parts += ["## Metrics", *(_md_task(report, task) for task in report.metrics)]
            parts += [_md_value(report, one) for one in report.values]
            parts += [] if report.metrics or report.values else [NOT_STATED]
    parts += ["The exact configuration:", json_block(report.run.config)]
    return "\n\n".join(parts) + "\n"


def html(report: Report) -> str:
    """Returns the report as one HTML file: no scripts, nothing loaded from elsewhere, every value escaped."""
    try:
        from accounting.report.plot import calibration_plot, profile_plot, steps_plot
    except ImportError as error:
        raise MissingExtra('a report in HTML needs jinja2 and matplotlib: pip install "privads[report]"') from error
    promise = report.guarantee
    plots = [calibration_plot(task) if task.curve else "" for task in report.metrics]
    return page(
        "report.html",
        {
            "report": report,
            "headline": report.headline_parts,
            "interval_note": INTERVAL,
            "verdict": VERDICTS[report.verdict],
            "protects": protects(report),
            "assumptions": assumptions(report),
            "statuses": [(s, n, why) for s, why in _STATUSES.items() if (n := len(report.with_status(s)))],
            "facts": facts(report),
            "audits": audits(report),
            "never_audited": NEVER_AUDITED,
            "drawn": {
                "Privacy profile": profile_plot(promise) if promise else "",
                "Epsilon over steps": steps_plot(promise) if promise else "",
            },
            "bar": budget_bar(report.budget) if report.budget else None,
            "metrics": [
                {
                    "name": name(task),
                    "task": task,
                    "scores": scores(task),
                    "about": f"{counted(task)} {covered(report, task)}",
                    "curve": curve(task),
                }
                for task in report.metrics
            ],
            "values": [
                {"task": one, "scores": value_scores(one), "covered": covered(report, one)} for one in report.values
            ],
            "plots": plots,
            "indented": indented,
        },
    )


def protects(report: Report) -> str:
    """Returns who is protected from what, in plain words, and what stands in the way of it."""
    if report.guarantee is None:
        return "It protects nobody: no noise was added, and whoever sees the model may learn about single units."
    hindrances = []
    if report.with_status("violated"):
        hindrances.append("Nothing is promised: an assumption is violated.")
    if report.contradictions:
        hindrances.append("Nothing is promised: an audit contradicts it.")
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


def audits(report: Report) -> list[tuple[str, list[Row]]]:
    """Returns (method, rows) of every audit, those that contradict the claim first."""
    worst_first = sorted(report.audit, key=lambda audit: audit.verdict != "violation")
    return [(audit.method, audit_rows(report, audit)) for audit in worst_first]


def assumptions(report: Report) -> list[Assumption]:
    """Returns the assumptions, worst status first."""
    return sorted(report.assumptions, key=lambda assumption: list(_STATUSES).index(assumption.status))


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


def _md_value(report: Report, task: ValueMetrics) -> str:
    about = f"{task.rows:,} rows. {covered(report, task)}"
    return "\n\n".join([f"### {escaped(task.task)}", about, table(("", "this model"), value_scores(task))])


def _md_task(report: Report, task: TaskMetrics) -> str:
    reference = escaped(task.reference.name) if task.reference else "reference"
    parts = [
        f"### {escaped(name(task))}",
        f"{counted(task)} {escaped(covered(report, task))}",
        table(("", "this model", reference), scores(task)),
    ]
    if task.curve:
        parts += [table(("mean predicted", "observed rate", "rows"), curve(task))]
    return "\n\n".join(parts)
