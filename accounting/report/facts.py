"""The blocks of a report as rows of a name and a value, the same in Markdown and in HTML."""

import json

from accounting.report.audits import AuditResult, AuditVerdict
from accounting.report.fields import Verdict
from accounting.report.figures import Row, listed, number
from accounting.report.guarantee import Guarantee
from accounting.report.phrase import NOT_STATED, bound, round_up
from accounting.report.record import LedgerBudget, Report
from accounting.report.setting import Justification, Product, Security
from accounting.report.started import StartedFrom

VERDICTS: dict[Verdict, str] = {
    "private": "Private",
    "conditional": "Private on conditions",
    "violated": "Promise broken",
    "not private": "Not private",
}
_AUDITED: dict[AuditVerdict, str] = {
    "consistent": "no more than the claim was proved. No gross error was found, which does not confirm the claim",
    "violation": "more than the claim was proved, so the claim is wrong, or the code is",
    "inconclusive": "nothing was proved that speaks for or against the claim",
}
NEVER_AUDITED = "never audited: the claim rests on the assumptions alone"


def facts(report: Report) -> dict[str, list[Row]]:
    """Returns the blocks of the report as (name, value) rows, in reading order."""
    return {
        "Budget": _budget_rows(report),
        "Guarantee": _guarantee_rows(report.guarantee),
        "Privacy profile": _profile_rows(report.guarantee),
        "Epsilon over steps": _step_rows(report.guarantee),
        "In other terms": _term_rows(report.guarantee),
        "Mechanism": _mechanism_rows(report),
        "Setting": _setting_rows(report),
        "Data": _data_rows(report),
        "Model": _model_rows(report),
        "Product": _product_rows(report.product or Product(type=NOT_STATED)),
        "Security": _security_rows(report.security or Security()),
        "Choice of epsilon": _choice_rows(report.justification or Justification()),
        "Run": _run_rows(report),
    }


def audit_rows(report: Report, audit: AuditResult) -> list[Row]:
    """Returns what one audit found, against what was claimed, and what it could have found."""
    power = NOT_STATED
    if audit.power is not None:
        reached = audit.model_copy(update={"epsilon_lower": audit.power})
        power = (
            "of a correct run of the claimed epsilon ideal canaries, each seen alone through one Gaussian, show on "
            f"average {report.proved(reached)}; real ones show less"
        )
    unseen = NOT_STATED
    if audit.detectable is not None:
        least = audit.model_copy(update={"epsilon_lower": audit.detectable})
        unseen = f"{report.figure(least, '<=')}: in more than one run of 20 even ideal canaries do not contradict that"
    guessed = NOT_STATED if audit.guesses is None else f"{audit.correct:,} of {audit.guesses:,} correct"
    learned = "the model that is handed out has learned from them" if audit.in_model else "not in the model handed out"
    return [
        ("verdict", f"{audit.verdict}: {_AUDITED[audit.verdict]}"),
        ("proved" if audit.kind == "bound" else "estimated", report.proved(audit)),
        ("claimed", "nothing" if report.guarantee is None else report.guarantee.phrase()),
        ("power", power),
        ("may stay unseen", unseen),
        ("attacker", audit.threat_model),
        ("canaries", f"{audit.canaries:,}, {audit.canary_kind}: {learned}"),
        ("guesses", guessed),
        ("choices after seeing scores", audit.selection_correction),
        ("where nothing leaks", audit.null_calibration),
    ]


def _guarantee_rows(promise: Guarantee | None) -> list[Row]:
    if promise is None:
        return [("claim", "none: trained without differential privacy")]
    lower, unsampled = promise.epsilon_lower, promise.epsilon_without_amplification
    by = promise.accountant
    return [
        ("claim", promise.phrase()),
        ("delta, why this one", promise.delta_reason),
        ("lower end", NOT_STATED if lower is None else promise.phrase_of(lower, relation=">=")),
        ("without sampling", NOT_STATED if unsampled is None else promise.phrase_of(unsampled)),
        ("unit", f"{promise.unit} (columns: {listed(promise.unit_columns)})"),
        ("neighbors", f"{promise.neighbors.replace('-', '/')}: {promise.neighbors_definition}"),
        ("released", promise.released),
        ("public, and used as they are", listed(promise.public_quantities)),
        ("of a unit, unprotected", listed(promise.unprotected)),
        ("accountant", f"{by.method}, grid {number(by.grid)}, {by.library} {by.version}"),
    ]


def _profile_rows(promise: Guarantee | None) -> list[Row]:
    if promise is None:
        return [("profile", "none: trained without differential privacy")]
    others = [at for at in promise.profile if at.delta != promise.delta]
    return [
        ("at the claim's delta", promise.phrase()),
        *(("at another delta", promise.phrase_of(at.epsilon, delta=at.delta)) for at in others),
    ]


def _step_rows(promise: Guarantee | None) -> list[Row]:
    if promise is None or not promise.over_steps:
        return [("steps", NOT_STATED if promise else "none: trained without differential privacy")]
    return [
        (
            f"after {at.steps:,}",
            bound(
                at.epsilon,
                delta=promise.delta,
                unit=promise.unit,
                neighbors=promise.neighbors,
                released=f"all of the first {at.steps} steps",
            ),
        )
        for at in promise.over_steps
    ]


def _term_rows(promise: Guarantee | None) -> list[Row]:
    if promise is None:
        return [("loss", "not bounded: trained without differential privacy")]
    rho, fit = promise.zcdp_rho, promise.gaussian
    about = f"{promise.unit}, {promise.neighbors.replace('-', '/')}, {promise.released}"
    fitted = NOT_STATED
    if fit is not None:
        apart = f"at one share of false alarms its best test misses at most {round_up(fit.error)} less than the run's"
        fitted = f"mu {round_up(fit.mu)}, {apart}: to compare runs by, no promise ({about})"
    orders = "; ".join(f"order {one.order:g}: at most {round_up(one.divergence)}" for one in promise.renyi)
    return [
        *(
            (
                f"best test, {100 * one.false_positive_rate:g} % false alarms",
                f"finds at most {round_up(100 * one.true_positive_rate)} % of those that took part ({about})",
            )
            for one in promise.detection
        ),
        ("Gaussian DP, fitted", fitted),
        ("zero-concentrated DP", NOT_STATED if rho is None else f"rho at most {round_up(rho)} ({about})"),
        ("Renyi DP", f"{orders} ({about})" if orders else NOT_STATED),
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
        ("part of the data set", ", ".join(budget.blocks) or "all of it"),
        ("charges not closed yet", number(budget.open_entries)),
        ("refresh", budget.refresh),
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
        ("sampling rate", number(what.sampling_rate)),
        ("steps", number(what.steps)),
        (f"batch, expected {what.sampled}", number(what.batch)),
        ("rows per unit, at most", number(what.rows_per_unit)),
        ("enforced by", what.bounded_by),
        ("clipping", what.clipping),
        ("clip norm", number(what.clip_norm)),
        ("noise multiplier", number(what.noise_multiplier)),
        ("noise std, in gradient units", number(what.noise_std)),
        ("noise multipliers of counts", listed(tuple(number(one) for one in what.other_noise_multipliers))),
        ("noise of tables", what.table_noise),
        ("randomness", what.randomness),
        ("floating point", what.floating_point),
        ("implementation", what.implementation),
    ]


def _setting_rows(report: Report) -> list[Row]:
    found = report.setting
    if found is None:
        return [(name, NOT_STATED) for name in ("trust model", "actors", "releases", "data", "interactive")]
    return [
        ("trust model", found.model),
        *((one.who, f"sees {one.sees}; trusted with: {one.trust}") for one in found.actors),
        ("releases", "one" if found.releases == "one" else "many, over time"),
        ("data", "fixed" if found.data == "static" else "rows keep coming in"),
        ("interactive", "yes: questions follow on answers" if found.interactive else "no"),
    ]


def _product_rows(product: Product) -> list[Row]:
    return [
        ("name", product.name),
        ("description", product.description),
        ("published by", ", ".join(product.curators) or NOT_STATED),
        ("intended use", product.intended_use),
        ("kind", product.type),
        ("region", product.region),
        ("sector", product.sector),
        ("published", NOT_STATED if product.published is None else product.published.isoformat()),
    ]


def _security_rows(security: Security) -> list[Row]:
    return [
        ("access to rows and run files", security.access),
        ("logs are kept", security.log_retention),
        ("side channels", security.side_channels),
    ]


def _choice_rows(choice: Justification) -> list[Row]:
    return [("chosen by", choice.chosen_by), ("because", choice.why)]


def _data_rows(report: Report) -> list[Row]:
    data = report.data
    return [
        ("data set", data.dataset),
        ("declared public", "yes" if data.public else "no"),
        ("population, declared", number(data.population)),
        ("unit columns", listed(data.unit_columns)),
        ("split", data.split),
        ("labels", listed(data.labels)),
        ("fields", f"{data.categorical} categorical, {data.numeric} numeric"),
        *((("fitted features", data.features),) if data.features is not None else ()),
        ("schema SHA-256", data.schema_sha256 or NOT_STATED),
    ]


def _model_rows(report: Report) -> list[Row]:
    model = report.model
    return [
        ("name", model.name),
        ("parameters", number(model.parameters)),
        ("optimizer", model.optimizer),
        ("learning rate", number(model.learning_rate)),
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
        ("author", run.author or NOT_STATED),
        ("privads", run.library_version),
        ("commit", run.library_commit or NOT_STATED),
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
