"""A report as a section of a model card: Markdown under a heading of the second level, as model hubs show it.

The claim never stands without its terms, what it rests on and what it leaves out; the whole is in the report.
"""

from accounting.report.marks import escaped, table
from accounting.report.phrase import NOT_STATED
from accounting.report.record import Report
from accounting.report.render import protects
from accounting.report.summary import budget_left


def model_card(report: Report) -> str:
    """Returns the section `## Privacy` of the card of a run's model."""
    parts = [
        "## Privacy",
        f"**{escaped(report.headline)}**",
        escaped(protects(report)),
        table(("", ""), _rows(report)),
    ]
    parts += ["Not covered by epsilon:", "\n".join(f"- {escaped(one)}" for one in report.not_covered) or NOT_STATED]
    doubtful = [one for one in report.assumptions if one.status in ("violated", "asserted")]
    if doubtful:
        rows = [(one.status, one.text, one.by) for one in sorted(doubtful, key=lambda one: one.status, reverse=True)]
        parts += ["What neither code nor a test bears out:", table(("status", "assumption", "by"), rows)]
    return "\n\n".join(parts) + "\n"


def _rows(report: Report) -> list[tuple[str, str]]:
    claim, budget, run = report.guarantee, report.budget, report.run
    rows = [("training data", f"{report.data.dataset}{' (public)' if report.data.public else ''}")]
    if claim is not None:
        rows += [
            ("who is protected", f"{claim.unit}; {claim.neighbors.replace('-', '/')}: {claim.neighbors_definition}"),
            ("what was released", claim.released),
            ("accountant", f"{claim.accountant.method}, {claim.accountant.library} {claim.accountant.version}"),
            ("why this delta", claim.delta_reason),
            ("why this epsilon", report.justification.why if report.justification else NOT_STATED),
        ]
    rows += [("audit", f"{one.verdict}: {report.proved(one)}") for one in report.audit] or [("audit", "none")]
    if budget is not None:
        rows += [
            ("left of the data set's budget", budget_left(budget)),
            ("ledger", f"entry {budget.entry}, head {budget.head}"),
        ]
    return [*rows, ("intended use", report.product.intended_use if report.product else NOT_STATED), ("run", run.id)]
