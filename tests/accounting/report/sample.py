"""One whole report, as a run would write it; tests vary it block by block."""

from typing import Any

from accounting.report.audits import AuditResult
from accounting.report.guarantee import (
    Accountant,
    AfterSteps,
    Detection,
    GaussianFit,
    Guarantee,
    ProfilePoint,
    RenyiPoint,
)
from accounting.report.record import Assumption, Data, LedgerBudget, Mechanism, Model, Report, Run
from accounting.report.scores import CurvePoint, Interval, Reference, Scores, TaskMetrics
from accounting.report.setting import Actor, Justification, Product, Security, Setting
from accounting.report.started import StartedFrom


def report(**blocks: Any) -> Report:
    return Report(**{**BLOCKS, **blocks})


def guarantee(**fields: Any) -> Guarantee:
    return Guarantee(**{**GUARANTEE, **fields})


def run(**fields: Any) -> Run:
    return Run(**{**RUN, **fields})


def started_from(**fields: Any) -> StartedFrom:
    return StartedFrom(**{**STARTED_FROM, **fields})


def audit(**fields: Any) -> AuditResult:
    return AuditResult(**{**AUDIT, **fields})


def data(**fields: Any) -> Data:
    return Data(**{**DATA, **fields})


RUN: dict[str, Any] = {
    "id": "2026-11-22T10-31-07-4f1c",
    "created_at": "2026-11-22T10:31:07Z",
    "library_version": "0.1.0",
    "versions": {"torch": "2.9.1", "opacus": "1.6.0", "dp-accounting": "0.6.0"},
    "python": "3.11.14",
    "seconds": 48.31,
    "seed": 17,
    "insecure_seed": None,
    "config": {
        "data": {"path": "impressions.parquet", "schema": "ads.toml", "test_after": "2026-11-15T00:00:00"},
        "ledger": {"url": "postgresql://trainer:hunter2@budget.internal/ledger"},
        "model": {"name": "dcn"},
        "plan": {
            "epsilon": 3.0,
            "delta": 1e-6,
            "unit": "user",
            "batch": 4096,
            "rows_per_unit": 8,
            "epochs": 4,
        },
    },
}
STARTED_FROM: dict[str, Any] = {
    "run": "2026-11-21T10-30-00-77aa",
    "dataset": "ads-2026q4",
    "public": False,
    "verdict": "private",
    "epsilon": 1.2345,
    "delta": 1e-7,
    "unit": "user",
    "neighbors": "add-remove",
    "entry": "9",
    "head": "beef" * 16,
    "same_ledger": True,
}
WITHOUT_COST = dict.fromkeys(("epsilon", "delta", "unit", "neighbors", "entry", "head"))
GUARANTEE: dict[str, Any] = {
    "epsilon": 2.9714,
    "delta": 1e-6,
    "unit": "user",
    "unit_columns": ["user_id"],
    "neighbors": "add-remove",
    "neighbors_definition": "one data set has all rows of one user more than the other",
    "released": "final model",
    "accountant": Accountant(method="PLD", grid=1e-4, library="dp-accounting", version="0.6.0"),
    "epsilon_without_amplification": 41.1802,
    "profile": [
        ProfilePoint(delta=1e-5, epsilon=2.5561),
        ProfilePoint(delta=1e-7, epsilon=3.3462),
        ProfilePoint(delta=1e-8, epsilon=3.6901),
    ],
}
AUDIT: dict[str, Any] = {
    "method": "one-run audit",
    "threat_model": "sees every noised sum",
    "canaries": 1000,
    "canary_kind": "gradient",
    "in_model": True,
    "guesses": 400,
    "correct": 252,
    "significance": 0.05,
    "delta": 1e-6,
    "epsilon_lower": 0.3127,
    "selection_correction": "none needed: the number of guesses was fixed before",
    "null_calibration": "12 of 400 runs that leak nothing were flagged",
    "verdict": "consistent",
    "power": 0.4141,
    "detectable": 9.1137,
}
STATED: dict[str, Any] = {
    "covered": ["Training: 40 batches of the rows before 2026-11-15."],
    "product": Product(
        name="ranking model of 2026",
        description="predicts clicks",
        curators=("Example Ads",),
        intended_use="ranking ads",
        region="EU",
        sector="Technology",
        published="2026-12-01",
    ),
    "setting": Setting(
        model="central",
        actors=(Actor(who="the training job", sees="all rows", trust="to show nothing but the model"),),
        releases="one",
    ),
    "security": Security(access="the ranking team", log_retention="30 days", side_channels="none were looked at"),
    "justification": Justification(chosen_by="the privacy board", why="half of what last year's model cost"),
}
IN_OTHER_TERMS: dict[str, Any] = {
    "epsilon_lower": 2.9388,
    "delta_reason": "0.04 / population",
    "over_steps": [AfterSteps(steps=10, epsilon=1.9), AfterSteps(steps=40, epsilon=2.9714)],
    "zcdp_rho": 16.53,
    "renyi": [RenyiPoint(order=2.0, divergence=0.31), RenyiPoint(order=8.0, divergence=1.93)],
    "gaussian": GaussianFit(mu=0.67, error=0.004),
    "detection": [Detection(false_positive_rate=0.01, true_positive_rate=0.049)],
    "public_quantities": ["the population, as declared"],
    "unprotected": [],
}
DATA: dict[str, Any] = {
    "dataset": "ads-2026q4",
    "population": 40_000,
    "public": False,
    "split": "training rows were shown before 2026-11-15, test rows after",
    "schema_sha256": "9f" * 32,
    "labels": ["click", "conversion"],
    "categorical": 6,
    "numeric": 4,
    "unit_columns": ["user_id"],
}
ENFORCED = Assumption(text="one user adds at most 8 rows to a batch", status="enforced", by="privads.logs.bounds")
CHECKED = Assumption(
    text="the clipped gradient of every user has norm at most 1",
    status="checked",
    by="privads.training.clipping",
)
ASSERTED = Assumption(
    text="the job's own log files stay inside the team", status="asserted", by="ranking-team@example.com"
)
VIOLATED = Assumption(text="batches were drawn by Poisson sampling", status="violated", by="privads.training.sampling")
CURVE = [
    CurvePoint(mean_predicted=x, observed_rate=y, low=y * 0.82, high=y * 1.2, rows=1050)
    for x, y in (
        (0.0061, 0.0083),
        (0.0104, 0.0121),
        (0.0152, 0.0149),
        (0.0207, 0.0226),
        (0.0288, 0.0271),
        (0.0401, 0.0415),
        (0.0566, 0.0528),
        (0.0834, 0.0871),
        (0.1312, 0.1243),
        (0.2410, 0.2296),
    )
]
BLOCKS: dict[str, Any] = {
    "run": run(),
    "guarantee": guarantee(),
    "mechanism": Mechanism(
        event={
            "event": "self-composed",
            "count": 40,
            "of": {
                "event": "poisson-sampled",
                "sampling_rate": 0.1024,
                "of": {"event": "gaussian", "noise_multiplier": 1.1},
            },
        },
        sampler="poisson",
        sampling_rate=0.1024,
        steps=40,
        batch=4096,
        rows_per_unit=8,
        clip_norm=1.5,
        noise_multiplier=1.1,
        noise_std=1.65,
        randomness="noise and batches come from the operating system's entropy",
        floating_point="idealized: Gaussian noise is accounted for as real numbers, drawn in float32",
    ),
    "assumptions": [ENFORCED, CHECKED],
    "not_covered": [
        "The metrics below were computed on held-out rows without noise.",
        "Choosing the model and its settings by looking at the same data.",
    ],
    "data": data(),
    "model": Model(
        name="dcn",
        parameters=118_402,
        optimizer="Adam",
        learning_rate=0.001,
        averaging="exponential, decay 0.99",
        settings={"crosses": 2, "hidden": [64, 32]},
    ),
    "budget": LedgerBudget(
        dataset="ads-2026q4",
        unit="user",
        neighbors="add-remove",
        rule="basic",
        limit_epsilon=8.0,
        limit_delta=1e-5,
        spent_before_epsilon=2.0,
        spent_before_delta=1e-6,
        this_run_epsilon=2.9714,
        this_run_delta=1e-6,
        charged_unit="user",
        charged_neighbors="add-remove",
        left_epsilon=3.0286,
        left_delta=8e-6,
        entry="12",
        head="c0ffee" * 10 + "c0ff",
    ),
    "metrics": [
        TaskMetrics(
            task="click",
            released=False,
            rows=10_500,
            positives=662,
            scores=Scores(
                auc=Interval(value=0.741, low=0.733, high=0.749),
                log_loss=Interval(value=0.2107, low=0.2015, high=0.2204),
                normalized_entropy=Interval(value=0.912, low=0.897, high=0.931),
                calibration=Interval(value=1.021, low=0.955, high=1.094),
            ),
            reference=Reference(
                name="Bayes optimum",
                scores=Scores(
                    auc=Interval(value=0.782, low=0.774, high=0.791),
                    log_loss=Interval(value=0.1964, low=0.1871, high=0.2055),
                    normalized_entropy=Interval(value=0.851, low=0.836, high=0.866),
                    calibration=Interval(value=1.003, low=0.941, high=1.07),
                ),
            ),
            curve=CURVE,
        ),
        TaskMetrics(
            task="conversion",
            released=False,
            rows=10_500,
            positives=0,
            scores=Scores(
                auc=Interval(value=None),
                log_loss=Interval(value=0.00214, low=0.00201, high=0.00229),
                normalized_entropy=Interval(value=None),
                calibration=Interval(value=None),
            ),
        ),
    ],
}
